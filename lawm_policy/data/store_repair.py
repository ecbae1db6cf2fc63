"""Bringing a store to rest: joining what was committed, salvaging or removing what was not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lawm_policy.data import layout
from lawm_policy.data.video import join_videos, same_encoding
from lawm_policy.runs import read_record
from lawm_policy.types import UserError

VAL_EVERY = 10


@dataclass(frozen=True)
class Recovery:
    """What an interrupted store was made of."""

    committed: int  # episodes in the journal: intact
    salvaged: int  # sealed but not yet in the journal: kept
    removed: int  # not sealed, or behind one that was not: gone

    def __str__(self) -> str:
        return (
            f"writing was interrupted: {self.committed} committed episodes are intact, "
            f"{self.salvaged} finished ones were salvaged, {self.removed} begun ones removed"
        )


def recover(root: Path) -> Recovery | None:
    """Brings an interrupted store to rest; None where nothing was interrupted. The caller holds the lock."""
    if not (root / layout.WORK).exists():
        return None
    lines = read_journal(root)
    known = {line["folder"] for line in lines}
    salvaged = removed = 0
    done = read_episodes(root)
    next_index = max([len(done), *(line["index"] + 1 for line in lines)])
    groups = Counter(group_name(e["lawm/embodiment"], e["lawm/task"]) for e in done)
    groups.update(group_name(e["embodiment"], e["task"]) for e in lines if e["index"] >= len(done))
    with (root / layout.JOURNAL).open("w", encoding="utf-8") as journal:
        for line in lines:
            journal.write(json.dumps(line) + "\n")
        in_order = True
        for folder in sorted((root / layout.STAGED).glob("*/*")):
            name = str(folder.relative_to(root))
            if name in known:
                continue
            # Behind an unfinished one even a finished one goes: resumed, a store has the order (hence the
            # split) of one that was never interrupted.
            episode = _sealed(folder) if in_order else None
            if episode is None:
                in_order = False
                shutil.rmtree(folder)
                removed += 1
                continue
            group = group_name(episode["embodiment"], episode["task"])
            episode["split"] = episode["split"] or automatic_split(group, groups[group])
            groups[group] += 1
            journal.write(json.dumps({"index": next_index, "folder": name, **episode}) + "\n")
            next_index += 1
            salvaged += 1
    layout.sync(root / layout.JOURNAL)
    finish(root)
    return Recovery(len(lines), salvaged, removed)


def _sealed(folder: Path) -> dict[str, Any] | None:
    seal = folder / "episode.json"
    if not seal.exists():
        return None
    try:
        episode: dict[str, Any] = json.loads(seal.read_text())
        return episode if digest(folder) == episode["sha256"] else None
    except (ValueError, LookupError, TypeError):  # damaged, as one whose videos are
        return None


def digest(folder: Path) -> str:
    """SHA-256 over a staged episode's data and videos."""
    found = hashlib.sha256()
    for path in [folder / "data.parquet", *sorted(folder.glob("*.mp4"))]:
        found.update(path.read_bytes())
    return found.hexdigest()


def group_name(embodiment: str, task: str) -> str:
    return f"{embodiment}/{task}"


def automatic_split(group: str, position: int) -> str:
    """One episode of every ten of a group is held out, at a place drawn by hash; of the first ten it is the
    second, so that two are enough to hold one out."""
    block = position // VAL_EVERY
    if block == 0:
        return "val" if position == 1 else "train"
    drawn = int.from_bytes(hashlib.sha256(f"{group}:{block}".encode()).digest()[:4], "little") % VAL_EVERY
    return "val" if position % VAL_EVERY == drawn else "train"


def read_journal(root: Path) -> list[dict[str, Any]]:
    """The committed episodes; a last line that was torn by a crash was not committed."""
    path = root / layout.JOURNAL
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1] if line]
    except ValueError as error:
        raise UserError(
            f"expected an episode in each line of {path}, found something else ({error}): "
            "make the store again"
        ) from None


def read_episodes(root: Path) -> list[dict[str, Any]]:
    tables = sorted((root / layout.EPISODES).glob("*/*.parquet"))
    return [row for table in tables for row in pq.read_table(table).to_pylist()]


def finish(root: Path) -> None:
    """Joins the journal's episodes into the final files. Cut off anywhere, it can be done again."""
    info = read_record(root / layout.INFO, "make the store again")
    done = read_episodes(root)
    pending = [line for line in read_journal(root) if line["index"] >= len(done)]
    _remove_unreferenced(root, info, done)
    if pending:
        texts = list(dict.fromkeys([e["tasks"][0] for e in done] + [line["text"] for line in pending]))
        rows = [_row(line, done, i, pending) for i, line in enumerate(pending)]
        _join_data(root, info, done, pending, rows, {text: i for i, text in enumerate(texts)})
        for key, feature in info["features"].items():
            if feature["dtype"] == "video":
                _join_camera(root, info["fps"], done, pending, rows, key)
        _write_rows(root, info, rows)
        done = read_episodes(root)
    _write_summaries(root, info, done)
    shutil.rmtree(root / layout.WORK, ignore_errors=False)
    layout.sync(root)


def _row(
    line: dict[str, Any], done: list[dict[str, Any]], i: int, pending: list[dict[str, Any]]
) -> dict[str, Any]:
    first = (done[-1]["dataset_to_index"] if done else 0) + sum(p["length"] for p in pending[:i])
    return {
        "episode_index": line["index"],
        "tasks": [line["text"]],
        "length": line["length"],
        "dataset_from_index": first,
        "dataset_to_index": first + line["length"],
        **{
            f"lawm/{name}": line[name]
            for name in ("task", "embodiment", "split", "source", "sha256", "cameras")
        },
        "lawm/stats": json.dumps(line["stats"]),
    }


def _next_number(done: list[dict[str, Any]], prefix: str) -> int:
    numbers = [e[f"{prefix}/chunk_index"] * layout.FILES_PER_CHUNK + e[f"{prefix}/file_index"] for e in done]
    return max(numbers, default=-1) + 1


def _placed(row: dict[str, Any], prefix: str, number: int) -> None:
    row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"] = divmod(number, layout.FILES_PER_CHUNK)


def _join_data(
    root: Path,
    info: dict[str, Any],
    done: list[dict[str, Any]],
    pending: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    task_index: dict[str, int],
) -> None:
    widths = [info["features"].get(key, {"shape": [0]})["shape"][0] for key in (layout.STATE, layout.ACTION)]
    schema = layout.data_schema(*widths)
    number = _next_number(done, "data")
    start = 0
    while start < len(pending):
        stop, size = start, 0
        tables: list[pa.Table] = []
        while stop < len(pending) and (not tables or size < layout.DATA_MB * 2**20 * 0.9):
            part = pq.read_table(root / pending[stop]["folder"] / "data.parquet")
            row, length = rows[stop], pending[stop]["length"]
            ones = np.ones(length, np.int64)
            extra = {
                "frame_index": np.arange(length),
                "episode_index": ones * row["episode_index"],
                "index": np.arange(row["dataset_from_index"], row["dataset_to_index"]),
                "task_index": ones * task_index[pending[stop]["text"]],
            }
            for name, values in extra.items():
                part = part.append_column(name, pa.array(values, pa.int64()))
            tables.append(part.select(schema.names).cast(schema))
            _placed(row, "data", number)
            size += part.nbytes
            stop += 1
        path = root / layout.numbered(layout.DATA_PATH, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        part_path = path.with_name(f".{path.name}.part")
        with pq.ParquetWriter(part_path, schema) as writer:
            for table in tables:  # one row group an episode: readers fetch one without the others
                writer.write_table(table, row_group_size=max(1, table.num_rows))
        layout.replace(part_path, path)
        start, number = stop, number + 1


def _join_camera(
    root: Path,
    fps: int,
    done: list[dict[str, Any]],
    pending: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    key: str,
) -> None:
    camera = key.removeprefix(layout.IMAGE_PREFIX)
    files = [root / line["folder"] / f"{camera}.mp4" for line in pending]
    number = _next_number(done, f"videos/{key}")
    start = 0
    while start < len(files):
        stop, size = start, 0
        while stop < len(files):
            size += files[stop].stat().st_size
            if stop > start and (
                size > layout.VIDEO_MB * 2**20 or not same_encoding(files[start], files[stop])
            ):
                break
            stop += 1
        path = root / layout.numbered(layout.VIDEO_PATH, number, video_key=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part_path = path.with_name(f".{path.name}.part")
        spans = join_videos(files[start:stop], part_path, fps)
        layout.replace(part_path, path)
        for row, (begin, end) in zip(rows[start:stop], spans, strict=True):
            assert round((end - begin) * fps) == row["length"], "a staged video has another length"
            _placed(row, f"videos/{key}", number)
            row[f"videos/{key}/from_timestamp"], row[f"videos/{key}/to_timestamp"] = begin, end
        start, number = stop, number + 1


def _write_rows(root: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The moment at which the joined files become the store's."""
    cameras = tuple(
        key.removeprefix(layout.IMAGE_PREFIX) for key, f in info["features"].items() if f["dtype"] == "video"
    )
    number = len(list((root / layout.EPISODES).glob("*/file-*.parquet")))
    for row in rows:
        _placed(row, "meta/episodes", number)
    path = root / layout.numbered(f"{layout.EPISODES}/{layout.CHUNK}.parquet", number)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    pq.write_table(pa.Table.from_pylist(rows, schema=layout.episode_schema(cameras)), part)
    layout.replace(part, path)


def _remove_unreferenced(root: Path, info: dict[str, Any], done: list[dict[str, Any]]) -> None:
    """Files of a `finish` that was cut off before their rows were written."""
    kept = set()
    for row in done:
        kept.add(
            info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        )
        for key, feature in info["features"].items():
            if feature["dtype"] == "video":
                where = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
                kept.add(info["video_path"].format(video_key=key, **where))
    for pattern in ("data/*/*", "videos/*/*/*", "meta/episodes/*/.*.part", "meta/.*.part"):
        for path in root.glob(pattern):
            if str(path.relative_to(root)) not in kept:
                path.unlink()


def _write_summaries(root: Path, info: dict[str, Any], done: list[dict[str, Any]]) -> None:
    """tasks, stats and totals: all derived from the episodes, so always safe to write again."""
    texts = list(dict.fromkeys(e["tasks"][0] for e in done))
    path = root / layout.TASKS
    part = path.with_name(f".{path.name}.part")
    pq.write_table(layout.tasks_table(texts), part)
    layout.replace(part, path)
    layout.write_json(root / layout.STATS, _statistics(root, info, done))
    totals = {
        "total_episodes": len(done),
        "total_frames": sum(e["length"] for e in done),
        "total_tasks": len(texts),
        "splits": {"train": f"0:{len(done)}"},
    }
    layout.write_json(root / layout.INFO, {**info, **totals})


def _statistics(root: Path, info: dict[str, Any], done: list[dict[str, Any]]) -> dict[str, Any]:
    stats: dict[str, Any] = {}
    files = sorted((root / "data").glob("*/*.parquet"))
    for key, feature in info["features"].items():
        if feature["dtype"] == "video":
            camera = key.removeprefix(layout.IMAGE_PREFIX)
            parts = [p[camera] for e in done if camera in (p := json.loads(e["lawm/stats"]))]
            if parts:
                stats[key] = _image_statistics(parts)
        elif files:
            width = feature["shape"][0]
            columns = [column_values(pq.read_table(file, columns=[key]), key, width) for file in files]
            stats[key] = _vector_statistics(np.concatenate(columns).astype(np.float64))
    return stats


def column_values(table: pa.Table, key: str, width: int) -> np.ndarray:
    """(N, width) of a column that holds lists (fixed or not), or plain numbers where width is 1."""
    column = table.column(key).combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return np.asarray(column).reshape(-1, width)


def _vector_statistics(x: np.ndarray) -> dict[str, Any]:
    quantiles = np.quantile(x, [0.01, 0.10, 0.50, 0.90, 0.99], axis=0)
    return {
        "min": x.min(0).tolist(),
        "max": x.max(0).tolist(),
        "mean": x.mean(0).tolist(),
        "std": x.std(0).tolist(),
        "count": [len(x)],
        **{name: q.tolist() for name, q in zip(("q01", "q10", "q50", "q90", "q99"), quantiles, strict=True)},
    }


def _image_statistics(parts: list[dict[str, Any]]) -> dict[str, Any]:
    pixels = sum(p["pixels"] for p in parts)
    mean = np.sum([p["sum"] for p in parts], axis=0) / pixels
    square = np.sum([p["square"] for p in parts], axis=0) / pixels
    values = {
        "min": np.min([p["min"] for p in parts], axis=0),
        "max": np.max([p["max"] for p in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(np.maximum(square - mean**2, 0)),
    }
    return {
        **{name: value.reshape(3, 1, 1).tolist() for name, value in values.items()},
        "count": [sum(p["frames"] for p in parts)],
    }
