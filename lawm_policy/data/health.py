"""What is damaged in a store: every check names the file or episode it found wanting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from lawm_policy.data.layout import ACTION, STATE, STATS
from lawm_policy.data.store import EpisodeStore
from lawm_policy.data.video import VideoError, decode_at, scan_packets
from lawm_policy.runs import read_record
from lawm_policy.types import UserError

DRIFT = 1e-4  # seconds: LeRobot refuses to train on more


def damage(store: EpisodeStore, full: bool = False) -> Iterator[str]:
    """One line for each thing found wrong. `full` decodes every frame instead of counting them."""
    yield from _totals(store)
    yield from _rows(store)
    for camera in store.cameras:
        yield from _videos(store, camera, full)


def _totals(store: EpisodeStore) -> Iterator[str]:
    counted = {
        "total_episodes": len(store.episodes),
        "total_frames": sum(e.length for e in store.episodes),
        "total_tasks": len({e.text for e in store.episodes}),
    }
    for name, number in counted.items():
        if store.info.get(name) != number:
            yield f"meta/info.json: {name} is {store.info.get(name)}, the episodes say {number}"
    yield from ranges(store)[1]
    if [e.index for e in store.episodes] != list(range(len(store.episodes))):
        yield "meta/episodes: episode numbers are not 0, 1, 2, ..."


def ranges(store: EpisodeStore) -> tuple[dict[str, dict[str, dict[str, float]]], list[str]]:
    """Least, greatest, mean and std of each number of state and action as the store tells them; and what of
    that cannot be read."""
    try:
        stats = read_record(store.path / STATS, "copy the store again, or make it again")
    except UserError as error:
        return {}, [f"{STATS}: {error}"]
    found, wrong = {}, []
    for key, names in ((STATE, store.state_names), (ACTION, store.action_names)):
        if names is None:
            continue
        try:
            found[key] = {
                name: {kind: float(np.ravel(stats[key][kind])[i]) for kind in ("min", "max", "mean", "std")}
                for i, name in enumerate(names)
            }
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            what = f"{type(error).__name__}: {error}"
            wrong.append(f"{STATS}: expected min, max, mean and std of {key}, found otherwise ({what})")
    return found, wrong


def _rows(store: EpisodeStore) -> Iterator[str]:
    refused: set[str] = set()
    for episode in store.episodes:
        where = str(store.data_file(episode.index).relative_to(store.path))
        if where in refused:
            continue
        try:
            moments = store.timestamps(episode.index)
            values = [(STATE, store.state(episode.index))] if store.state_names else []
            values += [(ACTION, store.actions(episode.index))] if store.action_names else []
        except UserError as error:
            yield f"{where}: {error}"
            refused.add(where)
            continue
        drift = np.abs(moments - np.arange(len(moments)) / store.fps).max()
        if drift > DRIFT + 1e-6 * moments.max():  # stored as float32
            yield f"{where}: timestamps of episode {episode.index} drift by {drift:.4f} s"
        for key, value in values:
            strange = int((~np.isfinite(value)).sum())
            if strange:
                yield f"{where}: {strange} numbers of {key} in episode {episode.index} are not finite"


def _videos(store: EpisodeStore, camera: str, full: bool) -> Iterator[str]:
    episodes = defaultdict(list)
    for episode in store.episodes:
        path, start = store.video_file(episode.index, camera)
        episodes[path].append((start, episode.length))
    for path, spans in episodes.items():
        where = path.relative_to(store.path)
        if not path.exists():
            yield f"{where}: missing"
            continue
        try:
            packets = scan_packets(path)
        except VideoError as error:
            yield f"{where}: {error}"
            continue
        expected = round((max(start + length / store.fps for start, length in spans)) * store.fps)
        if len(packets.times) < expected:
            yield f"{where}: {len(packets.times)} frames, the episodes say {expected}"
        if (packets.height, packets.width) != store.cameras[camera]:
            yield f"{where}: frames of {packets.height}x{packets.width}, meta/info.json says otherwise"
        for start, length in spans if full else spans[:1] + spans[-1:]:
            ticks = np.arange(length if full else 2) / store.fps
            try:
                for _ in decode_at(path, ticks, start=start, tolerance=0.5 / store.fps):
                    pass
            except VideoError as error:
                yield f"{where}: {error}"
                break
