"""Small models and made-up clips for tests: the real classes at toy widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lawm_policy.data.language import LanguageConfig
from lawm_policy.latent_actions.inverse import InverseConfig
from lawm_policy.policies.baku import BakuConfig
from lawm_policy.policies.trunk import TrunkConfig
from lawm_policy.recipe import RecipeConfig
from lawm_policy.types import Clip
from lawm_policy.world_models.rssm import Rssm, RssmConfig

CHUNK = 3
POLICY = BakuConfig(
    size=32,
    chunk=CHUNK,
    latent=8,
    width=32,
    layers=2,
    heads=2,
    components=3,
    language=LanguageConfig(width=16, buckets=256),
    trunk=TrunkConfig(channels=16, map_channels=4),
)
REGRESSION = replace(POLICY, components=1, density=False)
RECIPES = {
    source: RecipeConfig(
        source=source,
        policy=REGRESSION if source == "policy" else POLICY,
        inverse=InverseConfig(channels=16, width=32),
        world_model=RssmConfig(deter=32, channels=16),
    )
    for source in ("policy", "inverse", "variational")
}


def clip(batch: int = 4, views: tuple[bool, ...] = (True, True), chunk: int = CHUNK, seed: int = 0) -> Clip:
    """A bright square that moves over a still background, by a caption's word and by chance."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 80, (batch, 1, len(views), 3, 32, 32), generator=generator).to(torch.uint8)
    frames = frames.repeat(1, chunk + 1, 1, 1, 1, 1)
    text = []
    for b in range(batch):
        row, column = torch.randint(4, 20, (2,), generator=generator).tolist()
        step = 1 + int(torch.randint(0, 2, (1,), generator=generator))
        down = bool(torch.randint(0, 2, (1,), generator=generator))
        text.append(("go down" if down else "go right") if b % 2 else "")
        for t in range(chunk + 1):
            r, c = (row + t * step, column) if down else (row, column + t * step)
            frames[b, t, :, :, r : r + 6, c : c + 6] = 250
    mask = torch.tensor(views).repeat(batch, 1)
    frames[~mask[:, None].expand(-1, chunk + 1, -1)] = 0
    return Clip(frames, mask, tuple(text), torch.arange(batch) % 2)


def painted_in_training(
    world: Rssm, step: Callable[[], object], held_BTZ: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What one training step compares with the truth in its open-loop frame loss, and the z it came from.
    With `held_BTZ` the world model gets that z, whatever the step reads off its clip."""
    whole, part = world.loss, world._frame_loss
    compared: list[tuple[Tensor, Tensor]] = []
    films: list[tuple[Tensor, Tensor]] = []

    def watch_part(painted: Tensor, *rest: object) -> Tensor:
        compared.append((part(painted, *rest), painted.detach()))
        return compared[-1][0]

    def watch_whole(clip: Clip, z_BTZ: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(0)  # the same draws, whatever came before
        losses = whole(clip, z_BTZ if held_BTZ is None else held_BTZ)
        films.extend((painted, z_BTZ.detach()) for loss, painted in compared if loss is losses["frames"])
        return losses

    world.loss, world._frame_loss = watch_whole, watch_part  # type: ignore[method-assign]
    try:
        step()
    finally:
        del world.loss, world._frame_loss
    (found,) = films
    return found


def with_noise_after_t(clip: Clip) -> Clip:
    frames = clip.frames_BTVCHW.clone()
    generator = torch.Generator().manual_seed(7)
    frames[:, 1:] = torch.randint(0, 255, frames[:, 1:].shape, generator=generator).to(torch.uint8)
    return replace(clip, frames_BTVCHW=frames)
