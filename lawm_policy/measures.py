"""Does the world model predict, and does it listen to z? Measured on clips that were held out.

Everything here is open loop (state from x_t and z only) and looks at the pixels that truly moved: most of a
picture stands still, and a copy of x_t predicts that part for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lawm_policy.layers import to_unit
from lawm_policy.recipe import Recipe
from lawm_policy.types import Clip
from lawm_policy.world_models.rssm import moved

THRESHOLD = 0.06  # of full range: what counts as a pixel that moved


@torch.no_grad()
def predict(recipe: Recipe, clip: Clip, z_BTZ: Tensor) -> Tensor:
    """(B, T, V, C, H, W) frames after x_t, in [-0.5, 0.5]."""
    model = recipe.world_model
    state = model.encode(clip.frames_BTVCHW[:, 0], clip.view_mask_BV)
    return model.decode(model.rollout(state, z_BTZ))


def squared_error(painted: Tensor, clip: Clip, moving: bool = True) -> tuple[Tensor, Tensor]:
    """(B, T, V) sums of squared error and (B, T, V) how many values they sum: none of an absent view."""
    target = to_unit(clip.frames_BTVCHW[:, 1:])
    first = to_unit(clip.frames_BTVCHW[:, 0])
    weight = clip.view_mask_BV[:, None, :, None, None, None].to(target.dtype).expand_as(target)
    if moving:
        weight = weight * moved(target, first, THRESHOLD)
    error = (painted - target).square() * weight
    return error.sum((3, 4, 5)), weight.sum((3, 4, 5))


def shuffle_within(embodiment_B: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation that gives each clip another clip of the same body (itself only if it is alone). On the
    CPU, wherever the clips are: an index may be."""
    embodiment_B = embodiment_B.cpu()
    order_B = torch.arange(len(embodiment_B))
    for body in embodiment_B.unique():
        rows = (embodiment_B == body).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        order_B[rows] = rows.roll(1)
    return order_B


@torch.no_grad()
def z_use(recipe: Recipe, clips: Iterable[Clip], seed: int = 0) -> dict[str, float]:
    """Mean squared error over moving pixels with the true z, with another clip's of the same body, and with
    the mean z; the two costs are relative. z means zero distance from the distribution: zero z does not.
    Beside them the cost of another clip's z in each view: nearly all of a wrist camera's pixels move, and
    drown a still one's."""
    recipe.eval()
    generator = torch.Generator().manual_seed(seed)
    clips = list(clips)
    latents = [recipe.encoder.infer(clip)[0] for clip in clips]
    mean_1TZ = torch.cat(latents).mean((0, 1), keepdim=True)
    cameras = recipe.cfg.policy.cameras
    names = ("true", "shuffled", "mean", "copy")
    sums_V = {name: torch.zeros(len(cameras), dtype=torch.float64) for name in names}
    count = 0.0
    for clip, z_BTZ in zip(clips, latents, strict=True):
        other = shuffle_within(clip.embodiment_B, generator)
        painted = {
            "true": predict(recipe, clip, z_BTZ),
            "shuffled": predict(recipe, clip, z_BTZ[other]),
            "mean": predict(recipe, clip, mean_1TZ.expand_as(z_BTZ)),
            "copy": to_unit(clip.frames_BTVCHW[:, :1]).expand_as(clip.frames_BTVCHW[:, 1:]),
        }
        for name, frames in painted.items():
            error_BTV, count_BTV = squared_error(frames, clip)
            sums_V[name] += error_BTV.sum((0, 1)).double().cpu()
            if name == "true":
                count += float(count_BTV.sum())
    error = {name: float(sum_V.sum()) / max(count, 1.0) for name, sum_V in sums_V.items()}
    shuffled_V = sums_V["shuffled"] / sums_V["true"].clamp_min(1e-12) - 1.0
    return {
        "moving_mse": error["true"],
        "shuffled_cost": error["shuffled"] / error["true"] - 1.0,
        "mean_cost": error["mean"] / error["true"] - 1.0,
        "copy_cost": error["copy"] / error["true"] - 1.0,
        **{f"shuffled_cost_{name}": float(cost) for name, cost in zip(cameras, shuffled_V, strict=True)},
    }


@torch.no_grad()
def psnr(
    recipe: Recipe,
    clips: Sequence[Clip],
    twin: Recipe | None = None,
    mean_frame_VCHW: Tensor | None = None,
    steps: Sequence[int] = (2, 4, 6),
) -> list[dict[str, float]]:
    """Per clip: PSNR in dB at each step of the prediction and of what it must beat, over moving pixels
    (`model_2`, `copy_2`, `mean_2`, `twin_2`, ...) and over the whole frame (`model_2_whole`, ...).
    A clip in which nothing moved by a step says nothing of moving pixels there: NaN."""
    recipe.eval()
    rows: list[dict[str, float]] = []
    for clip in clips:
        first = to_unit(clip.frames_BTVCHW[:, :1])
        future = clip.frames_BTVCHW[:, 1:]
        painted = {
            "model": predict(recipe, clip, recipe.encoder.infer(clip)[0]),
            "copy": first.expand_as(future),
        }
        if twin is not None:
            painted["twin"] = predict(twin.eval(), clip, twin.encoder.infer(clip)[0])
        if mean_frame_VCHW is not None:
            painted["mean"] = mean_frame_VCHW.expand_as(future)
        table: dict[str, Tensor] = {}
        for name, frames in painted.items():
            for suffix, moving in (("", True), ("_whole", False)):
                error_BT, count_BT = (x.sum(2) for x in squared_error(frames, clip, moving))
                db_BT = -10.0 * torch.log10((error_BT / count_BT).clamp_min(1e-8))
                for step in steps:
                    table[f"{name}_{step}{suffix}"] = db_BT[:, step - 1]
        columns = {key: column.tolist() for key, column in table.items()}
        rows += [{key: column[i] for key, column in columns.items()} for i in range(len(future))]
    return rows


@torch.no_grad()
def paired_futures(recipe: Recipe, clip_a: Clip, clip_b: Clip) -> Tensor:
    """(B, 2) bool. Clips A and B start from the same state and differ in instruction and future: does the z
    that is said for A predict A better than B's does, and conversely?"""
    recipe.eval()
    assert bool((clip_a.frames_BTVCHW[:, 0] == clip_b.frames_BTVCHW[:, 0]).all()), "futures of one state"
    z_a, z_b = recipe.encoder.infer(clip_a)[0], recipe.encoder.infer(clip_b)[0]
    painted_a, painted_b = predict(recipe, clip_a, z_a), predict(recipe, clip_a, z_b)
    target_a, target_b = (to_unit(clip.frames_BTVCHW[:, 1:]) for clip in (clip_a, clip_b))
    # The pixels where the two futures differ are the only ones that can tell.
    tells = ((target_a - target_b).abs().amax(3, keepdim=True) > THRESHOLD).float()

    def error(painted: Tensor, target: Tensor) -> Tensor:
        return ((painted - target).square() * tells).sum((1, 2, 3, 4, 5))

    right_a = error(painted_a, target_a) < error(painted_b, target_a)
    right_b = error(painted_b, target_b) < error(painted_a, target_b)
    return torch.stack([right_a, right_b], dim=1)
