"""What keeps z small: `module(params_BTD, clip) -> (z_BTZ, losses)`, and `mean(params_BTD)`, z without noise.

z must say what moved and not what the next frame looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lawm_policy.types import Clip, within


@dataclass(frozen=True)
class BottleneckConfig:
    kind: Literal["kl", "none"] = "kl"
    beta: float = 1e-3  # weight of the KL to N(0, I), per dimension

    def __post_init__(self) -> None:
        within(self, beta="[0, inf)")


class NoBottleneck(nn.Module):
    def __init__(self, cfg: BottleneckConfig, features: int, latent: int):
        super().__init__()
        self.params = nn.Linear(features, latent)

    def mean(self, params_BTD: Tensor) -> Tensor:
        return self.params(params_BTD).float()

    def forward(self, params_BTD: Tensor, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        return self.mean(params_BTD), {}


class KLBottleneck(nn.Module):
    """A Gaussian posterior tied to N(0, I). In evaluation z is its mean."""

    def __init__(self, cfg: BottleneckConfig, features: int, latent: int):
        super().__init__()
        self.beta = cfg.beta
        self.params = nn.Linear(features, 2 * latent)

    def posterior(self, params_BTD: Tensor) -> tuple[Tensor, Tensor]:
        mean_BTZ, log_std_BTZ = self.params(params_BTD).float().chunk(2, dim=-1)
        return mean_BTZ, (log_std_BTZ - 1.0).clamp(-5.0, 2.0)

    def mean(self, params_BTD: Tensor) -> Tensor:
        return self.posterior(params_BTD)[0]

    def forward(self, params_BTD: Tensor, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        mean_BTZ, log_std_BTZ = self.posterior(params_BTD)
        kl = 0.5 * (mean_BTZ.square() + (2 * log_std_BTZ).exp() - 1.0) - log_std_BTZ
        z_BTZ = mean_BTZ
        if self.training:
            z_BTZ = mean_BTZ + log_std_BTZ.exp() * torch.randn_like(mean_BTZ)
        return z_BTZ, {"kl": self.beta * kl.mean()}


BOTTLENECKS: dict[str, type[KLBottleneck] | type[NoBottleneck]] = {
    "kl": KLBottleneck,
    "none": NoBottleneck,
}
