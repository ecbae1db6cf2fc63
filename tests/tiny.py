"""Small models and made-up clips for tests: the real classes at toy widths."""

from __future__ import annotations

from dataclasses import replace

import torch

from lawm_policy.data.language import LanguageConfig
from lawm_policy.latent_actions.inverse import InverseConfig
from lawm_policy.policies.baku import BakuConfig
from lawm_policy.policies.trunk import TrunkConfig
from lawm_policy.recipe import RecipeConfig
from lawm_policy.types import Clip
from lawm_policy.world_models.rssm import RssmConfig

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
