"""What studies share: arms, cells that are fine-tuned and played, and how cells become rows of a table."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from units import STOPPED, Units

from lawm_policy import stats
from lawm_policy.checkpoint import sha256_of
from lawm_policy.config import load_config
from lawm_policy.policies.loading import load_run
from lawm_policy.sim.protocol import SUMMARY, is_no_episode
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.stages.evaluate import run as evaluate
from lawm_policy.stages.finetune import FinetuneConfig, finetune
from lawm_policy.training import FitResult

Overrides = tuple[tuple[str, str], ...]
TRIALS = {  # of the rate of fine-tuning: the same number for every arm
    "scratch": ((("train.lr", "5e-4"),), (("train.lr", "1e-3"),), (("train.lr", "2e-3"),)),
    "pretrained": ((("pretrained_lr", "1.0"),), (("pretrained_lr", "0.3"),), (("pretrained_lr", "0.1"),)),
}
# Of frames and words alone: a labelled store's commands would tell where an episode's motion begins.
LABEL_FREE: Overrides = (("data.trim_still", "false"),)
TUNING_DRAW = 100  # a draw of demonstrations that the table never uses
FEWEST = 3  # seeds that an interval is given for: of two it says nothing


@dataclass(frozen=True)
class Arm:
    """One way to come to a policy. Arms share draws of demonstrations, initialisation, budget and states."""

    name: str
    says: str
    start: str = ""  # the pretraining that it starts from; "" is scratch
    settings_of: str = ""  # whose tuned settings it takes; "" is its own
    train: Literal["all", "controller", "head"] = "all"
    fresh: tuple[str, ...] = ()  # parts of the start that it does not take
    overrides: Overrides = ()
    ns: tuple[int, ...] = (10,)
    seeds: int = 3
    longer: float = 1.0  # times the steps of fine-tuning

    @property
    def trials(self) -> tuple[Overrides, ...]:
        return TRIALS["pretrained" if self.start else "scratch"]


@dataclass(frozen=True)
class Campaign(Units, ABC):
    """What a study trains and plays, cell by cell. Data and pretraining are its subclass's."""

    @abstractmethod
    def pretraining(self, name: str) -> Path:
        """The run folder of a pretraining, made where it is missing."""

    # Cells.

    def fit(self, name: str, arm: Arm, demos: Path, settings: Overrides, n: int | None, draw: int) -> Fitted:
        """Fine-tunes one cell; draw and seed of initialisation are one number."""
        run = self.work / "cells" / name
        overrides = (*settings, *arm.overrides, ("train.seed", str(draw)))
        cfg = load_config("default", FinetuneConfig, overrides, stage="finetune")
        if arm.longer > 1:
            cfg = replace(cfg, train=replace(cfg.train, steps=round(arm.longer * cfg.train.steps)))
        fitted = to_its_end(
            finetune(
                cfg,
                demos,
                run,
                init=self.pretraining(arm.start) if arm.start else None,
                demos=n,
                draw=draw,
                train=arm.train,
                fresh=arm.fresh,
                resume=run.exists(),
            )
        )
        told = {
            "held_out_loss": fitted.best_metric,
            "best_step": fitted.best_step,
            "steps": fitted.step,
            "fit_seconds": round(fitted.seconds, 1),
            "held_out": held_out(run),
            "start": weights_hash(self.pretraining(arm.start)) if arm.start else None,
            "begun_by": json.loads((run / "versions.json").read_text())["commit"],
        }
        return Fitted(run, told)

    def choose(self, arm: Arm, names: Sequence[str]) -> Overrides:
        """The best trial on validation states, by success; ties go to the earlier."""
        rates = [rate(self.result(name)) for name in names]
        if np.isnan(rates).any():
            raise SystemExit(
                f"{arm.name}: its settings are chosen by {', '.join(names)}, not all done: run those first"
            )
        return arm.trials[int(np.argmax(rates))]


@dataclass(frozen=True)
class Fitted:
    """A fine-tuned run and what its record says of it."""

    run: Path
    told: dict[str, Any]


def weights_hash(run: Path) -> str:
    """Of the weights that are played or begun from: a pretraining that was lost and made again may differ."""
    return sha256_of(load_run(run).folder / "model.safetensors")[:16]


def held_out(run: Path) -> dict[int, float]:
    """Step -> loss on demonstrations that it does not learn from."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["loss"] for row in lines if row["split"] == "val"}


def to_its_end(result: FitResult) -> FitResult:
    """A training that was told to stop is resumed another time, and is no result."""
    if result.stopped == "sigterm":
        raise SystemExit(STOPPED)
    return result


def played(grid: EvaluateArgs) -> dict[str, str]:
    """Task -> one character an initial state, in order: 1 success, 0 failure, and - where the state is no
    episode, which every arm finds alike."""
    evaluate(replace(grid, resume=grid.out.exists()))

    def mark(record: Mapping[str, Any]) -> str:
        error = record["error"] or ""
        if is_no_episode(error):
            return "-"
        if error:
            raise SystemExit(f"{grid.out.name}: {error}: the cell is not counted")
        return str(int(bool(record["success"])))

    if not json.loads((grid.out / SUMMARY).read_text(encoding="utf-8"))["complete"]:
        raise SystemExit(STOPPED)
    lines = (grid.out / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    tasks: dict[str, str] = {}
    for r in sorted(map(json.loads, lines), key=lambda r: (r["task"], r["init_state"])):
        tasks[r["task"]] = tasks.get(r["task"], "") + mark(r)
    return tasks


# Tables ----------------------------------------------------------------------------------------------


def rate(found: Mapping[str, Any] | None, wanted: Callable[[str], bool] = lambda task: True) -> float:
    """Share of successes over those tasks."""
    if found is None:
        return float("nan")
    rows = (row for task, row in found["successes"].items() if wanted(task))
    marks = [int(mark) for row in rows for mark in row if mark != "-"]
    return float(np.mean(marks)) if marks else float("nan")


def compared(there: Mapping[int, Any], base: Mapping[int, Any] | None) -> dict[str, Any]:
    """Seed -> result of an arm and of the arm that it is compared with, in pairs, as cells of a row."""
    rates = [100 * rate(found) for found in there.values()]
    gains = [100 * (rate(there[s]) - rate(b)) for s, b in (base or {}).items() if s in there]
    gain = stats.seed_difference(gains) if gains else None
    return {
        "seeds": len(there),
        "mean": float(np.mean(rates)),
        "interval": finite(stats.seed_difference(rates)) if len(rates) >= FEWEST else None,
        "minus_scratch": None if gain is None else gain.value,
        "minus_scratch_interval": None if gain is None or len(gains) < FEWEST else finite(gain),
        "over_seeds_and_states": over_seeds_and_states(there, base or {}) if len(gains) > FEWEST else None,
        "rates": [round(r, 1) for r in rates],
    }


def over_seeds_and_states(there: Mapping[int, Any], base: Mapping[int, Any]) -> tuple[float, float]:
    """The interval of the difference, in points, when initial states are drawn anew as well: all seeds play
    the same ones, so that a t interval over seeds leaves their draw out. By bootstrap, 95%; of three seeds
    it would be too narrow."""
    rng, pairs = np.random.default_rng(0), [(there[s], base[s]) for s in base if s in there]
    gaps_STN = np.array([[gaps(a, b, task) for task in a["successes"]] for a, b in pairs])
    seeds, tasks, states = gaps_STN.shape
    drawn = []
    for _ in range(4000):
        seed_S, state_TN = rng.integers(seeds, size=seeds), rng.integers(states, size=(tasks, states))
        drawn.append(np.nanmean(gaps_STN[seed_S][:, np.arange(tasks)[:, None], state_TN]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


def gaps(found: Mapping[str, Any], base: Mapping[str, Any], task: str) -> list[float]:
    """State by state; NaN where a state is no episode."""
    both = zip(found["successes"][task], base["successes"][task], strict=True)
    return [float("nan") if "-" in (a, b) else int(a) - int(b) for a, b in both]


def finite(interval: stats.Interval) -> tuple[float, float] | None:
    return (interval.low, interval.high) if np.isfinite(interval.low) else None
