"""What a report is made of: folders, read and checked, as values the page can show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lawm_policy.runs import WORLD, read_record
from lawm_policy.sim import protocol
from lawm_policy.sim.protocol import SUMMARY, VIDEO, Episode, Record
from lawm_policy.types import UserError

METRICS, RESULT, STRIPS, NOTE = "metrics.jsonl", "result.json", "strips", "summary.md"
PNG, MP4 = b"\x89PNG\r\n\x1a\n", b"ftyp"


@dataclass(frozen=True)
class Evaluation:
    """A folder that `lawm eval` wrote."""

    name: str
    folder: Path
    summary: dict[str, Any]
    records: list[Record]

    @property
    def films(self) -> dict[Episode, Path]:
        from lawm_policy.stages.evaluate import film_name

        there = {path.name: path for path in (self.folder / VIDEO).glob("*.mp4")}
        named = ((r.episode, film_name(r.episode)) for r in self.records)
        return {episode: there[name] for episode, name in named if name in there}


@dataclass(frozen=True)
class TrainingRun:
    """A folder that `lawm pretrain` or `lawm finetune` wrote."""

    name: str
    folder: Path
    versions: dict[str, Any]
    curves: dict[str, dict[str, list[tuple[float, float]]]]  # metric -> split -> (step, value)
    strips: list[Path]


@dataclass(frozen=True)
class Benchmark:
    """A folder with a result.json."""

    name: str
    folder: Path
    result: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.result["rows"]

    @property
    def targets(self) -> list[dict[str, Any]]:
        return self.result["targets"]


@dataclass
class Sources:
    evaluations: list[Evaluation] = field(default_factory=list)
    runs: list[TrainingRun] = field(default_factory=list)
    benchmarks: list[Benchmark] = field(default_factory=list)
    note: str = ""  # the author's own words, from a summary.md


def read(places: Sequence[str]) -> Sources:
    """Every folder that a place names: `DIR`, `name=DIR`, or a folder of such folders."""
    sources = Sources()
    folders = [found for place in places for found in _folders(place)]
    if not folders:
        raise UserError(
            "expected folders to report on, found none: name what `lawm eval` or `pretrain` wrote"
        )
    for name, folder in zip(_distinct(folders), (f for _, f in folders), strict=True):
        if (folder / SUMMARY).is_file():
            summary = protocol.read_summary(folder)
            sources.evaluations.append(Evaluation(name, folder, summary, protocol.read(folder)))
        elif (folder / RESULT).is_file():
            sources.benchmarks.append(Benchmark(name, folder, _result(folder / RESULT)))
        else:
            if (folder / WORLD / METRICS).is_file():
                sources.runs.append(_run(f"{name}, z and world model", folder / WORLD))
            sources.runs.append(_run(name, folder))
        if not sources.note and (folder / NOTE).is_file():
            sources.note = (folder / NOTE).read_text(encoding="utf-8", errors="replace").strip()
    for place in places:  # a note may lie beside the folders it speaks of
        beside = Path(place) / NOTE
        if not sources.note and beside.is_file():
            sources.note = beside.read_text(encoding="utf-8", errors="replace").strip()
    return sources


def embed(path: Path, signature: bytes) -> bytes:
    """A picture or a film, if it is what its name says."""
    content = path.read_bytes()
    if signature not in content[:16]:
        kind = "a PNG picture" if signature == PNG else "an MP4 film"
        raise UserError(f"expected {kind} in {path}, found something else: remove it")
    return content


def _folders(place: str) -> list[tuple[str, Path]]:
    name, equals, rest = place.partition("=")
    folder = Path(place)
    if equals and not folder.exists():
        folder = Path(rest)
    else:
        name = ""
    if not folder.is_dir():
        raise UserError(f"expected a folder, found nothing at {folder}: give the --out of an earlier command")
    if _reportable(folder):
        return [(name, folder)]
    inside = [(name, child) for child in sorted(folder.iterdir()) if child.is_dir() and _reportable(child)]
    if not inside:
        raise UserError(
            f"expected a run, an evaluation or a benchmark in {folder}, found no {METRICS}, {SUMMARY} "
            f"or {RESULT}: give the --out of an earlier command"
        )
    return inside


def _reportable(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SUMMARY, RESULT, METRICS))


def _distinct(folders: list[tuple[str, Path]]) -> list[str]:
    """The given name, else the folder's; with as many parents as it takes to tell them apart."""
    resolved = [folder.resolve() for _, folder in folders]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = [
            name or "/".join(path.parts[-depth:]) for (name, _), path in zip(folders, resolved, strict=True)
        ]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"expected each folder once, with a name of its own; found {', '.join(names)}")


def _result(path: Path) -> dict[str, Any]:
    result = read_record(path, "make it again")
    for key in ("rows", "targets"):
        listed = result.setdefault(key, [])
        if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
            raise UserError(f"expected a list of objects under {key!r} in {path}, found something else")
    return result


def _run(name: str, folder: Path) -> TrainingRun:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    *lines, _ = (folder / METRICS).read_bytes().split(b"\n")  # the last may be half written
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step, split = float(record["step"]), str(record.get("split", "train"))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"expected a record in {folder / METRICS} line {number}, found {line[:40]!r} ({error})"
            ) from None
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, {}).setdefault(split, []).append((step, float(value)))
    versions = folder / "versions.json"
    return TrainingRun(
        name,
        folder,
        read_record(versions, "make it again") if versions.is_file() else {},
        curves,
        sorted((folder / STRIPS).glob("*.png")),
    )
