"""How long does `lawm quickstart` take after the set-up, step by step?

    python benchmarks/quickstart_time.py --out benchmarks/results/quickstart_time [--story runs/quickstart]

The yardstick is in the goal: with the set-up, a newcomer looks at the report within 17 minutes. What the
toy run found is told beside it, whatever its sign; it is one run, on validation states.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import Target, answer, write_result

from lawm_policy.stages.quickstart import STATE
from lawm_policy.types import UserError


@dataclass(frozen=True)
class Args:
    """Time the quickstart."""

    out: Path
    """folder for result.json and page.md"""
    story: Path | None = None
    """where the quickstart goes, to look at its report; else it is thrown away"""
    quick: bool = False
    """the story at its smallest; teaches nothing"""


def main(args: Args) -> None:
    if args.story is not None and args.story.exists():
        raise UserError(f"expected a new folder, found {args.story}: it would go on there, and be no measure")
    with TemporaryDirectory() as folder:
        story = args.story or Path(folder) / "story"
        command = [sys.executable, "-m", "lawm_policy", "quickstart", "--out", str(story)]
        subprocess.run([*command, *(["--config", "debug"] if args.quick else [])], check=True)
        steps = json.loads((story / STATE).read_text())["steps"]
        rows = [{"step": name, "seconds": seconds} for name, seconds in steps.items()]
        rows += [
            {"step": f"success {name}", **rate(story / name)} for name in ("eval-scratch", "eval-finetuned")
        ]
    total = sum(steps.values())
    write_result(
        args.out,
        question="How long does the quickstart take, after the set-up?",
        seconds=total,
        seeds=[0],
        rows=rows,
        targets=[Target("lawm quickstart, minutes", "<= 12", total / 60)],
        notes=f"One run, load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores (2 of it this run's). Its "
        "success is that of a toy, one draw and one initialisation: label_efficiency is the study.",
    )


def rate(evaluation: Path) -> dict[str, Any]:
    found = [json.loads(line)["success"] for line in (evaluation / "episodes.jsonl").read_text().splitlines()]
    return {"episodes": len(found), "success_%": round(100 * sum(found) / len(found), 1)}


if __name__ == "__main__":
    answer(main, Args)
