"""Moments of labelled demonstrations: what was seen, and the commands that followed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from lawm_policy.data.cache import Request, open_frames
from lawm_policy.data.commands import joint_card, joint_commands
from lawm_policy.data.normalize import Normalization
from lawm_policy.data.sampling import check_images, copy_view, counter_rng, moving_commands, moving_span
from lawm_policy.data.store import Episode, EpisodeStore
from lawm_policy.types import Demo, UserError, within


@dataclass(frozen=True)
class DemoConfig:
    """What a labelled example is."""

    chunk: int = 6
    """Latents in a chunk."""
    hz: float = 5.0
    """Latents a second."""
    commands_per_latent: int = 4
    """Commands that one latent stands for; the store's rate must be `hz` times this."""
    size: int = 64
    """Pixels of an image's side."""
    cameras: tuple[str, ...] = ("front", "wrist")
    """Views, in order; the store must have each."""
    shift: int = 2
    """Random shift in pixels (training only)."""
    brightness: float = 0.0
    """Random brightness, as a fraction of the full range (training only)."""
    contrast: float = 0.0
    """Random contrast, as a fraction (training only)."""
    trim_still: bool = True
    """Leave out the motionless beginning and end of an episode (never its middle)."""
    command: Literal["stored", "joint"] = "stored"
    """joint: joint targets from hand commands, where the store says how the joints moved."""

    def __post_init__(self) -> None:
        within(self, chunk="[1, inf)", commands_per_latent="[1, inf)", hz="(0, inf)")
        check_images(self)


class DemoDataset(Dataset):
    """One split of a labelled store, or a nested subset of it: `demos_per_task=3` lies within 10 of the
    same `draw_seed`. Subsets are drawn from the training split only; validation is always whole."""

    def __init__(
        self,
        path: str | Path,
        config: DemoConfig,
        *,
        split: Literal["train", "val"] = "train",
        demos_per_task: int | None = None,
        draw_seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        if split not in ("train", "val"):
            raise UserError(f"expected split train or val, found {split!r}")
        self.config, self.split = config, split
        store = EpisodeStore.open(path)
        _require_labels(store, config)
        self.robot: dict[str, Any] | None = store.robot
        self.state_names, self.action_names = store.state_names or (), store.action_names or ()
        self.fingerprint = store.fingerprint
        chosen = [e for e in store.episodes if e.split == split]
        if demos_per_task is not None and split == "train":
            chosen = nested_subset(chosen, demos_per_task, draw_seed)
        if not chosen:
            raise UserError(
                f"expected demonstrations in split {split} of {path}, found none: record at least two of a "
                "task, of which one is held out"
            )
        self.episodes: tuple[Episode, ...] = tuple(chosen)
        self.tasks: tuple[str, ...] = tuple(sorted({e.group for e in chosen}))
        requests = [Request(store, camera, config.size, float(store.fps)) for camera in config.cameras]
        self._views = open_frames(requests, cache_dir)
        self._state_NP = np.concatenate([store.state(e.index) for e in chosen])
        actions = [store.actions(e.index) for e in chosen]
        if config.command == "joint" and (self.robot or {}).get("command") != "joint":
            self.robot = joint_card(self.robot, path)
            self.action_names = tuple(self.robot["action_names"])
            states = (store.state(e.index) for e in chosen)
            actions = [joint_commands(self.robot, *both) for both in zip(states, actions, strict=True)]
        self._actions_NA = np.concatenate(actions)
        lengths = np.array([e.length for e in chosen])
        self._end_D = np.cumsum(lengths)  # of each demonstration, in rows of the arrays above
        self._index_D = np.array([e.index for e in chosen])
        first_D = self._end_D - lengths
        moving = moving_commands(store, [e.index for e in chosen]) if config.trim_still else {}
        demo, row = [], []
        for d, e in enumerate(chosen):
            span = moving_span(moving[e.index]) if config.trim_still else (0, e.length - 1)
            if span is not None:
                row.append(first_D[d] + np.arange(span[0], span[1] + 1))
                demo.append(np.full(len(row[-1]), d))
        if not row:
            raise UserError(
                f"expected demonstrations that move in {path}, found {len(chosen)} that stand still"
            )
        self._demo_S, self._row_S = np.concatenate(demo), np.concatenate(row)
        self._first_D = first_D

    def __len__(self) -> int:
        return len(self._row_S)

    def __getitem__(self, index: int) -> Demo:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Demo:
        wanted = np.asarray(indices, dtype=np.int64)
        if ((wanted < 0) | (wanted >= len(self))).any():
            raise IndexError(f"expected moments below {len(self)}, found {wanted.min()} to {wanted.max()}")
        return self._gather(wanted, None)

    def batch(self, step: int, batch_size: int, seed: int, rows: slice | None = None) -> Demo:
        """The examples of one training step; `rows` fetches a part of them (one process's share)."""
        views = len(self.config.cameras)
        u_BN = counter_rng("demos", seed, step).random((batch_size, 1 + 4 * views))[rows or slice(None)]
        draws_BV4 = u_BN[:, 1:].reshape(-1, views, 4)
        picked = (u_BN[:, 0] * len(self)).astype(np.int64)
        return self._gather(picked, draws_BV4 if self.split == "train" else None)

    def _window(self, sample_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the commands that follow each sample, and whether they exist. Past the end the last
        command stands, masked."""
        commands = self.config.chunk * self.config.commands_per_latent
        rows_BN = self._row_S[sample_B, None] + np.arange(commands)
        end_B = self._end_D[self._demo_S[sample_B]][:, None]
        return np.minimum(rows_BN, end_B - 1), rows_BN < end_B

    def _gather(self, sample_B: np.ndarray, draws_BV4: np.ndarray | None) -> Demo:
        config = self.config
        batch, views, size = len(sample_B), len(config.cameras), config.size
        demo_B, row_B = self._demo_S[sample_B], self._row_S[sample_B]
        moment_B = row_B - self._first_D[demo_B]
        frames = np.zeros((batch, views, 3, size, size), np.uint8)
        mask_BV = np.zeros((batch, views), bool)
        for v, view in enumerate(self._views):
            first_B = view.first_E[self._index_D[demo_B]]
            here = np.flatnonzero(first_B >= 0)
            mask_BV[here, v] = True
            rows_J1 = (first_B[here] + moment_B[here])[:, None]
            draws = None if draws_BV4 is None else draws_BV4[:, v]
            copy_view(frames[:, None, v], view, rows_J1, here, draws, config)
        rows_BN, exists_BN = self._window(sample_B)
        shape = (batch, config.chunk, config.commands_per_latent)
        return Demo(
            frames_BVCHW=torch.from_numpy(frames),
            view_mask_BV=torch.from_numpy(mask_BV),
            state_BP=torch.from_numpy(self._state_NP[row_B]),
            actions_BKRA=torch.from_numpy(self._actions_NA[rows_BN].reshape(*shape, -1)),
            action_mask_BKR=torch.from_numpy(exists_BN.reshape(shape)),
            text=tuple(self.episodes[d].text for d in demo_B),
        )

    def statistics(self) -> Normalization:
        """Normalization from this dataset's own moments, and no others: labels not given are not used."""
        sample_S = np.arange(len(self))
        rows_SN, exists_SN = self._window(sample_S)
        return Normalization.fit(
            state_SP=self._state_NP[self._row_S],
            actions_SNA=self._actions_NA[rows_SN],
            exists_SN=exists_SN,
            relative_to=(self.robot or {}).get("relative_to"),
            limits=(self.robot or {}).get("limits"),
        )


def _require_labels(store: EpisodeStore, config: DemoConfig) -> None:
    if not store.labelled:
        raise UserError(
            f"expected demonstrations with states and actions in {store.path}, found video only: "
            "`lawm pretrain` takes videos, `lawm finetune` takes demonstrations"
        )
    missing = [camera for camera in config.cameras if camera not in store.cameras]
    if missing:
        raise UserError(
            f"expected cameras {', '.join(config.cameras)} in {store.path}, found "
            f"{', '.join(store.cameras)}: rename them by `lawm import lerobot --rename`, or choose "
            "policy.policy.cameras (recipe.policy.cameras in pretraining, where a policy begins with one)"
        )
    if abs(store.fps - config.hz * config.commands_per_latent) > 1e-6:
        raise UserError(
            f"expected commands at {config.commands_per_latent} x {config.hz:g} Hz in {store.path}, found "
            f"{store.fps} Hz: choose policy.controller.commands_per_latent whose product with data.hz is that"
        )


def nested_subset(episodes: Sequence[Episode], per_task: int, draw_seed: int) -> list[Episode]:
    """The first `per_task` of each task's seeded order, in store order: larger draws contain smaller ones."""
    if per_task < 1:
        raise UserError(f"expected at least 1 demonstration a task, found {per_task}")
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.group, []).append(episode)
    chosen: set[int] = set()
    for name, members in groups.items():
        if len(members) < per_task:
            raise UserError(
                f"expected at least {per_task} training demonstrations of {name!r}, found {len(members)}: "
                "collect more or ask for fewer"
            )
        step = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
        order = counter_rng("subset", draw_seed, step).permutation(len(members))
        chosen.update(members[i].index for i in order[:per_task])
    return [e for e in episodes if e.index in chosen]
