"""What resumable studies share: arms, units with their files, cells, and the loop that runs units.

A unit rebuilds what it needs from seeds, resumes where it was stopped, and leaves one small JSON file; the
heavy things (data, weights) stay in the work folder, which may be lost at any time."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from lawm_policy import stats
from lawm_policy.checkpoint import sha256_of
from lawm_policy.config import load_config
from lawm_policy.policies.loading import load_run
from lawm_policy.runs import versions, write_text
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
STOPPED = 143  # the exit status of what was told to stop


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
class Unit:
    """A piece of work. Its name begins with its stage."""

    name: str
    minutes: float  # predicted by a pilot, on one core
    work: Callable[[], dict[str, Any]]  # what its file says
    after: str = ""  # the unit that it goes on from
    leaves: Path | None = None  # what it leaves in the work folder,
    readers: tuple[str, ...] = ()  # for units of these patterns: it is run again where they would miss it


@dataclass(frozen=True)
class StudyArgs:
    """What every study can be asked for."""

    out: Path
    """small results: one JSON a unit, result.json, page.md"""
    work: Path
    """data and weights; rebuilt from seeds where they are missing"""
    quick: bool = False
    """the same code on less work, in minutes, in OUT-quick and WORK-quick; teaches nothing"""
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

    @property
    def folders(self) -> tuple[Path, Path]:
        """Results and work. A quick study has its own: nothing of it may be taken for a full one's."""
        end = "-quick" if self.quick else ""
        return Path(f"{self.out}{end}"), Path(f"{self.work}{end}")


@dataclass(frozen=True)
class Campaign(ABC):
    """The files of a study. What is trained on and played is its subclass's."""

    script: ClassVar[str]

    out: Path  # small results, committed
    work: Path  # data and weights
    flags: tuple[str, ...] = field(default=(), kw_only=True)  # of its command line, beside StudyArgs

    # Units and their files.

    def result_path(self, unit: str) -> Path:
        return self.out / "units" / f"{unit.replace('/', '__')}.json"

    def result(self, unit: str) -> dict[str, Any] | None:
        path = self.result_path(unit)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, unit: str, started: float, found: dict[str, Any]) -> None:
        path = self.result_path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join([f"python benchmarks/{self.script}.py --resume", *self.flags, "--only", unit])
        made_by = versions() | {"command": command}
        record = {"unit": unit, "seconds": round(time.time() - started, 1), "versions": made_by, **found}
        write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")

    def made_by(self) -> str:
        """Of all units that are done: by which commits they were begun and ended, and on what."""
        units = [json.loads(path.read_text()) for path in sorted((self.out / "units").glob("*.json"))]
        commits = {unit["versions"]["commit"][:9] for unit in units if "versions" in unit}
        commits |= {unit["begun_by"][:9] for unit in units if "begun_by" in unit}
        machines = {unit["versions"]["hardware"]["cpu"] for unit in units if "versions" in unit}
        return f"Units by commits {', '.join(sorted(commits))}, on {', '.join(sorted(machines))}."

    def spent(self) -> float:
        """Seconds of all units that are done; of one that was resumed, of its last part."""
        units = [json.loads(path.read_text()) for path in sorted((self.out / "units").glob("*.json"))]
        return sum(max(unit["seconds"], unit.get("fit_seconds", 0.0)) for unit in units)

    def mark(self, what: str) -> Path:
        """The file that says that it has been made."""
        return self.work / f"{what}.done"

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """One process at a time; who dies lets go."""
        locks = self.work / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / what).open("w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield

    def once(self, what: str, do: Callable[[], int | None], asked: Any = None) -> None:
        """Makes what is missing. Of units side by side that need it, one makes it and the others wait. What
        was made on another request is refused."""
        mark, request = self.mark(what), repr(asked)
        with self.locked(what):
            if not mark.exists():
                if do():
                    raise SystemExit(f"{what} failed")
                write_text(mark, request)
            elif mark.read_text(encoding="utf-8") != request:
                raise SystemExit(
                    f"{mark} is of another request, {mark.read_text()}: remove what it stands for"
                )

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
        told = {"held_out_loss": fitted.best_metric, "best_step": fitted.best_step, "steps": fitted.step}
        told |= {"fit_seconds": round(fitted.seconds, 1), "held_out": held_out(run)}
        told |= {"start": weights_hash(self.pretraining(arm.start)) if arm.start else None}
        return Fitted(run, told | {"begun_by": json.loads((run / "versions.json").read_text())["commit"]})

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


def for_minutes(minutes: float, train: Callable[[], Any]) -> None:
    """Trains for so long and no longer: then it saves as when a batch system stops it, and another unit goes
    on. Nothing may follow the training in `train`."""
    over = threading.Event()

    def stop() -> None:
        over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def between(*_: Any) -> None:  # while a training runs, it has a handler of its own, which saves first
        raise SystemExit(STOPPED)

    timer = threading.Timer(60 * minutes, stop)
    timer.daemon = True
    timer.start()
    before = signal.signal(signal.SIGTERM, between)
    try:
        train()
    except SystemExit as end:
        if end.code != STOPPED or not over.is_set():  # somebody else's word to stop ends no unit
            raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


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


# The loop --------------------------------------------------------------------------------------------


def work_through(
    study: Campaign,
    args: StudyArgs,
    units: Callable[[], Iterable[Unit]],
    stages: Sequence[str],
) -> bool:
    """Prints the plan, or runs what is missing of it; False where no table is to be made. `units` is asked
    again after each (side by side: after all): what was found may have decided on more, or on fewer."""
    planned, left = _wanted(study, args, units)
    if args.plan:
        for unit in planned:
            print(f"{'done' if unit not in left else f'{unit.minutes:4.0f}'}  {unit.name}")
        print(f"{sum(unit.minutes for unit in left) / 60:.1f} core-hours left in {len(left)} units")
        return False
    if args.table:
        return True
    if len(left) < len(planned) and not args.resume:
        raise SystemExit(f"{study.out} holds finished units: give --resume to keep them, or another --out")
    torch.set_num_threads(1)
    ran: set[str] = set()
    failed: list[Unit] = []
    while left:
        ran |= {unit.name for unit in left[: 1 if args.jobs == 1 else None]}
        if args.jobs > 1:
            failed += _side_by_side(study, left, args, stages)
        elif not _alone(study, left[0]):
            failed.append(left[0])
        names = {unit.name for unit in failed}
        left = [u for u in _wanted(study, args, units)[1] if u.name not in names and not _waits(u, failed)]
        if again := next((unit for unit in left if unit.name in ran), None):
            raise SystemExit(f"{again.name} was run and {again.leaves} is not there")
    if failed:
        raise SystemExit(f"{len(failed)} units failed: {', '.join(unit.name for unit in failed)}")
    return True


def _waits(unit: Unit, failed: Sequence[Unit]) -> bool:
    """Whether it needs what one that failed should have made."""
    return any(unit.after == f.name or any(fnmatch.fnmatch(unit.name, r) for r in f.readers) for f in failed)


def _wanted(
    study: Campaign, args: StudyArgs, units: Callable[[], Iterable[Unit]]
) -> tuple[list[Unit], list[Unit]]:
    every = list(units())
    left = {unit.name for unit in every if study.result(unit.name) is None}
    for unit in reversed(every):  # who reads comes after who makes
        lost = unit.leaves is not None and not unit.leaves.exists()
        if lost and any(fnmatch.filter(left, pattern) for pattern in unit.readers):
            left.add(unit.name)
    planned = [unit for unit in every if fnmatch.fnmatch(unit.name, args.only)]
    return planned, [unit for unit in planned if unit.name in left]


def _say(unit: Unit) -> None:
    print(f"{time.strftime('%H:%M')} {unit.name} (about {unit.minutes:.0f} minutes)", flush=True)


def _alone(study: Campaign, unit: Unit) -> bool:
    """Runs one; False where it fails: the others go on."""
    _say(unit)
    with study.locked(
        f"unit-{unit.name.replace('/', '__')}"
    ):  # another process may be at it, or have done it
        if study.result(unit.name) is not None and (unit.leaves is None or unit.leaves.exists()):
            return True
        started = time.time()
        try:
            study.finish(unit.name, started, unit.work())
        except SystemExit as error:
            if error.code == STOPPED:
                raise
            said: object = error.code
        except Exception as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
        else:
            return True
    print(f"{unit.name} failed: {said}", flush=True)
    return False


def _side_by_side(study: Campaign, left: list[Unit], args: StudyArgs, stages: Sequence[str]) -> list[Unit]:
    """Several at a time, as processes of their own, which end with this one; those that failed."""
    running: dict[subprocess.Popen[bytes], Unit] = {}
    pending = list(left)
    failed: list[Unit] = []
    path = str(Path(__file__).with_name(f"{study.script}.py"))
    common = ["--out", str(args.out), "--work", str(args.work), "--resume", *study.flags]
    common += ["--quick"] if args.quick else []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        while pending or running:
            while len(running) < args.jobs and (unit := _next(pending, running.values(), stages)):
                pending.remove(unit)
                if _waits(unit, failed):
                    continue
                _say(unit)
                environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
                log = (study.work / "logs" / f"{unit.name.replace('/', '__')}.txt").absolute()
                log.parent.mkdir(parents=True, exist_ok=True)
                command = [sys.executable, path, *common, "--only", unit.name]
                with log.open("wb") as file:
                    process = subprocess.Popen(
                        command, env=environment, stdout=file, stderr=subprocess.STDOUT
                    )
                running[process] = unit
            for process in [p for p in running if p.poll() is not None]:
                unit = running.pop(process)
                if process.returncode:
                    failed.append(unit)
                    print(f"{unit.name} failed: see the logs in {study.work / 'logs'}", flush=True)
            time.sleep(1.0)
    finally:
        for process in running:
            process.terminate()  # a training saves first
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)
    return failed


def _next(pending: Sequence[Unit], running: Iterable[Unit], stages: Sequence[str]) -> Unit | None:
    """The first that may begin: each stage when those before it have ended, and a unit when that it goes on
    from has."""

    def place(name: str) -> int:
        stage = name.partition("/")[0]
        return stages.index(stage) if stage in stages else len(stages)

    unended = [*running, *pending]
    first = min((place(o.name) for o in unended), default=0)
    names = {o.name for o in unended}
    return next((u for u in pending if place(u.name) == first and u.after not in names), None)
