"""Clips at the latent rate, drawn from weighted mixtures of stores.

A batch is a pure function of (step, batch size, seed): a resumed run sees what an uninterrupted one
would have seen, and the first rows of a larger batch are those of a smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from lawm_policy.data.cache import CachedFrames, Request, open_frames
from lawm_policy.data.demos import DemoConfig, DemoDataset
from lawm_policy.data.sampling import (
    STILL_GREY_LEVELS,
    check_images,
    copy_view,
    counter_rng,
    moving_commands,
    moving_span,
)
from lawm_policy.data.store import Episode, EpisodeStore
from lawm_policy.types import Clip, UserError, within

__all__ = ["ClipConfig", "ClipDataset", "DemoConfig", "DemoDataset"]

Paths = str | Path | Sequence[str | Path | tuple[str | Path, float]]


@dataclass(frozen=True)
class ClipConfig:
    """What a clip is."""

    length: int = 7
    """Frames in a clip: the present one and 6 to predict."""
    hz: float = 5.0
    """Frames a second within a clip; videos are resampled to it by their timestamps."""
    size: int = 64
    """Pixels of an image's side."""
    cameras: tuple[str, ...] = ("front", "wrist")
    """Views, in order; one that a store lacks is black and masked."""
    shift: int = 2
    """Random shift in pixels (training only), one for all frames of a view of a clip."""
    brightness: float = 0.0
    """Random brightness, as a fraction of the full range (training only)."""
    contrast: float = 0.0
    """Random contrast, as a fraction (training only)."""
    early_seconds: float | None = None
    """Only clips that start within this many seconds of their episode's start."""
    caption: Literal["any", "required", "absent"] = "any"
    """Which episodes: all, those with a caption, those without."""
    trim_still: bool = True
    """Leave out the motionless beginning and end of an episode (never its middle)."""
    phases: int = 2
    """Starting points per clip period: 2 keeps decoded frames at twice `hz`."""

    def __post_init__(self) -> None:
        within(self, length="[1, inf)", hz="(0, inf)", phases="[1, inf)", early_seconds="[0, inf)")
        check_images(self)


@dataclass(frozen=True)
class _Part:
    """One store of the mixture: its frames and the clips that may start in it."""

    views: tuple[CachedFrames | None, ...]
    stride: int  # cached frames between two frames of a clip
    episode_S: np.ndarray  # of each possible start
    start_S: np.ndarray  # its cached frame within the episode
    text_E: tuple[str, ...]
    embodiment_E: np.ndarray


class ClipDataset(Dataset):
    """Clips of one split of one store, or of a mixture `[(path, weight), ...]`.

    `batch` draws at random; as a torch Dataset it enumerates every clip, without augmentation.
    """

    def __init__(
        self,
        paths: Paths,
        config: ClipConfig,
        *,
        split: Literal["train", "val"] = "train",
        cache_dir: str | Path | None = None,
    ) -> None:
        if split not in ("train", "val"):
            raise UserError(f"expected split train or val, found {split!r}")
        self.config, self.split = config, split
        pairs = _weighted(paths)
        stores = [EpisodeStore.open(path) for path, _ in pairs]
        for store in stores:
            if not set(config.cameras) & set(store.cameras):
                raise UserError(
                    f"expected a camera among {', '.join(config.cameras)} in {store.path}, "
                    f"found {', '.join(store.cameras)}: set the cameras to those of the stores"
                )
        self.embodiments: tuple[str, ...] = tuple(sorted({e.embodiment for s in stores for e in s.episodes}))
        self.fingerprints: dict[str, str] = {str(s.path): s.fingerprint for s in stores}
        requests, owners = [], []
        for i, store in enumerate(stores):
            rate = cached_rate(store, config)
            for v, camera in enumerate(config.cameras):
                if camera in store.cameras:
                    requests.append(Request(store, camera, config.size, rate))
                    owners.append((i, v))
        opened = dict(zip(owners, open_frames(requests, cache_dir), strict=True))
        self._parts = [
            self._part(store, tuple(opened.get((i, v)) for v in range(len(config.cameras))))
            for i, store in enumerate(stores)
        ]
        self.counts = [len(part.episode_S) for part in self._parts]
        for (path, _), count in zip(pairs, self.counts, strict=True):
            if not count:
                raise UserError(self._why_none(path))
        weights = np.array([weight for _, weight in pairs], dtype=np.float64)
        self._edges = np.cumsum(weights / weights.sum())
        self._ends = np.cumsum(self.counts)

    def _part(self, store: EpisodeStore, views: tuple[CachedFrames | None, ...]) -> _Part:
        config = self.config
        rate = cached_rate(store, config)
        stride = round(rate / config.hz)
        span = (config.length - 1) * stride
        present = [view for view in views if view is not None]
        counts = np.max([view.count_E for view in present], axis=0)
        chosen = [e for e in store.episodes if e.split == self.split and self._wanted(e) and counts[e.index]]
        commands = (
            moving_commands(store, [e.index for e in chosen]) if config.trim_still and store.labelled else {}
        )
        episodes, starts = [], []
        for e in chosen:
            first, last = 0, int(counts[e.index]) - 1
            if config.trim_still:
                if store.labelled:
                    kept = moving_span(commands[e.index])
                    kept = kept and (
                        int(kept[0] * rate / store.fps),
                        int(np.ceil(kept[1] * rate / store.fps)),
                    )
                else:
                    motion = [
                        v.motion_N[v.first_E[e.index] :][: last + 1]
                        for v in present
                        if v.first_E[e.index] >= 0
                    ]
                    kept = moving_span(np.max(motion, axis=0) > STILL_GREY_LEVELS)
                if kept is None:
                    continue
                first, last = kept[0], min(last, kept[1])
            latest = last - span
            if config.early_seconds is not None:
                latest = min(latest, first + int(config.early_seconds * rate))
            if latest >= first:
                starts.append(np.arange(first, latest + 1))
                episodes.append(np.full(latest + 1 - first, e.index))
        empty = [np.zeros(0, np.int64)]
        return _Part(
            views=views,
            stride=stride,
            episode_S=np.concatenate(episodes or empty),
            start_S=np.concatenate(starts or empty),
            text_E=tuple(e.text for e in store.episodes),
            embodiment_E=np.array([self.embodiments.index(e.embodiment) for e in store.episodes]),
        )

    def _wanted(self, episode: Episode) -> bool:
        return self.config.caption == "any" or (self.config.caption == "required") == bool(episode.text)

    def _why_none(self, path: str | Path) -> str:
        store = EpisodeStore.open(path)
        of_split = [e for e in store.episodes if e.split == self.split]
        seconds = (self.config.length - 1) / self.config.hz
        return (
            f"expected clips of {seconds:.1f} s in split {self.split} of {path}, found none: "
            f"of {len(store.episodes)} episodes {len(of_split)} are in the split, "
            f"{sum(map(self._wanted, of_split))} of these pass caption={self.config.caption}, the longest "
            f"lasts {max((e.length / store.fps for e in of_split), default=0):.1f} s, "
            "and motionless beginnings and ends do not count"
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def episodes(self) -> np.ndarray:
        """The episode of each clip, counted through all stores."""
        firsts = np.cumsum([0, *(len(part.text_E) for part in self._parts)])
        numbers = [first + part.episode_S for first, part in zip(firsts, self._parts, strict=False)]
        return np.concatenate(numbers)

    def __getitem__(self, index: int) -> Clip:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Clip:
        wanted = np.asarray(indices, dtype=np.int64)
        if ((wanted < 0) | (wanted >= len(self))).any():
            raise IndexError(
                f"expected clip numbers below {len(self)}, found {wanted.min()} to {wanted.max()}"
            )
        part_B = np.searchsorted(self._ends, wanted, side="right")
        return self._gather(part_B, wanted - (self._ends[part_B] - np.asarray(self.counts)[part_B]), None)

    def batch(self, step: int, batch_size: int, seed: int, rows: slice | None = None) -> Clip:
        """The clips of one training step; `rows` fetches a part of them (one process's share)."""
        views = len(self.config.cameras)
        u_BN = counter_rng("clips", seed, step).random((batch_size, 2 + 4 * views))[rows or slice(None)]
        part_B = np.minimum(np.searchsorted(self._edges, u_BN[:, 0], side="right"), len(self._parts) - 1)
        start_B = (u_BN[:, 1] * np.asarray(self.counts)[part_B]).astype(np.int64)
        draws_BV4 = u_BN[:, 2:].reshape(-1, views, 4)
        return self._gather(part_B, start_B, draws_BV4 if self.split == "train" else None)

    def _gather(self, part_B: np.ndarray, start_B: np.ndarray, draws_BV4: np.ndarray | None) -> Clip:
        config = self.config
        size, views, length = config.size, len(config.cameras), len(part_B)
        frames = np.empty((length, config.length, views, 3, size, size), np.uint8)
        mask_BV = np.zeros((length, views), bool)
        text: list[str] = [""] * length
        embodiment_B = np.zeros(length, np.int64)
        for number in np.unique(part_B):
            part = self._parts[number]
            b_I = np.flatnonzero(part_B == number)
            episode_I = part.episode_S[start_B[b_I]]
            cached_IT = part.start_S[start_B[b_I], None] + np.arange(config.length) * part.stride
            embodiment_B[b_I] = part.embodiment_E[episode_I]
            for b, episode in zip(b_I, episode_I, strict=True):
                text[b] = part.text_E[episode]
            for v, view in enumerate(part.views):
                if view is None:
                    continue
                here = view.first_E[episode_I] >= 0
                mask_BV[b_I[here], v] = True
                rows_JT = view.first_E[episode_I[here], None] + cached_IT[here]
                draws = None if draws_BV4 is None else draws_BV4[:, v]
                copy_view(frames[:, :, v], view, rows_JT, b_I[here], draws, config)
        frames[~mask_BV[:, None, :].repeat(config.length, 1)] = 0
        return Clip(
            frames_BTVCHW=torch.from_numpy(frames),
            view_mask_BV=torch.from_numpy(mask_BV),
            text=tuple(text),
            embodiment_B=torch.from_numpy(embodiment_B),
        )


def cached_rate(store: EpisodeStore, config: ClipConfig) -> float:
    """The rate at which a store's frames are kept decoded: a whole multiple of the clips' rate."""
    if store.fps < config.hz:
        raise UserError(
            f"expected at least {config.hz:g} frames a second in {store.path}, found {store.fps}: lower hz"
        )
    if store.labelled and abs(store.fps / config.hz - round(store.fps / config.hz)) > 1e-6:
        raise UserError(
            f"expected commands at a whole multiple of the clips' {config.hz:g} Hz in {store.path}, "
            f"found {store.fps} Hz: choose another hz"
        )
    return config.hz * max(1, min(config.phases, int(store.fps / config.hz + 1e-6)))


def _weighted(paths: Paths) -> list[tuple[Path, float]]:
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    pairs = [(Path(p[0]), float(p[1])) if isinstance(p, tuple) else (Path(p), 1.0) for p in given]
    if not pairs or any(not weight > 0 for _, weight in pairs):
        raise UserError(f"expected stores with weights above 0, found {[(str(p), w) for p, w in pairs]}")
    return pairs
