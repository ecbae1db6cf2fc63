"""How much do unlabelled videos help, at few labelled demonstrations a task?

    python benchmarks/label_efficiency.py --plan                 the units, with predicted minutes
    python benchmarks/label_efficiency.py --out DIR [--resume] [--jobs 2] [--only 'n10*']
    python benchmarks/label_efficiency.py --out DIR --table      the table from the units there are

A seed is a draw of demonstrations and an initialisation, the same for every arm; arms are compared in pairs.
Learning rates are chosen on validation states with a draw of their own (units tune/...), the same number of
trials for every arm, before the seeds of the table are run on the test states."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from harness import Target, write_result
from study import FULL, QUICK, TUNING_DRAW, Arm, Study

from lawm_policy import stats
from lawm_policy.sim.tabletop_tasks import TASKS

TRIALS = {  # the same number for every arm
    "scratch": ((("train.lr", "5e-4"),), (("train.lr", "1e-3"),), (("train.lr", "2e-3"),)),
    "pretrained": ((("pretrained_lr", "1.0"),), (("pretrained_lr", "0.3"),), (("pretrained_lr", "0.1"),)),
}
RECIPES = ("lawm", "inverse-kl", "variational")
BEST = "inverse-kl"  # the recipe that stands for pretraining at other n and in the controls

ARMS = (
    Arm("scratch", "no pretraining", ns=(3, 10, 30), seeds=5),
    Arm("lawm", "the policy says z; the frame loss trains it", "lawm", seeds=5),
    Arm("inverse-kl", "an inverse model says z; the policy clones it", "inverse-kl", ns=(3, 10, 30), seeds=5),
    Arm("variational", "posterior and learned prior", "variational", seeds=5),
    Arm("supervised", "the same videos with their commands: the headroom", "supervised", seeds=5),
    Arm("blind", "no images", settings_of="scratch", overrides=(("policy.sees", "false"),)),
    Arm("no-language", "no instruction", settings_of="scratch", overrides=(("policy.hears", "false"),)),
    Arm("frames-permuted", "frames in random order", f"{BEST}+frames-permuted", BEST),
    Arm("captions-permuted", "captions of other clips", f"{BEST}+captions-permuted", BEST),
    Arm("auto-encoding", "the trunk reproduces what it sees", f"{BEST}+auto-encoding", BEST),
    Arm("hand-only", "videos of the hand alone", f"{BEST}+hand-only", BEST),
    Arm("random-frozen", "an untrained latent path, frozen", f"{BEST}+untrained", BEST, train="controller"),
    Arm("scratch-longer", "scratch, ten times as long", settings_of="scratch", ns=(10, 30), longer=10.0),
    Arm("frozen", "the latent path frozen, the controller trained", BEST, BEST, train="controller"),
    Arm("trunk-only", "only the trunk from pretraining", BEST, BEST, fresh=("policy.blocks", "policy.head")),
    Arm("path-only", "all but the trunk from pretraining", BEST, BEST, fresh=("policy.trunk",)),
)


@dataclass(frozen=True)
class Args:
    """Success against the number of labelled demonstrations, with and without unlabelled videos."""

    out: Path = Path("benchmarks/results/label_efficiency")
    """small results: one JSON a unit, result.json, page.md"""
    work: Path = Path("runs/label_efficiency")
    """data and weights; rebuilt from seeds where they are missing"""
    quick: bool = False
    """the same code on less work, in minutes; teaches nothing"""
    plan: bool = False
    """print the units and what is done, then stop"""
    table: bool = False
    """only make the table from the units there are"""
    only: str = "*"
    """run the units whose name matches this pattern"""
    jobs: int = 1
    """units at a time, one thread each"""
    resume: bool = False
    """keep the units that are done"""


@dataclass(frozen=True)
class Unit:
    name: str
    minutes: float  # predicted by the pilot, on one core
    arm: Arm | None = None
    n: int = 10
    seed: int = 0
    trial: int | None = None  # None: the table, on test states


def units() -> Iterator[Unit]:
    yield Unit("data", 25)
    starts = dict.fromkeys(arm.start for arm in ARMS if arm.start)
    for start in [*starts, *(f"{recipe}+z-free" for recipe in RECIPES)]:
        yield Unit(f"pretrain/{start}", 1 if start.endswith("untrained") else 40)
    for arm in (arm for arm in ARMS if not arm.settings_of):
        for trial in range(3):
            yield Unit(f"tune/{arm.name}/{trial}", 8, arm, 10, TUNING_DRAW, trial)
    cells = [(arm, n, seed) for arm in ARMS for n in arm.ns for seed in range(arm.seeds)]
    for arm, n, seed in sorted(cells, key=lambda c: (c[1] != 10, c[0].settings_of != "", c[2])):
        yield Unit(f"n{n}/{arm.name}/{seed}", 8 * arm.longer, arm, n, seed)


def do(study: Study, unit: Unit) -> None:
    started = time.time()
    if unit.name == "data":
        study.data()
        found: dict[str, Any] = {}
    elif unit.name.startswith("pretrain/"):
        run = study.pretraining(unit.name.removeprefix("pretrain/"))
        found = {"metrics": (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]}
    else:
        assert unit.arm is not None
        if unit.trial is None:
            settings, split = chosen(study, unit.arm), "test"
        else:
            settings, split = trials(unit.arm)[unit.trial], "val"
        found = study.cell(unit.arm, unit.n, unit.seed, split, settings)
    study.finish(unit.name, started, found)


def trials(arm: Arm) -> tuple[tuple[tuple[str, str], ...], ...]:
    return TRIALS["pretrained" if arm.start else "scratch"]


def chosen(study: Study, arm: Arm) -> tuple[tuple[str, str], ...]:
    """The best trial on validation states, by success; ties go to the earlier."""
    name = arm.settings_of or arm.name
    tuned = next(a for a in ARMS if a.name == name)
    rates = [rate(study.result(f"tune/{name}/{i}")) for i in range(3)]
    if any(np.isnan(rates)):
        raise SystemExit(
            f"{arm.name}: its settings are chosen by tune/{name}/*, which is not done: run that first"
        )
    return trials(tuned)[int(np.argmax(rates))]


def rate(found: dict[str, Any] | None, held_out: bool | None = None) -> float:
    """Share of successes over tasks; all, or those held out of pretraining, or the others."""
    if found is None:
        return float("nan")
    marks = [
        int(mark)
        for task, row in found["successes"].items()
        if held_out is None or TASKS[task].held_out == held_out
        for mark in row
    ]
    return float(np.mean(marks)) if marks else float("nan")


def table(study: Study, args: Args, seconds: float) -> None:
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        for n in arm.ns:
            found = [study.result(f"n{n}/{arm.name}/{seed}") for seed in range(arm.seeds)]
            there = {seed: f for seed, f in enumerate(found) if f is not None}
            if not there:
                rows.append({"arm": arm.name, "n": n, "seeds": 0, "says": arm.says})
                continue
            rates = [100 * rate(f) for f in there.values()]
            spread = stats.seed_difference(rates)
            base = {seed: study.result(f"n{n}/scratch/{seed}") for seed in there}
            gains = [100 * (rate(there[s]) - rate(b)) for s, b in base.items() if b is not None]
            gain = stats.seed_difference(gains) if gains and arm.name != "scratch" else None
            rows.append(
                {
                    "arm": arm.name,
                    "n": n,
                    "seeds": len(there),
                    "mean": float(np.mean(rates)),
                    "interval": _finite(spread),
                    "minus_scratch": None if gain is None else gain.value,
                    "minus_scratch_interval": None if gain is None else _finite(gain),
                    "held_out_tasks": float(np.mean([100 * rate(f, held_out=True) for f in there.values()])),
                    "says": arm.says,
                    "rates": [round(r, 1) for r in rates],
                }
            )
    write_result(
        args.out,
        question="How much do unlabelled videos help, at few labelled demonstrations a task?",
        seconds=seconds,
        seeds=list(range(5)),
        rows=rows,
        targets=_targets(rows),
        notes="Student's t intervals over seeds; differences are paired by seed. 0 seeds: not run yet.",
    )


def _finite(interval: stats.Interval) -> tuple[float, float] | None:
    return (interval.low, interval.high) if np.isfinite(interval.low) else None


def _targets(rows: list[dict[str, Any]]) -> list[Target]:
    at10 = {row["arm"]: row for row in rows if row["n"] == 10 and row["seeds"]}
    best = at10.get(BEST)  # chosen on validation states: not the luckiest on the test's
    scratch, supervised = at10.get("scratch"), at10.get("supervised")
    gain = best["minus_scratch"] if best else None
    interval = best["minus_scratch_interval"] if best else None
    share = None
    if gain is not None and scratch and supervised and supervised["mean"] > scratch["mean"]:
        share = 100 * gain / (supervised["mean"] - scratch["mean"])
    return [
        Target(f"{BEST} - scratch at n = 10, points", ">= 15", gain, interval),
        Target("low end of that interval", "> 0", interval[0] if interval else None),
        Target("share of the way to supervised, %", ">= 50", share),
        Target("scratch at n = 10, low end", ">= 25", scratch["mean"] if scratch else None),
        Target("scratch at n = 10, high end", "<= 60", scratch["mean"] if scratch else None),
    ]


def main(args: Args) -> None:
    study = Study(args.out, args.work, QUICK if args.quick else FULL)
    started = time.monotonic()
    planned = [u for u in units() if fnmatch.fnmatch(u.name, args.only)]
    left = [u for u in planned if study.result(u.name) is None]
    if args.plan:
        for u in planned:
            print(f"{'done' if u not in left else f'{u.minutes:4.0f}'}  {u.name}")
        print(f"{sum(u.minutes for u in left) / 60:.1f} core-hours left in {len(left)} units")
        return
    if len(left) < len(planned) and not args.resume and not args.table:
        raise SystemExit(f"{args.out} holds finished units: give --resume to keep them, or another --out")
    if not args.table:
        run(study, left, args)
    table(study, args, time.monotonic() - started)


def run(study: Study, left: list[Unit], args: Args) -> None:
    """One unit after the other, or several at a time as processes of their own."""
    if args.jobs == 1:
        torch.set_num_threads(1)
        for unit in left:
            print(f"{time.strftime('%H:%M')} {unit.name} (about {unit.minutes:.0f} minutes)", flush=True)
            do(study, unit)
        return
    running: dict[subprocess.Popen[bytes], Unit] = {}
    pending = list(left)
    failed: list[str] = []
    while pending or running:
        while pending and len(running) < args.jobs and _ready(pending[0], running):
            unit = pending.pop(0)
            print(f"{time.strftime('%H:%M')} {unit.name} (about {unit.minutes:.0f} minutes)", flush=True)
            flags = ["--quick"] if args.quick else []
            command = [
                sys.executable,
                __file__,
                "--out",
                str(args.out),
                "--work",
                str(args.work),
                "--resume",
                *flags,
            ]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            log = (args.work / "logs" / f"{unit.name.replace('/', '__')}.txt").absolute()
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [*command, "--only", unit.name], env=environment, stdout=file, stderr=subprocess.STDOUT
                )
            running[process] = unit
        for process in [p for p in running if p.poll() is not None]:
            unit = running.pop(process)
            if process.returncode:
                failed.append(unit.name)
                print(f"{unit.name} failed: see the logs in {args.work / 'logs'}", flush=True)
        time.sleep(1.0)
    if failed:
        raise SystemExit(f"{len(failed)} units failed: {', '.join(failed)}")


def _ready(unit: Unit, running: dict[subprocess.Popen[bytes], Unit]) -> bool:
    """Data before all, pretrainings before what starts from them, tuning before the table."""
    stages = ["data", "pretrain", "tune"]
    mine = unit.name.partition("/")[0]
    place = stages.index(mine) if mine in stages else len(stages)
    return all(
        (stages.index(s) if (s := r.name.partition("/")[0]) in stages else 3) >= place
        for r in running.values()
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
