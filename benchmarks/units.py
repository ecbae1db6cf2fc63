"""Pieces of work that a long study is cut into: their files, and the loop that runs them.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from lawm_policy.runs import versions, write_text
from lawm_policy.types import UserError

STOPPED = 143  # the exit status of what was told to stop


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
class Units:
    """The files of a study's units. What they do is its subclass's."""

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

    def done(self) -> list[dict[str, Any]]:
        """The records of all units that have been finished."""
        return [json.loads(path.read_text()) for path in sorted((self.out / "units").glob("*.json"))]

    def made_by(self) -> str:
        """By which commits they were begun and ended."""
        units = self.done()
        commits = {unit["versions"]["commit"] for unit in units if "versions" in unit}
        commits |= {unit["begun_by"] for unit in units if "begun_by" in unit}
        shown = sorted(commit[:9] + "+" * commit.endswith("+") for commit in commits)
        early = " (+: before it was committed)" if any("+" in commit for commit in shown) else ""
        return f"Units by commits {', '.join(shown)}{early}."

    def machine(self) -> dict[str, Any] | None:
        """What they ran on: a table may be made elsewhere."""
        found = [unit["versions"]["hardware"] for unit in self.done() if "versions" in unit]
        return found[-1] | {"cpu": " and ".join(sorted({m["cpu"] for m in found}))} if found else None

    def spent(self) -> float:
        """Seconds of all units that are done; of one that was resumed, of its last part."""
        return sum(max(unit["seconds"], unit.get("fit_seconds", 0.0)) for unit in self.done())

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


def work_through(
    study: Units,
    args: StudyArgs,
    units: Callable[[], Iterable[Unit]],
    stages: Sequence[str],
) -> bool:
    """Prints the plan, or runs what is missing of it; False where no table is to be made. `units` is asked
    again after each (side by side: after all): what was found may have decided on more, or on fewer."""
    planned, left = _wanted(study, args, units)
    if not planned:
        raise UserError(f"expected --only to match units that --plan lists, found {args.only!r}: correct it")
    if args.plan:
        for unit in planned:
            print(f"{'done' if unit not in left else f'{unit.minutes:4.0f}'}  {unit.name}")
        print(f"{sum(unit.minutes for unit in left) / 60:.1f} core-hours left in {len(left)} units")
        return False
    if args.table:
        return True
    if len(left) < len(planned) and not args.resume:
        raise UserError(
            f"expected no finished units in {study.out}, found {len(planned) - len(left)}: "
            "give --resume to keep them, or another --out"
        )
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
    study: Units, args: StudyArgs, units: Callable[[], Iterable[Unit]]
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


def _alone(study: Units, unit: Unit) -> bool:
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


def _side_by_side(study: Units, left: list[Unit], args: StudyArgs, stages: Sequence[str]) -> list[Unit]:
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
