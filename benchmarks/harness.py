"""What every benchmark leaves: `result.json` and a page, in one form (see README.md)."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lawm_policy.cli import parse
from lawm_policy.runs import hardware, versions, write_text
from lawm_policy.types import UserError


@dataclass(frozen=True)
class Target:
    """A goal such as ">= 98" or "<= 12", set before the run, and what was found."""

    name: str
    goal: str
    value: float | None
    interval: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        """None where there is no value yet."""
        if self.value is None or math.isnan(self.value):
            return None
        sign, number = re.fullmatch(r"(<=|>=|<|>)\s*([-+.\de]+).*", self.goal).groups()  # type: ignore[union-attr]
        bound = float(number)
        return {
            "<=": self.value <= bound,
            ">=": self.value >= bound,
            "<": self.value < bound,
            ">": self.value > bound,
        }[sign]


def interval_of_median(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median, from order statistics."""
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    half = 1.96 * math.sqrt(n) / 2 if confidence == 0.95 else math.nan
    low, high = max(int(math.floor(n / 2 - half)), 0), min(int(math.ceil(n / 2 + half)), n - 1)
    return float(ordered[low]), float(ordered[high])


def write_result(
    out: Path,
    *,
    question: str,
    seconds: float,
    seeds: Sequence[int],
    rows: Sequence[dict[str, Any]],
    targets: Sequence[Target] = (),
    notes: str = "",
    argv: Sequence[str] | None = None,
    machine: Mapping[str, Any] | None = None,
) -> None:
    """Writes result.json and page.md, prints the page. A missed target is printed as missed, and exits 0.
    `argv`: the options that make all of it, where this call's make a part. `machine`: where it was measured,
    if not here."""
    asked = sys.argv[1:] if argv is None else argv
    command = "python " + shlex.join(["benchmarks/" + Path(sys.argv[0]).name, *asked])
    result = {
        "question": question,
        "command": command,
        "versions": versions(),
        "hardware": dict(machine or hardware()),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "notes": notes,
    }
    judge_again(out, result, rows, targets)


def judge_again(
    out: Path, result: dict[str, Any], rows: Sequence[dict[str, Any]], targets: Sequence[Target]
) -> None:
    """The same measurement with these rows and targets."""
    out.mkdir(parents=True, exist_ok=True)
    judged = [asdict(target) | {"met": target.met} for target in targets]
    result = result | {"rows": list(rows), "targets": judged}
    write_text(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    page = render(result)
    write_text(out / "page.md", page)
    print(page)


def render(result: dict[str, Any]) -> str:
    lines = [f"# {result['question']}", "", f"`{result['command']}`, {result['seconds']} s", ""]
    if result["targets"]:
        lines += ["| target | goal | found | 95% interval | |", "|---|---|---|---|---|"]
        for t in result["targets"]:
            met = {True: "met", False: "**missed**", None: "not measured"}[t["met"]]
            lines.append(
                f"| {t['name']} | {t['goal']} | {show(t['value'])} | {show(t['interval'])} | {met} |"
            )
        lines.append("")
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    if columns:
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += [
            "| " + " | ".join(show(row.get(column)) for column in columns) + " |" for row in result["rows"]
        ]
        lines.append("")
    if result["notes"]:
        lines += [result["notes"], ""]
    hw = ", ".join(f"{key} {value}" for key, value in result["hardware"].items())
    return "\n".join([*lines, f"Hardware: {hw}.", ""])


def show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " to ".join(show(v) for v in value) if len(value) == 2 else ", ".join(show(v) for v in value)
    return str(value)


def libero_made_with() -> str:
    """The versions that decide LIBERO's numbers, and whether its pictures are its own."""
    from lawm_policy.sim import libero_assets

    versions = ", ".join(f"{name} {version}" for name, version in libero_assets.versions().items())
    return f"LIBERO: {versions}, assets {libero_assets.described()['state']}"


def answer(main: Callable[[Any], int | None], arguments: type) -> None:
    """Runs a benchmark; what whoever asked did wrong is one line and exit status 2."""
    try:
        args = parse(arguments, sys.argv[1:], prog=Path(sys.argv[0]).name)
        raise SystemExit(None if args is None else main(args))
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


class Journal:
    """What a campaign has done, a line of JSON a piece of work, in journal.jsonl beside its result (too long
    to be committed). It stays when all is done; `--resume` goes on from it, and a call without is refused.
    `of` says what the lines belong to (the hash of the code): others are not taken."""

    def __init__(self, out: Path, of: str, *, resume: bool) -> None:
        self._path, self._of = out / "journal.jsonl", of
        self.lines: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            return
        if not resume:
            raise UserError(
                f"expected no earlier work in {out}, found {self._path.name}: give --resume to keep it, or "
                "another --out"
            )
        whole = self._path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be torn
        write_text(self._path, "".join(line + "\n" for line in whole))
        self.lines = [json.loads(line) for line in whole]
        if others := {line["of"] for line in self.lines} - {of}:
            raise UserError(
                f"expected work of {of} in {self._path}, found {', '.join(sorted(others))}: "
                "remove it, or give another --out"
            )

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        found = [line | {"of": self._of} for line in lines]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in found))
            file.flush()
            os.fsync(file.fileno())
        self.lines += found
