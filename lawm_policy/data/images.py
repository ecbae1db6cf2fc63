"""Pictures that a dataset keeps in its tables, one a row, as LeRobot writes them where it makes no video."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm_policy.data.video import Reducer, VideoError, why


def read_images(path: Path, key: str, index: int, size: int | None = None) -> np.ndarray:
    """(T, H, W, 3) uint8, those of one episode in one file, in order."""
    try:
        table = pq.read_table(path, columns=[key], filters=[("episode_index", "=", index)])
        reduce = Reducer(size)
        return np.stack([reduce(_decoded(data)) for data in _contents(table.column(key))])
    except (pa.ArrowException, av.FFmpegError, OSError, ValueError, LookupError) as error:
        raise VideoError(f"{path.name}, {key} of episode {index}: {why(error).splitlines()[0]}") from error


def _contents(column: pa.ChunkedArray) -> Iterator[bytes]:
    for row in column:
        value: Any = row.as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"a picture that lies elsewhere ({value})")
        yield data


def _decoded(data: bytes) -> av.VideoFrame:
    with av.open(io.BytesIO(data), "r") as picture:
        return next(picture.decode(video=0))
