"""One policy played in several ways, each in pairs with the first: rows of a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lawm_policy.sim.protocol import SUMMARY, read_summary
from lawm_policy.stages.compare import compare
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.stages.evaluate import run as evaluate


def play(grid: EvaluateArgs, base: Path | None = None, than: str = "") -> dict[str, Any]:
    """Plays what is missing of `grid`; the row says what was won, and how much less `than` in `base`."""
    evaluate(replace(grid, resume=(grid.out / SUMMARY).exists()))
    told = read_summary(grid.out)["all"]
    row = {key: told[key] for key in ("successes", "episodes", "errors")}
    row |= {"success %": None, "95% interval": None}
    if told["episodes"]:
        row |= {"success %": 100 * told["rate"], "95% interval": (100 * told["low"], 100 * told["high"])}
    if base is not None and told["episodes"] and read_summary(base)["all"]["episodes"]:
        found = compare([base], [grid.out], across=True)["difference"]
        row |= {f"minus {than}, points": 100 * found["value"]}
        row |= {"its interval": (100 * found["low"], 100 * found["high"])}
    return row
