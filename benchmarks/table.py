"""Writes the tables of README.md and benchmarks/README.md again, from the committed results.

`make benchmarks` calls it; `--check` only says whether the tables are up to date.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import answer, show

from lawm_policy.types import UserError

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results -->", "<!-- /results -->"
STUDY, JUDGED_AT = "label_efficiency", 10  # the question of the project; demonstrations a task
LIBERO = "libero_study"
BLIND = "blind"
VERDICTS = {True: "met", False: "**missed**", None: "not measured"}


@dataclass(frozen=True)
class Args:
    """Rebuild the tables of results."""

    check: bool = False
    """Write nothing; exit 1 if a table is out of date."""


def main(args: Args) -> int:
    results = read_results(ROOT / "benchmarks" / "results")
    study = {name: result for name, result in results.items() if name == STUDY}
    contents = {
        "benchmarks/README.md": [targets(results, "results")],
        "README.md": [
            label_efficiency(study),
            libero(results.get(LIBERO, {"rows": []})["rows"]),
            summary(results, "benchmarks/results"),
            tally(results, listed()),
        ],
    }
    stale = []
    for document, tables in contents.items():
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
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
    results = {
        path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))
    }
    for name, result in results.items():
        if "--quick" in result["command"].split():
            raise UserError(f"expected a whole run in {folder / name}, found one with --quick: run it whole")
    return results


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


def summary(results: dict[str, dict[str, Any]], folder: str) -> str:
    """One line a benchmark that was run: what it asks, its first target, how many were met."""
    lines = []
    for name, result in results.items():
        asked = result["targets"]
        if first := next((t for t in asked if t["met"] is not None), None):
            met = sum(t["met"] is True for t in asked)
            told = f"{first['name']}: {found(first)}, goal {first['goal']}"
            lines.append(
                line(
                    f"[{name}]({folder}/{name}/page.md)",
                    result["question"],
                    told,
                    f"{met} of {len(asked)}",
                    result["hardware"]["cpu"],
                )
            )
    return table(("benchmark", "question", "first of its targets (95% interval)", "met", "processor"), lines)


def label_efficiency(results: dict[str, dict[str, Any]]) -> str:
    """Success of each arm by the number of demonstrations, and its gain where pretraining is judged. Of the
    controls, which have fewer seeds, the blind policy alone: the study's page has the others."""
    measured = [row for result in results.values() for row in result["rows"] if row["seeds"]]
    most = max((row["seeds"] for row in measured), default=0)
    arms = [row["arm"] for row in measured if row["seeds"] == most or row["arm"] == BLIND]
    cells = {(row["arm"], row["n"]): row for row in measured if row["arm"] in arms}
    numbers = sorted({n for _, n in cells})
    lines = []
    for arm in dict.fromkeys(arm for arm, _ in cells):
        at = [cells.get((arm, n)) for n in numbers]
        judged = cells.get((arm, JUDGED_AT)) or {"minus_scratch": None}
        gain = judged["minus_scratch"]
        lines.append(
            line(
                f"{arm}: {next(row['says'] for row in at if row)}",
                *("" if row is None else percent(row) for row in at),
                "" if gain is None else f"{gain:+.1f}{span(judged['minus_scratch_interval'])}",
            )
        )
    first, *others = numbers or [0]
    columns = (
        "success (95% interval over seeds)",
        f"n = {first} demonstrations a task",
        *(f"n = {n}" for n in others),
    )
    return table((*columns, f"minus scratch with the same seeds, n = {JUDGED_AT}"), lines)


def libero(rows: Sequence[dict[str, Any]]) -> str:
    """One line a suite, number of demonstrations and kind of starts; one column an arm. Of what was judged:
    the pilot's rows, on validation states, are the page's."""
    measured = [row for row in rows if "mean" in row and "made with" in row]
    arms = list(dict.fromkeys(row["arm"] for row in measured))
    lines = []
    for cell in dict.fromkeys((row["suite"], row["n"], row["start"]) for row in measured):
        there = {row["arm"]: row for row in measured if (row["suite"], row["n"], row["start"]) == cell}
        best = next((row for row in there.values() if row.get("minus_scratch") is not None), None)
        gain = "" if best is None else f"{best['arm']} {best['minus_scratch']:+.1f}"
        gain += "" if best is None else span(best["minus_scratch_interval"])
        verdict = next(iter(there.values()))["verdict"]
        shown = (percent(there[arm]) if arm in there else "not run" for arm in arms)
        lines.append(line("{}, n = {}, {} starts".format(*cell), *shown, gain, verdict))
    made_with = "; ".join(sorted({row["made with"] for row in measured}))
    columns = (f"LIBERO success (95% interval), `lawm+lite`, {made_with}", *arms, "gain over scratch")
    return table((*columns, "does it show anything"), lines)


def percent(row: dict[str, Any]) -> str:
    seeds = "seed" if row["seeds"] == 1 else "seeds"
    return f"{row['mean']:.1f}%{span(row['interval'])}, {row['seeds']} {seeds}"


def span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.1f} to {interval[1]:.1f})"


def tally(results: dict[str, dict[str, Any]], every: Iterable[str] = ()) -> str:
    """How many targets were met, which were not, and of what some are not measured yet."""
    asked = [(name, t) for name, result in results.items() for t in result["targets"]]
    if not asked:
        return ""
    measured = [(name, t) for name, t in asked if t["met"] is not None]
    met = sum(t["met"] for _, t in measured)
    told = [f"{met} of {len(measured)} targets of [all benchmarks](benchmarks/README.md) were met"]
    if missed := [f"{name}: {t['name']}" for name, t in measured if not t["met"]]:
        told.append(f"Missed: {'; '.join(missed)}")
    if left := Counter(name for name, t in asked if t["met"] is None):
        told.append(f"Not measured yet: {', '.join(f'{k} of {name}' for name, k in left.items())}")
    if none := [name for name in every if name not in results]:
        told.append(f"Not run yet: {', '.join(none)}")
    if early := [name for name, r in results.items() if r["versions"]["commit"].endswith("+")]:
        told.append(f"Measured on code before it was committed: {', '.join(early)}")
    return ". ".join(told) + "."


def listed() -> list[str]:
    """The benchmarks that there are, by the list in their README."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)\.py` \|", text, re.MULTILINE)


def found(target: dict[str, Any]) -> str:
    return show(target["value"]) + (f" ({show(target['interval'])})" if target["interval"] else "")


def table(columns: Sequence[str], lines: Sequence[str]) -> str:
    return "\n".join([line(*columns), line(*["---"] * len(columns)), *lines]) if lines else ""


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    answer(main, Args)
