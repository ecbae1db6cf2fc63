"""Datasets that LeRobot wrote, with our camera names, one size and a robot card.

Our stores have LeRobot's layout, so its datasets can be used as they are, where their cameras are video; what
is imported is also turned, made smaller, made video, and known to be of a certain robot.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from lawm_policy.data.store import Episode, EpisodeStore
from lawm_policy.data.store_writer import EpisodeShape, end_if_full, stage
from lawm_policy.sim.libero_robot import HAND, panda_card
from lawm_policy.types import UserError

UNREADABLE = (UserError, av.FFmpegError, pa.ArrowException, LookupError, ValueError, MemoryError)


@dataclass(frozen=True)
class StoredEpisode:
    """One episode of another store, not read yet."""

    source: str  # its identity
    store: Path
    index: int
    text: str
    task: str
    embodiment: str
    split: str | None  # None: the dataset leaves it to us
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
    episodes = []
    seen: Counter[str] = Counter()
    for e in store.episodes:
        content = _content(store, e)
        seen[content] += 1
        episodes.append(
            StoredEpisode(
                source=f"lerobot:{content}" + (f":{seen[content]}" if seen[content] > 1 else ""),
                store=root,
                index=e.index,
                text=e.text,
                task=e.task,
                embodiment=embodiment or e.embodiment,
                split=store.rows[e.index].get("lawm/split"),
                cameras=tuple((ours, theirs) for ours, theirs in named.items() if theirs in e.cameras),
            )
        )
    return episodes


def own_card(store: EpisodeStore, cameras: list[str], rotate: bool) -> dict[str, Any] | None:
    """The dataset's robot card under its new names. Turned images are said in it, so that none are added to
    those that are not."""
    if not rotate:
        return store.robot and store.robot | {"cameras": cameras}
    # Without a card: commands as they are, not offsets from a state.
    named = {"state_names": store.state_names, "action_names": store.action_names, "relative_to": None}
    card = (store.robot or named) | {"cameras": cameras}
    if "flip" in card:
        return card | {"flip": "none" if card["flip"] == "rotate_180" else "rotate_180"}
    return card | {"turned": not card.get("turned", False)}


def libero_card(store: EpisodeStore, cameras: list[str], rotate: bool) -> dict[str, Any]:
    """LIBERO's robot card, for a dataset that has none and holds LIBERO's state and commands."""
    if store.robot:
        raise UserError(
            f"expected a dataset without a robot card at {store.path}, found one: leave out --robot libero"
        )
    found = tuple(len(names or ()) for names in (store.state_names, store.action_names))
    if found != (len(HAND), 7):
        raise UserError(
            f"expected LIBERO's state of 8 and commands of 7 numbers in {store.path}, "
            f"found {found[0]} and {found[1]}: leave out --robot libero"
        )
    grips = [np.empty(0, np.float32)]
    for e in store.episodes:
        with suppress(*UNREADABLE):  # listed when its turn comes
            grips.append(store.actions(e.index)[:, -1])
    grip_N = np.concatenate(grips)
    grip_N = grip_N[np.isfinite(grip_N)]
    # Datasets made by way of OpenVLA say 1 to open and 0 to close: no policy that learns that ever grasps.
    if len(grip_N) and not (-1.1 < grip_N.min() < -0.5 and grip_N.max() < 1.1):
        raise UserError(
            f"expected gripper commands of -1 (open) and +1 (closed) in {store.path}, found "
            f"{grip_N.min():g} to {grip_N.max():g}: write them so (1 - 2 x where 1 is open), or leave out "
            "--robot libero"
        )
    # LeRobot turned them already.
    card = panda_card("ee", cameras, "none" if rotate else "rotate_180")
    del card["joints"]
    return card | {"state_names": list(HAND)}


def _content(store: EpisodeStore, episode: Episode) -> str:
    """Names an episode wherever it lies: a dataset that has grown, or has moved, is known again."""
    digest = hashlib.sha256()
    facts = [episode.text, episode.length, store.rows[episode.index].get("lawm/sha256")]
    digest.update(json.dumps(facts).encode())
    if store.labelled:
        with suppress(*UNREADABLE):  # staging says so
            digest.update(store.state(episode.index).tobytes())
            digest.update(store.actions(episode.index).tobytes())
    return digest.hexdigest()[:16]


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
        facts |= {"split": episode.split, "source": episode.source}
        labels = (store.state(episode.index), store.actions(episode.index)) if shape.action_names else ()
        return stage(folder, shape, frames, facts, *labels), None
    except UNREADABLE as error:
        end_if_full(error, folder)
        shutil.rmtree(folder, ignore_errors=True)
        return 0, f"episode {episode.index}: {' '.join(str(error).split())}"


@lru_cache(maxsize=2)
def _opened(path: Path) -> EpisodeStore:
    return EpisodeStore.open(path, pictures=True)
