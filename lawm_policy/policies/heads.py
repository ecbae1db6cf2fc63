"""What a policy says: a mixture over whole chunks of latents.

One instruction admits several futures, and no instruction admits many more. A head that says one of them
by regression says their mean, which is none of them; so the head says `components` whole chunks and how
likely each is. With one component it is plain regression."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPARE = 0.05  # of the gradient goes to all components alike: one that fits nothing yet must not stay so
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)  # of a Gaussian's normaliser


@dataclass(frozen=True)
class ChunkMixture:
    """Axis M counts the mixture's components."""

    mean_BMKZ: Tensor
    log_weight_BM: Tensor
    log_std_Z: Tensor | None  # None: a head that regresses, without a density

    def rows(self, rows: slice) -> ChunkMixture:
        """Those of some of the batch."""
        return ChunkMixture(self.mean_BMKZ[rows], self.log_weight_BM[rows], self.log_std_Z)

    def likeliest(self) -> Tensor:
        return self.take(self.log_weight_BM.argmax(1))

    def take(self, component_B: Tensor) -> Tensor:
        return self.mean_BMKZ[torch.arange(len(component_B), device=component_B.device), component_B]

    def component_log_prob(self, z_BKZ: Tensor, spread_BKZ: Tensor | None = None) -> Tensor:
        """(B, M): log density of a chunk under each component; with a spread, its mean over chunks that are
        Gaussian about this one."""
        assert self.log_std_Z is not None, "only a head with a density can clone latents"
        error = (z_BKZ[:, None] - self.mean_BMKZ).square()
        if spread_BKZ is not None:
            error = error + spread_BKZ[:, None].square()
        return -(0.5 * error * (-2 * self.log_std_Z).exp() + self.log_std_Z + HALF_LOG_TAU).sum((2, 3))

    def log_prob(self, z_BKZ: Tensor) -> Tensor:
        return torch.logsumexp(self.log_weight_BM + self.component_log_prob(z_BKZ), dim=1)

    def cloning_losses(self, z_BKZ: Tensor, spread_BKZ: Tensor | None = None) -> dict[str, Tensor]:
        """Expectation-maximisation form of the negative log-likelihood: per dimension for the chunks and
        per choice for the weights. Summed plainly, the chunk's many dimensions would drown the choice."""
        assert self.log_std_Z is not None
        log_prob_BM = self.component_log_prob(z_BKZ, spread_BKZ)
        share_BM = (self.log_weight_BM + log_prob_BM).softmax(1).detach()
        taught_BM = (1 - SPARE) * share_BM + SPARE / share_BM.shape[1]
        dimensions = z_BKZ.shape[1] * z_BKZ.shape[2]
        return {
            "clone": -(taught_BM * log_prob_BM).sum(1).mean() / dimensions,
            "choice": -(share_BM * self.log_weight_BM).sum(1).mean(),
        }


class ChunkHead(nn.Module):
    """Query tokens (one a latent) to a `ChunkMixture`."""

    def __init__(self, width: int, latent: int, components: int, density: bool):
        super().__init__()
        self.latent, self.components = latent, components
        self.mean = nn.Linear(width, components * latent)
        # All components begin close together, so that which one fits best differs from chunk to chunk: far
        # apart, the one that begins nearest to the data's mean takes every chunk.
        nn.init.normal_(self.mean.weight, std=0.002)
        nn.init.zeros_(self.mean.bias)
        self.choice = nn.Linear(width, components) if components > 1 else None
        self.log_std_Z = nn.Parameter(torch.full((latent,), -0.5)) if density else None

    def forward(self, query_BKD: Tensor) -> ChunkMixture:
        b, k, _ = query_BKD.shape
        mean_BMKZ = self.mean(query_BKD).view(b, k, self.components, self.latent).transpose(1, 2)
        if self.choice is None:
            log_weight_BM = mean_BMKZ.new_zeros(b, 1)
        else:  # the last query sees the whole context
            log_weight_BM = F.log_softmax(self.choice(query_BKD[:, -1]).float(), dim=-1)
        log_std_Z = None if self.log_std_Z is None else self.log_std_Z.clamp(-3.0, 1.0)
        return ChunkMixture(mean_BMKZ.float(), log_weight_BM, log_std_Z)
