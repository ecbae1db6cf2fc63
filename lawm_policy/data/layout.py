"""The folder layout of an episode store: LeRobot's dataset v3, plus `meta/lawm.json` and `lawm/` columns.

meta/info.json  meta/stats.json  meta/tasks.parquet  meta/lawm.json
meta/episodes/chunk-000/file-000.parquet
data/chunk-000/file-000.parquet
videos/observation.images.<camera>/chunk-000/file-000.mp4
.lawm/journal.jsonl  .lawm/staged/...          only while somebody writes
collect.json                                    only of `lawm collect`
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_MB = 100
VIDEO_MB = 200
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EXTRA = "meta/lawm.json"
EPISODES = "meta/episodes"
CHUNK = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{CHUNK}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{CHUNK}.mp4"
IMAGE_PREFIX = "observation.images."
STATE = "observation.state"
ACTION = "action"
WORK = ".lawm"
JOURNAL = f"{WORK}/journal.jsonl"
STAGED = f"{WORK}/staged"
REQUEST = "collect.json"  # what `lawm collect` was asked for: written before all else


def numbered(template: str, number: int, **names: str) -> str:
    """The path of the file with running `number` (1000 files a chunk)."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return template.format(chunk_index=chunk, file_index=file, **names)


def features(
    cameras: dict[str, tuple[int, int]],
    fps: int,
    state_names: tuple[str, ...] | None,
    action_names: tuple[str, ...] | None,
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, names in ((STATE, state_names), (ACTION, action_names)):
        if names:
            found[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    for camera, (height, width) in cameras.items():
        found[IMAGE_PREFIX + camera] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
                "is_depth_map": False,
            },
        }
    for key, dtype in (
        ("timestamp", "float32"),
        ("frame_index", "int64"),
        ("episode_index", "int64"),
        ("index", "int64"),
        ("task_index", "int64"),
    ):
        found[key] = {"dtype": dtype, "shape": [1], "names": None}
    return found


def data_schema(state: int, action: int) -> pa.Schema:
    columns = []
    for key, width in ((STATE, state), (ACTION, action)):
        if width == 1:  # LeRobot reads a shape of [1] as a plain number
            columns.append((key, pa.float32()))
        elif width:
            columns.append((key, pa.list_(pa.float32(), width)))
    columns += [("timestamp", pa.float32())]
    columns += [(key, pa.int64()) for key in ("frame_index", "episode_index", "index", "task_index")]
    return pa.schema(columns)


def episode_schema(cameras: tuple[str, ...]) -> pa.Schema:
    columns: list[tuple[str, pa.DataType]] = [
        ("episode_index", pa.int64()),
        ("tasks", pa.list_(pa.string())),
        ("length", pa.int64()),
        ("data/chunk_index", pa.int64()),
        ("data/file_index", pa.int64()),
        ("dataset_from_index", pa.int64()),
        ("dataset_to_index", pa.int64()),
    ]
    for camera in cameras:
        key = f"videos/{IMAGE_PREFIX}{camera}"
        columns += [(f"{key}/chunk_index", pa.int64()), (f"{key}/file_index", pa.int64())]
        columns += [(f"{key}/from_timestamp", pa.float64()), (f"{key}/to_timestamp", pa.float64())]
    columns += [("meta/episodes/chunk_index", pa.int64()), ("meta/episodes/file_index", pa.int64())]
    columns += [(f"lawm/{name}", pa.string()) for name in ("task", "embodiment", "split", "source", "sha256")]
    columns += [("lawm/cameras", pa.list_(pa.string())), ("lawm/stats", pa.string())]
    return pa.schema(columns)


def tasks_table(texts: list[str]) -> pa.Table:
    """The table of instructions; pandas (hence LeRobot) must find `task` as its index."""
    pandas: dict[str, Any] = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    for column in pandas["columns"]:
        column["metadata"] = None
    table = pa.table(
        {"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts, pa.string())}
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def write_json(path: Path, value: Any) -> None:
    """Atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    replace(part, path)


def replace(part: Path, path: Path) -> None:
    """Moves a finished file to its name, and returns when both are on the disk."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
