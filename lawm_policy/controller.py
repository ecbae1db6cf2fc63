"""From latents to robot commands.

Each latent stands for a fixed whole number of commands, R, and is decoded to that many, given the robot's
state and what the trunk saw at the chunk's start. Latent k is decoded from itself and the latents before it,
never from later ones. What comes out is normalised; `Normalization`, which travels with the checkpoint,
makes commands of it (of joint targets: offsets from the joints as they are now)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm_policy.layers import masked_mean, mlp
from lawm_policy.types import within


@dataclass(frozen=True)
class ControllerConfig:
    kind: Literal["mlp", "linear"] = "mlp"
    width: int = 512
    features: int = 64  # of the trunk that the controller may look at; 0 keeps it blind
    features_dropout: float = 0.0
    commands_per_latent: int = 4

    def __post_init__(self) -> None:
        within(self, width="[1, inf)", features="[0, inf)", commands_per_latent="[1, inf)")
        within(self, features_dropout="[0, 1)")


class MlpController(nn.Module):
    def __init__(self, cfg: ControllerConfig, chunk: int, latent: int, state: int, action: int, view: int):
        super().__init__()
        self.cfg, self.chunk, self.action = cfg, chunk, action
        self.look = nn.Linear(view, cfg.features) if cfg.features else None
        context = 2 * latent + chunk + state + cfg.features
        self.net = mlp(context, cfg.width, cfg.width, cfg.commands_per_latent * action)

    def forward(self, z_BKZ: Tensor, state_BP: Tensor, view_BVD: Tensor, view_mask_BV: Tensor) -> Tensor:
        b, k, _ = z_BKZ.shape
        before_BKZ = z_BKZ.cumsum(1) - z_BKZ  # where the earlier latents have led
        which_BKK = torch.eye(self.chunk, device=z_BKZ.device)[:k].expand(b, k, self.chunk)
        context = [z_BKZ, before_BKZ, which_BKK, state_BP[:, None].expand(b, k, -1)]
        if self.look is not None:
            seen_BE = self.look(masked_mean(view_BVD, view_mask_BV))
            seen_BE = F.dropout(seen_BE, self.cfg.features_dropout, self.training)
            context.append(seen_BE[:, None].expand(b, k, -1))
        return self.net(torch.cat(context, dim=-1)).float().view(b, k, -1, self.action)


class LinearController(nn.Module):
    """The ablation: no state, no picture; commands are a linear map of the latents so far."""

    def __init__(self, cfg: ControllerConfig, chunk: int, latent: int, state: int, action: int, view: int):
        super().__init__()
        self.action = action
        self.net = nn.Linear(2 * latent, cfg.commands_per_latent * action)

    def forward(self, z_BKZ: Tensor, state_BP: Tensor, view_BVD: Tensor, view_mask_BV: Tensor) -> Tensor:
        b, k, _ = z_BKZ.shape
        both = torch.cat([z_BKZ, z_BKZ.cumsum(1) - z_BKZ], dim=-1)
        return self.net(both).float().view(b, k, -1, self.action)


CONTROLLERS: dict[str, Callable[[ControllerConfig, int, int, int, int, int], nn.Module]] = {
    "mlp": MlpController,
    "linear": LinearController,
}
