"""Datasets that LeRobot wrote, with our camera names, one size and a robot card.

Our stores have LeRobot's layout, so its datasets can be used as they are, where their cameras are video; what
is imported is also turned, made smaller, made video, and known to be of a certain robot.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from lawm_policy.data.store import EpisodeStore
from lawm_policy.data.store_writer import EpisodeShape, stage
from lawm_policy.types import UserError


@dataclass(frozen=True)
class StoredEpisode:
    """One episode of another store, not read yet."""

    source: str  # its identity
    store: Path
    index: int
    text: str
    task: str
    embodiment: str
    cameras: tuple[tuple[str, str], ...]  # our name, its name


def find_episodes(root: Path, rename: dict[str, str], embodiment: str) -> list[StoredEpisode]:
    """All episodes of a dataset; `rename` maps its camera names to ours, the others keep theirs."""
    store = EpisodeStore.open(root, pictures=True)
    if strange := sorted(set(rename) - set(store.cameras)):
        raise UserError(
            f"expected cameras among {', '.join(store.cameras)} in {root}, found {', '.join(strange)}: "
            "correct --rename"
        )
    named = {rename.get(camera, camera): camera for camera in store.cameras}
    if len(named) < len(store.cameras):
        raise UserError(f"expected names that differ, found {rename} for {', '.join(store.cameras)}")
    return [
        StoredEpisode(
            source=f"{root.resolve().name}-{store.fingerprint[:8]}:{e.index}",
            store=root,
            index=e.index,
            text=e.text,
            task=e.task,
            embodiment=embodiment or e.embodiment,
            cameras=tuple((ours, theirs) for ours, theirs in named.items() if theirs in e.cameras),
        )
        for e in store.episodes
    ]


def stage_stored(
    folder: Path, episode: StoredEpisode, shape: EpisodeShape, rotate: bool
) -> tuple[int, str | None]:
    """Converts one episode into its staging folder: (frames, None), or (0, why it cannot be read)."""
    try:
        store = _opened(episode.store)
        frames = {}
        for ours, theirs in episode.cameras:
            frames_THWC = store.frames(episode.index, theirs, size=shape.cameras[ours][0])
            frames[ours] = np.ascontiguousarray(frames_THWC[:, ::-1, ::-1] if rotate else frames_THWC)
        facts: dict[str, Any] = {"text": episode.text, "task": episode.task, "embodiment": episode.embodiment}
        facts |= {"split": None, "source": episode.source}
        labels = (store.state(episode.index), store.actions(episode.index)) if shape.action_names else ()
        return stage(folder, shape, frames, facts, *labels), None
    except (UserError, av.FFmpegError, pa.ArrowException, LookupError, ValueError, MemoryError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return 0, " ".join(str(error).split())


@lru_cache(maxsize=2)
def _opened(path: Path) -> EpisodeStore:
    return EpisodeStore.open(path, pictures=True)
