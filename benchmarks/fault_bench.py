"""What campaigns of faults share: commands with an undisturbed reference, trials, and their count.

Every trial compares with a run that nothing disturbed, and says None or what went wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fault_cases import DAMAGE, Material, files_below, fingerprint, not_a_number, other_shape
from fault_processes import Answer, kill_at_random, lawm, lawm_forked, seconds_after, small_disk
from harness import Journal, Target, write_result

from lawm_policy import cli
from lawm_policy.console import progress
from lawm_policy.stats import wilson

CLOCK = ("second", "time", "host")  # keys of what clocks say
Trial = Callable[[np.random.Generator, Path], str | None]


@dataclass(frozen=True)
class FaultArgs:
    """What every campaign can be asked for."""

    out: Path
    """where journal.jsonl, result.json and page.md go"""
    trials: int = 20
    """random moments, sizes and damages of each kind"""
    quick: bool = False
    """two of each kind"""
    resume: bool = False
    """go on after the trials in --out"""
    only: str = ""
    """only campaigns whose name contains this"""
    work: Path = Path(tempfile.gettempdir()) / "lawm-faults"
    """a folder for data and runs; what is there from an earlier call is used again"""

    @property
    def each(self) -> int:
        return 2 if self.quick else self.trials


# What a stage leaves, without what clocks say --------------------------------------------------------


def records(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(c in k for c in CLOCK)} for row in lines]


def left_by_evaluation(out: Path) -> Any:
    return sorted(json.dumps(row, sort_keys=True) for row in records(out / "episodes.jsonl"))


class Stage(NamedTuple):
    command: str
    sign: str  # a file that exists once the work has begun
    left: Callable[[Path], Any]


@dataclass
class Bench:
    """Commands (`stages`) on one material, disturbed."""

    material: Material
    work: Path
    stages: Mapping[str, Stage]

    def reference(self, name: str) -> tuple[Any, float, int]:
        """What an undisturbed run of a stage leaves, its seconds of work and its bytes; made once."""
        stage, out, note = (
            self.stages[name],
            self.work / f"reference-{name}",
            self.work / f"reference-{name}.json",
        )
        if not note.exists():
            shutil.rmtree(out, ignore_errors=True)
            argv = self.material.argv(stage.command, out)
            seconds = seconds_after(argv, out / stage.sign, self.work / "log.txt")
            size = sum(p.stat().st_size for p in files_below(out))
            note.write_text(json.dumps({"seconds": seconds, "bytes": size}))
        told = json.loads(note.read_text())
        return stage.left(out), told["seconds"], told["bytes"]

    def finish(self, name: str, out: Path) -> str | None:
        """Resumes and compares."""
        stage = self.stages[name]
        answer = lawm([*self.material.argv(stage.command, out), "--resume"], self.work / "log.txt")
        if answer.status != 0:
            return f"resuming: exit status {answer.status}: {answer.err[-300:]}"
        return None if stage.left(out) == self.reference(name)[0] else "resumed, but the result differs"

    def kill(self, name: str) -> Trial:
        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            stage, out = self.stages[name], folder / "out"
            _, span, _ = self.reference(name)
            argv = self.material.argv(stage.command, out)
            wrong = kill_at_random(argv, out / stage.sign, span, rng, self.work / "log.txt")
            return wrong or self.finish(name, out)

        return trial

    def disk_full(self, name: str) -> Trial:
        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            stage = self.stages[name]
            _, _, size = self.reference(name)
            with small_disk(folder / "disk", int(size * rng.uniform(0.05, 0.95))) as disk:
                argv = self.material.argv(stage.command, disk / "out")
                answer = lawm(argv, self.work / "log.txt")
                refused = answer.status == 2 and "disk" in answer.err and "Traceback" not in answer.err
                if answer.status != 0 and not refused:
                    return f"exit status {answer.status}: {answer.err[-300:]}"
                subprocess.run(["mount", "-o", f"remount,size={10 * size + 2**26}", str(disk)], check=True)
                return self.finish(name, disk / "out")

        return trial

    def answers(self, argv: list[str], folder: Path, **environment: str) -> Answer:
        place = folder / "here"
        place.mkdir(exist_ok=True)
        return lawm_forked(argv, place, {"LAWM_CACHE": str(folder / "cache"), **environment})

    def damaged(self, name: str, command: str, below: str, allowed: tuple[int, ...]) -> Trial:
        """One file below `name/below` damaged; `command` sees the copy as {damaged}."""

        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            copy = folder / "damaged"
            shutil.copytree(self.material.places.get(name, self.work / name), copy, symlinks=True)
            victims = [p for p in files_below((copy / below).resolve()) if p.stat().st_size]
            kinds = dict(DAMAGE)
            victim = victims[rng.integers(len(victims))]
            if victim.name == "model.safetensors":
                kinds |= {"NaN": not_a_number, "other shape": other_shape}
            kind = list(kinds)[rng.integers(len(kinds))]
            kinds[kind](victim, rng)
            before = fingerprint(copy)
            argv = self.material.argv(command.replace("{damaged}", str(copy)), folder / "out")
            answer = self.answers(argv, folder)
            told = f"{kind} in {victim.name}: exit status {answer.status}: {answer.err[-300:]}"
            if answer.status not in allowed or "Traceback" in answer.err:
                return told
            if answer.status == 2 and not ({victim.name, copy.name} & set(re.split(r"[/\s:,]", answer.err))):
                return f"{told}: what is damaged is not named"
            if (folder / "here" / "pickle-was-run").exists():
                return f"{told}: the pickle was run"
            if answer.status == 2 and "--resume" not in command and fingerprint(copy) != before:
                return f"{told}: the input was changed"
            if answer.status == 2 and (folder / "out").exists():
                return f"{told}: an output was left"
            return None

        return trial


def prepare(args: FaultArgs, *more: Path) -> None:
    """Folders, and an environment in which children find this code and `more`."""
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"LAWM_CACHE": str(args.work / "cache"), "OMP_NUM_THREADS": "1"}
    places = [str(Path(cli.__file__).parents[1]), *map(str, more)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")])


def run_trials(args: FaultArgs, plan: Mapping[str, Sequence[Trial]], question: str, notes: str) -> None:
    """Does what is missing of the plan, one trial after the other, and writes down what survived."""
    began = time.monotonic()
    journal = Journal(args.out, resume=args.resume)
    done = {(line["campaign"], line["trial"]): line["wrong"] for line in journal.lines}
    todo = [(name, i, t) for name, trials in plan.items() if args.only in name for i, t in enumerate(trials)]
    with progress("faults", len(todo), unit="trials", done=len(done)) as bar:
        for name, index, trial in todo:
            if (name, index) in done:
                continue
            rng = np.random.default_rng([index, *name.encode()])
            folder = Path(tempfile.mkdtemp(dir=args.work, prefix="trial-"))
            try:
                wrong = trial(rng, folder)
            finally:
                shutil.rmtree(folder)
            done[name, index] = wrong
            journal.add([{"campaign": name, "trial": index, "wrong": wrong}])
            bar.advance(note=name if wrong is None else f"{name}: {wrong}")
    rows, targets = [], []
    for name in dict.fromkeys(name for name, _, _ in todo):
        found = [wrong for (campaign, _), wrong in done.items() if campaign == name]
        survived = sum(wrong is None for wrong in found)
        first = next((wrong for wrong in found if wrong), "")
        rows.append(
            {"campaign": name, "tried": len(found), "survived": survived, "first that did not": first}
        )
        interval = wilson(survived, len(found))
        targets.append(
            Target(
                f"{name}: share that survived", ">= 1", survived / len(found), (interval.low, interval.high)
            )
        )
    write_result(
        args.out,
        question=question,
        seconds=time.monotonic() - began,
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=notes,
    )
