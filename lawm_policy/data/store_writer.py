"""Crash-safe writing of episode stores.

An episode is first *staged*: its files are written to a folder of their own and sealed with
`episode.json`, which any process may do. It is *committed* by one synced line in the journal. `finish`
(on closing, or by `recover` after a crash) joins what was committed into the final files; each of its
steps can be cut off and done again. So kill -9 at any moment loses at most the episode being staged.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm_policy.data import layout
from lawm_policy.data.store_repair import automatic_split, digest, finish, group_name, recover
from lawm_policy.data.video import write_video
from lawm_policy.runs import read_record
from lawm_policy.types import NO_ROOM, UserError


class StoreLock:
    """An advisory lock on the folder itself: no file is left behind, and a dead process holds none."""

    def __init__(self, root: Path) -> None:
        self._handle = os.open(root, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise UserError(
                f"expected {root} to be at rest, found another process writing it: wait for it to end"
            ) from None

    def release(self) -> None:
        os.close(self._handle)


class StoreWriter:
    """Adds episodes to a new store, or with `append` to an existing one of the same shape.

    `cameras` maps names to (height, width), both even; `state_names` / `action_names` are absent for
    unlabelled video; `robot` is the robot card.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: int,
        cameras: Mapping[str, tuple[int, int]],
        state_names: tuple[str, ...] | list[str] | None = None,
        action_names: tuple[str, ...] | list[str] | None = None,
        robot: dict[str, Any] | None = None,
        append: bool = False,
    ) -> None:
        self.path = Path(path)
        self.fps = int(fps)
        if self.fps != fps or self.fps <= 0:
            raise UserError(f"expected a whole number of frames a second, found {fps}: resample first")
        self.cameras = {name: (int(size[0]), int(size[1])) for name, size in cameras.items()}
        for name, (height, width) in self.cameras.items():
            if height % 2 or width % 2:
                raise UserError(f"expected even image sizes, found {height}x{width} for camera {name}")
        if not self.cameras:
            raise UserError("expected at least one camera, found none")
        self.state_names = tuple(state_names) if state_names else None
        self.action_names = tuple(action_names) if action_names else None
        info = {
            "codebase_version": layout.VERSION,
            "robot_type": (robot or {}).get("embodiment"),
            "total_episodes": 0,
            "total_frames": 0,
            "total_tasks": 0,
            "chunks_size": layout.FILES_PER_CHUNK,
            "data_files_size_in_mb": layout.DATA_MB,
            "video_files_size_in_mb": layout.VIDEO_MB,
            "fps": self.fps,
            "splits": {},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH,
            "features": layout.features(self.cameras, self.fps, self.state_names, self.action_names),
        }
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"expected a folder at {self.path}, found a file")
        occupied = self.path.is_dir() and not _barely_begun(self.path)
        if occupied and not append:
            raise UserError(f"expected a new or empty folder, found {self.path} in use: choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = StoreLock(self.path)
        try:
            existing: list[dict[str, Any]] = []
            if occupied:
                self.recovery = recover(self.path)
                existing = self._require_same_shape(info, robot)
            else:
                self.recovery = None
                layout.write_json(self.path / layout.EXTRA, {"robot": robot})
                layout.write_json(self.path / layout.INFO, info)
            self._total = len(existing)
            self._groups: Counter[str] = Counter(
                group_name(e["lawm/embodiment"], e["lawm/task"]) for e in existing
            )
            self.sources = {e["lawm/source"] for e in existing}
            self.shape = EpisodeShape(self.fps, self.cameras, self.state_names, self.action_names)
            self._staged = 0
            self.session = self.path / layout.STAGED / uuid.uuid4().hex[:12]
            self.session.mkdir(parents=True)
            self._journal = (self.path / layout.JOURNAL).open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def _require_same_shape(self, info: dict[str, Any], robot: dict[str, Any] | None) -> list[dict[str, Any]]:
        found = read_record(self.path / layout.INFO, "use a new --out folder")
        extra = self.path / layout.EXTRA
        card = read_record(extra, "use a new --out folder").get("robot") if extra.exists() else None
        if not all(isinstance(part, dict) for part in (found.get("features"), card or {})):
            raise UserError(
                f"expected features and a robot in {self.path / 'meta'}, found something else: "
                "use a new --out folder"
            )
        if card != json.loads(json.dumps(robot)):
            ours, theirs = robot or {}, card or {}
            unlike = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
            raise UserError(
                f"expected episodes of the robot in {self.path}, found another ({', '.join(unlike)}): "
                "use a new --out folder"
            )
        for key in ("fps", "features"):
            if found.get(key) != info[key]:
                what = (
                    sorted(k for k in {*found[key], *info[key]} if found[key].get(k) != info[key].get(k))
                    if (key == "features")
                    else f"{found.get(key)} and {info[key]}"
                )
                raise UserError(
                    f"expected episodes like those in {self.path}, found another {key} ({what}): "
                    "use a new --out folder"
                )
        tables = sorted((self.path / layout.EPISODES).glob("*/*.parquet"))
        columns = ["lawm/embodiment", "lawm/task", "lawm/source"]
        return [row for table in tables for row in pq.read_table(table, columns=columns).to_pylist()]

    def add_episode(
        self,
        frames: Mapping[str, np.ndarray],
        state: np.ndarray | None = None,
        actions: np.ndarray | None = None,
        *,
        text: str = "",
        task: str = "",
        embodiment: str = "",
        split: str | None = None,
        source: str = "",
        timestamps: np.ndarray | None = None,
    ) -> int:
        """Stages and commits one episode; returns its index. `frames[camera]` is (T, H, W, 3) uint8.

        `actions[t]` is the command sent after `frames[...][t]` and `state[t]` were observed.
        """
        unknown = set(frames) - set(self.cameras)
        if unknown or not frames:
            raise UserError(f"expected frames of {sorted(self.cameras)}, found {sorted(frames)}")
        lengths = {name: len(value) for name, value in frames.items()}
        for name, value in (("state", state), ("actions", actions), ("timestamps", timestamps)):
            if value is not None:
                lengths[name] = len(value)
        length = next(iter(lengths.values()))
        if set(lengths.values()) != {length} or length == 0:
            raise UserError(f"expected one length above 0 for all of an episode, found {lengths}")
        if timestamps is not None:
            _check_rate(np.asarray(timestamps, dtype=np.float64), self.fps)
        for camera, images in frames.items():
            height, width = self.cameras[camera]
            if images.shape[1:] != (height, width, 3) or images.dtype != np.uint8:
                raise UserError(
                    f"expected {camera} frames of (T, {height}, {width}, 3) uint8, "
                    f"found {images.shape} {images.dtype}"
                )
        folder = self.staging_folder()
        facts = {"text": text, "task": task, "embodiment": embodiment, "split": split, "source": source}
        stage(folder, self.shape, frames, facts, state, actions)
        return self.commit(folder)

    def staging_folder(self) -> Path:
        """A new folder for one episode's files, for this process or another to fill and `seal`.

        Commit in the order of asking: after a crash, finished ones are salvaged in that order.
        """
        folder = self.session / f"{self._staged:08d}"
        self._staged += 1
        folder.mkdir()
        return folder

    def commit(self, folder: Path) -> int:
        """Commits a sealed episode. When this returns, no crash can lose it."""
        episode = json.loads((folder / "episode.json").read_text())
        index = self._total
        group = group_name(episode["embodiment"], episode["task"])
        if episode["split"] is None:
            episode["split"] = automatic_split(group, self._groups[group])
        line = {"index": index, "folder": str(folder.relative_to(self.path)), **episode}
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
        if index == 0:
            layout.sync(self.path / layout.WORK)
        self._groups[group] += 1
        self._total += 1
        self.sources.add(episode["source"])
        return index

    def close(self) -> None:
        """Joins the committed episodes into the final files and leaves a plain v3 folder."""
        self._journal.close()
        try:
            finish(self.path)
        finally:
            self._lock.release()

    def __len__(self) -> int:
        return self._total

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # as after a crash: opening the store recovers what was committed
            self._journal.close()
            self._lock.release()


def _barely_begun(root: Path) -> bool:
    """Empty, or cut off before the store's own description was complete."""
    names = {path.name for path in root.rglob("*") if path.is_file()}
    extra = Path(layout.EXTRA).name
    return names <= {layout.REQUEST, extra, f".{extra}.part", ".info.json.part"}


@dataclass(frozen=True)
class EpisodeShape:
    """What every episode of a store has."""

    fps: int
    cameras: dict[str, tuple[int, int]]
    state_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None


def stage(
    folder: Path,
    shape: EpisodeShape,
    frames: Mapping[str, np.ndarray],
    facts: dict[str, Any],
    state: np.ndarray | None = None,
    actions: np.ndarray | None = None,
) -> int:
    """Fills and seals a staging folder with an episode that is in memory; returns its length."""
    stats, length = {}, 0
    for camera, frames_THWC in frames.items():
        length = len(frames_THWC)
        write_video(folder / f"{camera}.mp4", frames_THWC, shape.fps)
        stats[camera] = image_stats(frames_THWC[:: max(1, length // 8)])
    seal(folder, shape, length=length, facts=facts, stats=stats, state=state, actions=actions)
    return length


def seal(
    folder: Path,
    shape: EpisodeShape,
    *,
    length: int,
    facts: dict[str, Any],
    stats: dict[str, Any],
    state: np.ndarray | None = None,
    actions: np.ndarray | None = None,
) -> None:
    """Completes a staged episode whose camera files are written.

    Absent cameras become black files (every episode of a v3 store has every video key) and are
    remembered as absent.
    """
    present = [camera for camera in shape.cameras if (folder / f"{camera}.mp4").exists()]
    for camera, (height, width) in shape.cameras.items():
        if camera not in present:
            black_THWC = np.broadcast_to(np.zeros((height, width, 3), np.uint8), (length, height, width, 3))
            write_video(folder / f"{camera}.mp4", black_THWC, shape.fps)
    columns: dict[str, pa.Array] = {}
    for key, names, value in (
        (layout.STATE, shape.state_names, state),
        (layout.ACTION, shape.action_names, actions),
    ):
        if (names is None) != (value is None):
            raise UserError(
                f"expected {key} {'in every episode' if names else 'in none'} of this store, found otherwise"
            )
        if names is not None and value is not None:
            columns[key] = _vectors(value, len(names), length, key)
    columns["timestamp"] = pa.array((np.arange(length) / shape.fps).astype(np.float32))
    pq.write_table(pa.table(columns), folder / "data.parquet")
    for path in folder.iterdir():
        layout.sync(path)
    sealed = {**facts, "length": length, "cameras": present, "stats": stats, "sha256": digest(folder)}
    layout.write_json(folder / "episode.json", sealed)
    layout.sync(folder.parent)


def end_if_full(error: Exception, folder: Path) -> None:
    """What has no room for one episode has none for the next: no fault of what is imported."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise OSError(error.errno, "no room on the disk", str(folder)) from None


def _vectors(value: np.ndarray, width: int, length: int, key: str) -> pa.Array:
    array = np.ascontiguousarray(value, dtype=np.float32)
    if array.shape != (length, width):
        raise UserError(f"expected {key} of shape ({length}, {width}), found {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"expected finite numbers in {key}, found {int((~np.isfinite(array)).sum())} others")
    flat = pa.array(array.reshape(-1))
    return flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)


def _check_rate(timestamps: np.ndarray, fps: int) -> None:
    drift = np.abs((timestamps - timestamps[0]) - np.arange(len(timestamps)) / fps).max()
    if drift > 0.5 / fps:
        raise UserError(
            f"expected frames at a constant {fps} Hz, found a drift of {drift:.3f} s: resample by timestamps"
        )


def image_stats(images_NHWC: np.ndarray) -> dict[str, Any]:
    """Sums from which the store's image statistics are made, channels in [0, 1]."""
    x = images_NHWC.reshape(-1, 3).astype(np.float64) / 255
    return {
        "sum": x.sum(0).tolist(),
        "square": (x * x).sum(0).tolist(),
        "min": x.min(0).tolist(),
        "max": x.max(0).tolist(),
        "pixels": len(x),
        "frames": len(images_NHWC),
    }
