"""What every benchmark leaves: `result.json` and a page, in one form (see README.md)."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
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
) -> None:
    """Writes result.json and page.md, prints the page. A missed target is printed as missed, and exits 0."""
    out.mkdir(parents=True, exist_ok=True)
    command = "python " + shlex.join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    judged = [asdict(target) | {"met": target.met} for target in targets]
    result = {
        "question": question,
        "command": command,
        "versions": versions(),
        "hardware": hardware(),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "rows": list(rows),
        "targets": judged,
        "notes": notes,
    }
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


def answer(main: Callable[[Any], int | None], arguments: type) -> None:
    """Runs a benchmark; what whoever asked did wrong is one line and exit status 2."""
    try:
        args = parse(arguments, sys.argv[1:], prog=Path(sys.argv[0]).name)
        raise SystemExit(None if args is None else main(args))
    except UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def read_journal(path: Path, code: str) -> list[dict[str, Any]]:
    """Lines of an earlier run of the same code; a last line that was torn by a crash is dropped."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    found = [json.loads(line) for line in whole]
    if any(line["code"] != code for line in found):
        raise UserError(f"expected episodes of code {code} in {path}, found others: give a new --out")
    return found
