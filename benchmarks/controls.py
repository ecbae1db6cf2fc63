"""What the study's controls change: the module that is pretrained, or the batches that it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from lawm_policy.layers import ConvNorm, to_unit
from lawm_policy.recipe import Losses, Recipe, RecipeConfig
from lawm_policy.types import Clip


class Nothing(nn.Module):
    """An encoder that says nothing: z is always zero, of as many clips as `inner` would say it for."""

    def __init__(self, inner: nn.Module, cfg: RecipeConfig):
        super().__init__()
        self.policy, self.latent, self.share = inner.policy, cfg.policy.latent, cfg.world_share

    def infer(self, clip: Clip) -> tuple[Tensor, Losses]:
        b, t = clip.frames_BTVCHW.shape[:2]
        return torch.zeros(b, t - 1, self.latent, device=clip.frames_BTVCHW.device), {}

    def forward(self, clip: Clip) -> tuple[Tensor, Losses]:
        z_BTZ, losses = self.infer(clip)
        return z_BTZ[: max(1, round(self.share * len(z_BTZ)))] if self.training else z_BTZ, losses


class ZFree(Recipe):
    """The twin that predictions must beat: the same world model, equally trained, without z."""

    def __init__(self, cfg: RecipeConfig):
        super().__init__(cfg)
        self.encoder = Nothing(self.encoder, cfg)  # type: ignore[assignment]
        self.encoder.policy.requires_grad_(False)


class AutoEncoding(Recipe):
    """The policy's trunk trained to reproduce what it sees: pictures without their motion, nor any z."""

    def __init__(self, cfg: RecipeConfig):
        super().__init__(cfg)
        width, c = cfg.policy.width, 48
        self.start = nn.Linear(width, c * 64)
        layers: list[nn.Module] = []
        side = 8
        while side < cfg.policy.size:
            layers += [nn.Upsample(scale_factor=2.0), ConvNorm(c, 32)]
            c, side = 32, 2 * side
        self.paint = nn.Sequential(*layers, nn.Conv2d(c, 3, 3, 1, 1))

    def forward(self, clip: Clip) -> Losses:
        frames = clip.frames_BTVCHW[:, 0]
        view_BVD = self.policy(frames, clip.view_mask_BV, clip.text).view_BVD
        painted = self.paint(self.start(view_BVD).flatten(0, 1).unflatten(1, (-1, 8, 8))).float()
        error = (painted - to_unit(frames.flatten(0, 1))).abs().mean((1, 2, 3))
        mask = clip.view_mask_BV.flatten().float()
        loss = (error * mask).sum() / mask.sum()
        return {"loss": loss, "frames": loss.detach()}


MODULES: dict[str, Callable[[RecipeConfig], Recipe]] = {"z-free": ZFree, "auto-encoding": AutoEncoding}


# What is changed in each training batch: a function of the step, as resuming asks.


def permute_frames(step: int, clip: Clip) -> Clip:
    """The frames after x_t in a random order: the same pictures without their motion."""
    generator = torch.Generator().manual_seed(step)
    frames = clip.frames_BTVCHW.clone()
    for row in frames:
        row[1:] = row[1 + torch.randperm(len(row) - 1, generator=generator)]
    return replace(clip, frames_BTVCHW=frames)


def permute_captions(step: int, clip: Clip) -> Clip:
    generator = torch.Generator().manual_seed(step)
    order = torch.randperm(len(clip.text), generator=generator).tolist()
    return replace(clip, text=tuple(clip.text[i] for i in order))


CHANGES: dict[str, Callable[[int, Clip], Clip]] = {
    "frames-permuted": permute_frames,
    "captions-permuted": permute_captions,
}
