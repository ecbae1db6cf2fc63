"""Film strips: what happened, what the world model predicts, and what it predicts with another clip's z."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lawm_policy.layers import to_unit
from lawm_policy.measures import predict, shuffle_within
from lawm_policy.recipe import Recipe
from lawm_policy.types import Clip

ROWS = ("truth", "prediction", "another z")


@torch.no_grad()
def film_strip(recipe: Recipe, clip: Clip, path: Path, clips: int = 4) -> None:
    """A PNG of `clips` blocks of three rows; time runs to the right, the views stand side by side."""
    was_training = recipe.training
    recipe.eval()
    z_BTZ, _ = recipe.encoder.infer(clip)
    other_BTZ = z_BTZ[shuffle_within(clip.embodiment_B, torch.Generator().manual_seed(0))]
    first = to_unit(clip.frames_BTVCHW[:, :1])
    films = [to_unit(clip.frames_BTVCHW)] + [
        torch.cat([first, predict(recipe, clip, z)], dim=1) for z in (z_BTZ, other_BTZ)
    ]
    recipe.train(was_training)
    _draw([[film[i] for film in films] for i in range(min(clips, len(z_BTZ)))], clip, path)


def _draw(blocks: list[list[Tensor]], clip: Clip, path: Path) -> None:
    from matplotlib.figure import Figure

    there = clip.view_mask_BV[: len(blocks)].any(0).nonzero()[:, 0].tolist()
    views = len(there)
    side, steps = clip.frames_BTVCHW.shape[-1], clip.frames_BTVCHW.shape[1]
    figure = Figure(figsize=(1.1 * views * steps, 3.7 * len(blocks)), layout="constrained")
    axes = figure.subplots(len(blocks), 1, squeeze=False)[:, 0]
    for i, (axis, films) in enumerate(zip(axes, blocks, strict=True)):
        rows = [np.concatenate([_row(film[:, v]) for v in there], axis=1) for film in films]
        axis.imshow(np.concatenate(rows), interpolation="nearest")
        axis.set_yticks([side * (row + 0.5) for row in range(len(films))], ROWS[: len(films)])
        axis.set_xticks(
            [side * (t + 0.5) for t in range(views * steps)], [f"{t}" for t in range(steps)] * views
        )
        axis.set_title(clip.text[i] or "(no caption)", fontsize=10)
        axis.tick_params(length=0, labelsize=8)
        for spine in axis.spines.values():
            spine.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _row(film_TCHW: Tensor) -> np.ndarray:
    """Frames side by side, as bytes."""
    strip = torch.cat(list(film_TCHW), dim=2).permute(1, 2, 0)
    return ((strip + 0.5).clamp(0, 1) * 255).byte().cpu().numpy()
