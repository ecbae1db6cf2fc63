"""Reading episode stores: a LeRobot v3 dataset folder, written by us or by LeRobot."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm_policy.data import layout
from lawm_policy.data.images import read_images
from lawm_policy.data.store_repair import Recovery, automatic_split, column_values, group_name, recover
from lawm_policy.data.store_writer import StoreLock, StoreWriter
from lawm_policy.data.video import VideoError, read_frames
from lawm_policy.types import UserError

__all__ = ["Episode", "EpisodeStore", "StoreWriter"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episode:
    """What is known about one episode without reading it."""

    index: int
    length: int
    text: str  # instruction or caption; "" where there is none
    task: str
    embodiment: str
    split: str  # "train" or "val"
    source: str
    cameras: tuple[str, ...]  # those that were really there

    @property
    def group(self) -> str:
        """What label subsets count by: the task's name, else the instruction."""
        return self.task or self.text


class EpisodeStore:
    """An opened store. Use `EpisodeStore.open(path)`."""

    def __init__(
        self, path: Path, info: dict[str, Any], extra: dict[str, Any], rows: list[dict[str, Any]]
    ) -> None:
        self.path = path
        self.info = info
        self.fps: int = int(info["fps"])
        features = info["features"]
        self.cameras: dict[str, tuple[int, int]] = {
            key.removeprefix(layout.IMAGE_PREFIX): _height_and_width(f)
            for key, f in features.items()
            if f["dtype"] in ("video", "image")
        }
        self.pictures = tuple(key for key, f in features.items() if f["dtype"] == "image")  # in the tables
        self.state_names = _names(features.get(layout.STATE))
        self.action_names = _names(features.get(layout.ACTION))
        self.robot: dict[str, Any] | None = extra.get("robot")
        self.rows = rows
        self.episodes = _episodes(rows, tuple(self.cameras), info.get("robot_type"))
        self.recovery: Recovery | None = (
            None  # what an interrupted writing had left, if this opening found it
        )
        self._tables: dict[Path, pa.Table] = {}

    @classmethod
    def open(cls, path: str | Path, pictures: bool = False) -> EpisodeStore:
        """Opens a store; one whose writing was interrupted is first brought to rest, and that is said.
        `pictures`: cameras may be kept as single images, which only an import reads."""
        root = Path(path)
        info_path = root / layout.INFO
        if not info_path.exists():
            if not root.is_dir():
                found = "a file" if root.exists() else "nothing"
            else:
                found = "no meta/info.json" if any(root.iterdir()) else "an empty folder"
            raise UserError(
                f"expected an episode store at {root}, found {found}: give another folder, or make one "
                "with `lawm collect` or `lawm import`"
            )
        recovery = _bring_to_rest(root)
        try:
            info = json.loads(info_path.read_text())
            extra_path = root / layout.EXTRA
            extra = json.loads(extra_path.read_text()) if extra_path.exists() else {}
            tables = sorted((root / layout.EPISODES).glob("*/*.parquet"))
            rows = [row for table in tables for row in _read_rows(table)]
            version = info["codebase_version"]
            if not str(version).startswith("v3."):
                raise UserError(
                    f"expected a v3 dataset at {root}, found {version}: convert it with LeRobot's own script"
                )
            store = cls(root, info, extra, rows)
            if store.pictures and not pictures:
                raise UserError(
                    f"expected cameras as video at {root}, found single images for {store.pictures[0]}: "
                    "`lawm import lerobot` makes them video"
                )
            store.recovery = recovery
            store.check()
        except UserError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"expected a readable episode store at {root}, found damaged metadata ({what}): "
                f"see `lawm inspect {root}`"
            ) from error
        if not rows:
            raise UserError(f"expected episodes in {root}, found none: was its import interrupted at once?")
        return store

    def check(self) -> None:
        """Raises ValueError or LookupError where the metadata contradicts itself; reads no other file."""
        if self.fps <= 0:
            raise ValueError(f"fps is {self.fps}")
        if self.robot is not None and not isinstance(self.robot, dict):
            raise ValueError(f"{layout.EXTRA} has no robot card but {type(self.robot).__name__}")
        root = self.path.resolve()
        for position, episode in enumerate(self.episodes):
            if episode.index != position or episode.length < 1:
                raise ValueError(f"episode {position} is numbered {episode.index}, length {episode.length}")
            filmed = [camera for camera in self.cameras if not self._picture_key(camera)]
            files = [self.data_file(position), *(self.video_file(position, c)[0] for c in filmed)]
            if not all(path.resolve().is_relative_to(root) for path in files):
                raise ValueError(f"episode {position} lies outside the store")

    @property
    def labelled(self) -> bool:
        return self.state_names is not None and self.action_names is not None

    def state(self, index: int) -> np.ndarray:
        """(T, P) float32."""
        return self._column(index, layout.STATE, self.state_names)

    def actions(self, index: int) -> np.ndarray:
        """(T, A) float32; row t was sent after frame t and state t were observed."""
        return self._column(index, layout.ACTION, self.action_names)

    def timestamps(self, index: int) -> np.ndarray:
        """(T,) float64 seconds from the episode's start."""
        return self._column(index, "timestamp", ("timestamp",))[:, 0].astype(np.float64)

    def _column(self, index: int, key: str, names: tuple[str, ...] | None) -> np.ndarray:
        if names is None:
            raise UserError(f"expected {key} in {self.path}, found unlabelled video: use a labelled store")
        table = self._table(self.data_file(index))
        try:
            first, last = np.searchsorted(np.asarray(table.column("episode_index")), [index, index + 1])
            values = column_values(table.slice(first, last - first), key, len(names))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"expected {key} of {len(names)} numbers in {self.data_file(index)}, found otherwise "
                f"({' '.join(str(error).split())}): see `lawm inspect {self.path}`"
            ) from error
        if len(values) != self.episodes[index].length:
            raise UserError(
                f"expected {self.episodes[index].length} rows of episode {index} in "
                f"{self.data_file(index)}, found {len(values)}: see `lawm inspect {self.path}`"
            )
        return values.astype(np.float32) if key != "timestamp" else values

    def _table(self, path: Path) -> pa.Table:
        if path not in self._tables:
            self._tables.clear()  # one file at a time: episodes are read in order
            try:
                labels = [name for name in pq.read_schema(path).names if name not in self.pictures]
                self._tables[path] = pq.read_table(path, columns=labels)
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"expected readable rows in {path}, found {str(error).splitlines()[0]}: "
                    f"see `lawm inspect {self.path}`"
                ) from error
        return self._tables[path]

    def data_file(self, index: int) -> Path:
        row = self.rows[index]
        return self.path / self.info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )

    def video_file(self, index: int, camera: str) -> tuple[Path, float]:
        """The file that holds an episode's video, and the second at which it begins there."""
        key = layout.IMAGE_PREFIX + camera
        row = self.rows[index]
        path = self.info["video_path"].format(
            video_key=key,
            chunk_index=row[f"videos/{key}/chunk_index"],
            file_index=row[f"videos/{key}/file_index"],
        )
        return self.path / path, float(row[f"videos/{key}/from_timestamp"])

    def frames(self, index: int, camera: str, size: int | None = None) -> np.ndarray:
        """(T, H, W, 3) uint8, decoded now; with `size`, the centre square reduced to it."""
        if camera not in self.cameras:
            raise UserError(f"expected one of the cameras {sorted(self.cameras)}, found {camera!r}")
        length = self.episodes[index].length
        try:
            if key := self._picture_key(camera):
                frames = read_images(self.data_file(index), key, index, size)
                if len(frames) != length:
                    raise VideoError(f"{len(frames)} of {length} images of episode {index}")
                return frames
            path, start = self.video_file(index, camera)
            times = np.arange(length) / self.fps
            return read_frames(path, times, start=start, tolerance=0.5 / self.fps, size=size)
        except VideoError as error:
            raise UserError(f"{error}: see `lawm inspect {self.path}`") from error

    def _picture_key(self, camera: str) -> str | None:
        return next((key for key in self.pictures if key.removeprefix(layout.IMAGE_PREFIX) == camera), None)

    @cached_property
    def fingerprint(self) -> str:
        """Names the content: changes with any episode, caption or split; not with the folder, nor with how
        often its writing was interrupted."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.info["features"], self.fps, self.robot], sort_keys=True).encode())
        if all("lawm/sha256" in row for row in self.rows):
            facts = ("lawm/sha256", "lawm/split", "lawm/task", "lawm/embodiment", "lawm/cameras", "tasks")
            digest.update(json.dumps([[row[name] for name in facts] for row in self.rows]).encode())
        else:  # a foreign store does not name its episodes' content
            digest.update(json.dumps(self.rows, sort_keys=True).encode())
            digest.update(self.files_digest.encode())
        return digest.hexdigest()

    @cached_property
    def files_digest(self) -> str:
        """Names the files as they are now: their sizes and both of their ends."""
        digest = hashlib.sha256()
        for folder in ("data", "videos"):
            for path in sorted(p for p in (self.path / folder).rglob("*") if p.is_file()):
                size = path.stat().st_size
                digest.update(f"{path.relative_to(self.path)}:{size}".encode())
                with path.open("rb") as file:
                    digest.update(file.read(65536))
                    file.seek(max(0, size - 65536))
                    digest.update(file.read())
        return digest.hexdigest()


def _bring_to_rest(root: Path) -> Recovery | None:
    if not (root / layout.WORK).exists():
        return None
    lock = StoreLock(root)
    try:
        recovery = recover(root)
    finally:
        lock.release()
    if recovery is not None:
        logger.warning("%s: %s", root, recovery)
    return recovery


def _read_rows(table: Path) -> list[dict[str, Any]]:
    columns = [name for name in pq.read_schema(table).names if not name.startswith("stats/")]
    rows: list[dict[str, Any]] = pq.read_table(table, columns=columns).to_pylist()
    return rows


def _height_and_width(feature: dict[str, Any]) -> tuple[int, int]:
    """LeRobot's own videos have their channels last, others' datasets also first: the names tell."""
    shape, names = [int(n) for n in feature["shape"]], feature.get("names")
    if isinstance(names, (list, tuple)) and {"height", "width"} <= set(names):
        return shape[names.index("height")], shape[names.index("width")]
    first = len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)
    return (shape[1], shape[2]) if first else (shape[0], shape[1])


def _names(feature: dict[str, Any] | None) -> tuple[str, ...] | None:
    if feature is None:
        return None
    names = feature.get("names")
    if isinstance(names, dict):  # LeRobot also writes {"motors": [...]} or {"axes": [...]}
        names = next(iter(names.values()))
    width = int(np.prod(feature["shape"]))
    return tuple(names) if names and len(names) == width else tuple(f"d{i}" for i in range(width))


def _episodes(rows: list[dict[str, Any]], cameras: tuple[str, ...], robot_type: str | None) -> list[Episode]:
    episodes = []
    seen: dict[str, int] = {}
    for row in rows:
        text = row["tasks"][0] if row["tasks"] else ""
        task = row.get("lawm/task") or ""
        body = row.get("lawm/embodiment") or robot_type or ""
        group = group_name(body, task or text)
        position = seen.get(group, 0)
        seen[group] = position + 1
        episodes.append(
            Episode(
                index=int(row["episode_index"]),
                length=int(row["length"]),
                text=text,
                task=task,
                embodiment=body,
                split=row.get("lawm/split") or automatic_split(group, position),
                source=row.get("lawm/source") or "",
                cameras=tuple(row.get("lawm/cameras") or cameras),
            )
        )
    if not any(e.split == "val" for e in episodes):  # as where each has a sentence of its own: one group
        return [
            replace(e, split=row.get("lawm/split") or automatic_split("", position))
            for position, (e, row) in enumerate(zip(episodes, rows, strict=True))
        ]
    return episodes
