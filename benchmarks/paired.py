"""One policy played in several ways, each in pairs with the first: rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lawm_policy.policies.loading import load_policy
from lawm_policy.sim.protocol import is_no_episode, read, read_summary
from lawm_policy.stages.compare import compare
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.stages.evaluate import run as evaluate
from lawm_policy.types import UserError


def play(grid: EvaluateArgs, base: Path | None = None, than: str = "") -> dict[str, Any]:
    """Plays what is missing of `grid`; the row says what was won, and how much less `than` in `base`."""
    evaluate(replace(grid, resume=grid.out.exists()))
    if lost := next((r.error for r in read(grid.out) if r.error and not is_no_episode(r.error)), None):
        raise SystemExit(f"{grid.out}: {lost}: the row is not counted; --resume plays that episode again")
    told = read_summary(grid.out)["all"]
    row = {key: told[key] for key in ("successes", "episodes", "no_episode")}
    row |= {"success %": None, "95% interval": None}
    if told["episodes"]:
        row |= {"success %": 100 * told["rate"], "95% interval": (100 * told["low"], 100 * told["high"])}
    if base is not None and told["episodes"] and read_summary(base)["all"]["episodes"]:
        found = compare([base], [grid.out], across=True)["difference"]
        row |= {f"minus {than}, points": 100 * found["value"]}
        row |= {"its interval": (100 * found["low"], 100 * found["high"])}
    return row


def lacking(runs: Iterable[str]) -> dict[str, str]:
    """What each of these controls lacks -> its run."""
    found: dict[str, str] = {}
    for run in runs:
        cfg = load_policy(run).cfg
        name = "" if cfg.sees and cfg.hears else "no-language" if cfg.sees else "blind"
        if not name or name in found:
            said = f"a second one that is {name}" if name else "which sees and hears"
            raise UserError(
                f"expected in --lacking one that sees nothing and one that hears nothing, found {run}, "
                f"{said}: fine-tune one with --set policy.sees=false or --set policy.hears=false"
            )
        found[name] = run
    return found


def controls(grid: EvaluateArgs, runs: Mapping[str, str]) -> dict[str, Any]:
    """What those who lack something win in the same way, from the same starts: where it is as much, the row
    says nothing of eyes or ears."""
    row: dict[str, Any] = {}
    for name, run in runs.items():
        told = play(replace(grid, run=run, out=grid.out.with_name(f"{grid.out.name}-{name}")))
        row |= {f"{name}: success %": told["success %"], f"{name}: 95% interval": told["95% interval"]}
    return row
