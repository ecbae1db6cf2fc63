"""What does one policy lose when the camera, the light, textures, the arm's start, the layout, the words or
what lies about change? Seven axes in three grades, each in pairs with the same starts unperturbed.

    python benchmarks/libero_robustness.py --run RUN --suite libero_goal@lawm+lite --out DIR [--resume]

The suite's words say how images are drawn and where episodes begin: as RUN learnt, or further out
(libero_goal@lawm+lite+wide:5). An axis or a grade that is left out stays open in the table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Target, answer, libero_made_with, write_result
from paired import controls, lacking, play
from table import line
from table import table as markdown

from lawm_policy.sim.libero_protocol import AXES, GRADES
from lawm_policy.sim.protocol import SUMMARY
from lawm_policy.sim.suites import libero_suite
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.types import UserError

THAN = "unperturbed"
LOST = f"minus {THAN}, points"
ENOUGH = 60.0  # percent unperturbed, from which on it is judged what is lost
SHADES = "█▓▒░·"  # of success: the fuller the better, in steps of a fifth of what is had unperturbed


@dataclass(frozen=True)
class Args:
    """Success of one policy under perturbations."""

    run: str
    """a fine-tuned run"""
    suite: str
    """libero_goal@lawm+lite, or another"""
    out: Path
    """where result.json and page.md go; the evaluations lie below it"""
    axes: str = ",".join(AXES)
    """which, separated by commas"""
    grades: str = ",".join(map(str, GRADES))
    """which, separated by commas"""
    episodes: int = 10
    """starts a task"""
    tasks: str = "all"
    """which"""
    lacking: tuple[str, ...] = ()
    """runs of the same that see nothing or hear nothing, played beside"""
    workers: int = 2
    """processes"""
    policy_factory: str = EvaluateArgs.policy_factory
    """"module:function" that makes a policy from RUN"""
    resume: bool = False
    """go on where this run stopped"""
    quick: bool = False
    """one task, one start"""


def main(args: Args) -> None:
    started = time.monotonic()
    if args.quick:
        args = replace(args, tasks="0", episodes=1)
    axes, grades = chosen(args.axes, AXES), chosen(args.grades, tuple(map(str, GRADES)))
    suite = args.suite if "@" in args.suite else f"{args.suite}@lawm"
    if found := libero_suite(suite).rules["libero"]["perturb"]:
        raise UserError(f"expected a suite that is not perturbed yet, found {found}: leave it out of --suite")
    base, without = args.out / "played" / THAN, lacking(args.lacking)
    if (base / SUMMARY).exists() and not args.resume:
        raise UserError(f"expected a new --out, found {base}: give --resume to go on")

    def played(name: str, way: str) -> EvaluateArgs:
        return EvaluateArgs(
            args.run,
            args.out / "played" / name,
            suite=way,
            tasks=args.tasks,
            episodes=args.episodes,
            workers=args.workers,
            policy_factory=args.policy_factory,
        )

    first = played(THAN, suite)
    rows = [{"axis": THAN, "grade": ""} | play(first) | controls(first, without)]
    for axis in AXES:
        for grade in GRADES:
            row: dict[str, Any] = {"axis": axis, "grade": grade}
            if axis in axes and str(grade) in grades:
                grid = played(f"{axis}-{grade}", f"{suite}+{axis}:{grade}")
                row |= play(grid, base, THAN) | controls(grid, without)
            rows.append(row)
    mild = [row[LOST] for row in rows if row["grade"] == 1 and LOST in row]
    # Who has little to lose, loses little.
    whole = len(mild) == len(AXES) and (rows[0]["success %"] or 0.0) >= ENOUGH
    write_result(
        args.out,
        question="What does one policy lose under perturbations?",
        seconds=time.monotonic() - started,
        seeds=[0],
        rows=rows,
        targets=[
            Target("grade 1, mean of the axes, points", ">= -10", float(np.mean(mild)) if whole else None),
            Target("grade 1, worst axis, points", ">= -30", min(mild) if whole else None),
        ],
        notes=heat(rows) + f"\n\nOne policy on {suite}, {args.episodes} starts a task, the same in each row, "
        f"in pairs. Judged where it has {ENOUGH:.0f}% unperturbed. Wilson's intervals, and those of paired "
        "differences, by which the map is shaded. Starts that are no episode "
        "(their premise does not hold) are in no pair. Rows without numbers were not run. "
        f"{libero_made_with()}.",
    )


def chosen(words: str, among: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(word.strip() for word in words.split(","))
    if strange := set(found) - set(among):
        raise UserError(f"expected some of {', '.join(among)}, found {', '.join(sorted(strange))}: choose")
    return found


def heat(rows: list[dict[str, Any]]) -> str:
    """Axes by grades: success, and its shade."""
    base = rows[0]["success %"] or 0.0
    cell = {(row["axis"], row["grade"]): row for row in rows}

    def shown(row: dict[str, Any]) -> str:
        if (value := row.get("success %")) is None:
            return "not run"
        lost = -row.get(LOST, 0.0) / base if base else 1.0
        step = min(max(int(lost * len(SHADES)), 0), len(SHADES) - 1)
        return f"{SHADES[step] * 3} {value:.0f}%"

    columns = (f"success ({THAN}: {base:.0f}%)", *(f"grade {grade}" for grade in GRADES))
    return markdown(columns, [line(axis, *(shown(cell[axis, grade]) for grade in GRADES)) for axis in AXES])


if __name__ == "__main__":
    answer(main, Args)
