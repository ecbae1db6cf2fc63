"""What clips and demonstrations share: counter-based randomness, trimming of still ends, augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lawm_policy.data.augment import jitter_tables, shift_view
from lawm_policy.data.cache import CachedFrames
from lawm_policy.data.store import EpisodeStore
from lawm_policy.types import UserError, each_once, within

STILL_GREY_LEVELS = 3.0  # a frame is still if no 8x8 block changed by more
STILL_FRACTION = 1e-3  # a dimension is still if it moved by less of its range in the store
STREAMS = {"clips": 1, "demos": 2, "subset": 3}


class Augmentation(Protocol):
    @property
    def shift(self) -> int: ...
    @property
    def brightness(self) -> float: ...
    @property
    def contrast(self) -> float: ...


class Images(Augmentation, Protocol):
    @property
    def size(self) -> int: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...


def check_images(config: Images) -> None:
    within(config, size="[8, inf)", shift="[0, inf)", brightness="[0, 1]", contrast="[0, 1]")
    if config.shift >= config.size // 2:
        raise UserError(f"expected shift below half of size, found {config.shift} of {config.size}: lower it")
    each_once(config, "cameras")


def counter_rng(stream: str, seed: int, step: int) -> np.random.Generator:
    """A generator that depends on its arguments alone: sample n of step s needs no history."""
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS[stream]], counter=[0, step, 0, 0]))


def copy_view(
    out_BTCHW: np.ndarray,
    cached: CachedFrames,
    rows_BT: np.ndarray,
    which_B: np.ndarray,
    draws_B4: np.ndarray | None,
    augment: Augmentation,
) -> None:
    """Copies one camera's frames `rows_BT` of the clips `which_B` into the batch, augmented where
    there are `draws_B4` (uniform numbers: dy, dx, brightness, contrast)."""
    frames_NCHW = cached.frames_NCHW
    length = rows_BT.shape[1]
    step = int(rows_BT[0, 1] - rows_BT[0, 0]) if length > 1 and len(rows_BT) else 1
    if draws_B4 is None:
        for rows_T, b in zip(rows_BT, which_B, strict=True):
            out_BTCHW[b] = frames_NCHW[rows_T[0] : rows_T[-1] + 1 : step]
        return
    shifts_B2 = np.floor(draws_B4[:, :2] * (2 * augment.shift + 1)).astype(np.int64) - augment.shift
    for rows_T, b in zip(rows_BT, which_B, strict=True):
        frames_TCHW = frames_NCHW[rows_T[0] : rows_T[-1] + 1 : step]
        shift_view(out_BTCHW[b], frames_TCHW, int(shifts_B2[b, 0]), int(shifts_B2[b, 1]))
    if augment.brightness or augment.contrast:
        signs_B2 = 2 * draws_B4[:, 2:] - 1
        tables = jitter_tables(
            signs_B2[:, 0] * augment.brightness * 255, 1 + signs_B2[:, 1] * augment.contrast
        )
        for b in which_B:
            out_BTCHW[b] = tables[b][out_BTCHW[b]]


def moving_span(moving_T: np.ndarray) -> tuple[int, int] | None:
    """First and last moment worth keeping, given which moments differ from the one before; None if none."""
    moments = np.flatnonzero(moving_T)
    return (max(0, int(moments[0]) - 1), int(moments[-1])) if len(moments) else None


def moving_commands(store: EpisodeStore, episodes: Sequence[int]) -> dict[int, np.ndarray]:
    """For each episode, whether state or command changed at each step, beyond a trace of its range."""
    values = {
        e: np.concatenate([store.state(e), store.actions(e)], axis=1).astype(np.float64) for e in episodes
    }
    if not values:
        return {}
    low = np.min([v.min(0) for v in values.values()], axis=0)
    high = np.max([v.max(0) for v in values.values()], axis=0)
    least = STILL_FRACTION * (high - low)
    found = {}
    for e, v in values.items():
        changed = np.zeros(len(v), bool)
        changed[1:] = (np.abs(np.diff(v, axis=0)) > least).any(axis=1)
        found[e] = changed
    return found
