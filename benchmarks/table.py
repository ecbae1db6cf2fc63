"""Writes the tables of README.md and benchmarks/README.md again, from the committed results.

`make benchmarks` calls it; `--check` only says whether the tables are up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from harness import show

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results -->", "<!-- /results -->"
VERDICTS = {True: "met", False: "**missed**", None: "not measured"}


@dataclass(frozen=True)
class Args:
    """Rebuild the tables of results."""

    check: bool = False
    """Write nothing; exit 1 if a table is out of date."""


def main(args: Args) -> int:
    results = read_results(ROOT / "benchmarks" / "results")
    stale = []
    for document, folder in (("benchmarks/README.md", "results"), ("README.md", "benchmarks/results")):
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
        tables = [label_efficiency(results)] if document == "README.md" else []
        tables.append(targets(results, folder))
        updated = between_markers(text, document, "\n\n".join(filter(None, tables)))
        if updated != text:
            stale.append(document)
            if not args.check:
                path.write_text(updated, encoding="utf-8")
    if stale:
        print(f"{'out of date' if args.check else 'written'}: {', '.join(stale)}")
    return 1 if stale and args.check else 0


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """name -> result, of every committed benchmark."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}


def between_markers(text: str, document: str, content: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN} ... {END} in {document}, found no such pair: put it in its place")
    return f"{before}{BEGIN}\n{content or 'No results are committed yet.'}\n{END}{after}"


def targets(results: dict[str, dict[str, Any]], folder: str) -> str:
    """One line a target that was set before its run."""
    lines = [
        line(f"[{name}]({folder}/{name}/page.md)", t["name"], t["goal"], found(t), VERDICTS[t["met"]])
        for name, result in results.items()
        for t in result["targets"]
    ]
    return table(("benchmark", "target", "goal", "found (95% interval)", ""), lines)


def label_efficiency(results: dict[str, dict[str, Any]]) -> str:
    """Success by arm and number of demonstrations, from rows with `arm`, `demos`, `success`, `interval`."""
    rows = [
        row
        for row in results.get("label_efficiency", {"rows": []})["rows"]
        if {"arm", "demos", "success"} <= row.keys() and row["success"] is not None
    ]
    cells = {(row["arm"], row["demos"]): row for row in rows}
    demos = sorted({d for _, d in cells})
    lines = [
        line(arm, *(percent(cells[arm, d]) if (arm, d) in cells else "" for d in demos))
        for arm in dict.fromkeys(arm for arm, _ in cells)
    ]
    return table(("success, tabletop", *(f"{d} demonstrations a task" for d in demos)), lines)


def percent(row: dict[str, Any]) -> str:
    value = f"{100 * row['success']:.1f}%"
    interval = row.get("interval")
    return value if interval is None else f"{value} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def found(target: dict[str, Any]) -> str:
    return show(target["value"]) + (f" ({show(target['interval'])})" if target["interval"] else "")


def table(columns: Sequence[str], lines: Sequence[str]) -> str:
    return "\n".join([line(*columns), line(*["---"] * len(columns)), *lines]) if lines else ""


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
