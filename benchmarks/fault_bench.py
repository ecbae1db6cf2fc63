"""What campaigns of faults share: commands with an undisturbed reference, trials, and their count.

Every trial compares with a run that nothing disturbed, and says None or what went wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fault_cases import DAMAGE, Material, files_below, fingerprint, not_a_number, other_shape
from fault_processes import (
    PAGE,
    Answer,
    NotStruck,
    kill_at_random,
    lawm,
    lawm_forked,
    seconds_after,
    small_disk,
)
from harness import Journal, Target, write_result

from lawm_policy import cli
from lawm_policy.console import progress
from lawm_policy.sim.crews import one_line
from lawm_policy.stats import wilson
from lawm_policy.types import UserError

CLOCK = ("second", "time", "host")  # keys of what clocks say
DRAWS = 5  # of a fault that may come too late, until it strikes
Trial = Callable[[np.random.Generator, Path], str | None]
Args = TypeVar("Args", bound="FaultArgs")
Kind = TypeVar("Kind")


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
    """a folder for data and runs; what an earlier call of the same code left there is used again"""

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
    played: bool = False  # `sign` gets a line for each episode that ends


def ended(path: Path) -> set[str]:
    """The lines of episodes that ended. They tell seconds, too: played again, an episode has another line."""
    *lines, _ = path.read_text().split("\n")
    return {line for line in lines if json.loads(line)["error"] is None}


def too_small(whole: Path, stage: Stage, rng: np.random.Generator) -> int:
    """Bytes of a disk that does not hold what a stage leaves, but where it plays at least one episode: it is
    full at any of their lines, or only when the summary is written once more at the end."""
    if not stage.played:
        return int(sum(p.stat().st_size for p in files_below(whole)) * rng.uniform(0.05, 0.95))
    pages = {str(p.relative_to(whole)): -(-p.stat().st_size // PAGE) for p in files_below(whole)}
    rest = sum(pages.values()) - pages[stage.sign]
    return PAGE * int(rng.integers(rest + 1, rest + pages[stage.sign] + rest))


def in_turn(kinds: Iterable[Kind], trials: int) -> list[Kind]:
    """So many of them, each at least once."""
    known = list(kinds)
    return [known[i % len(known)] for i in range(max(trials, len(known)))]


@dataclass
class Bench:
    """Commands (`stages`) on one material, disturbed."""

    material: Material
    work: Path
    stages: Mapping[str, Stage]

    def reference(self, name: str) -> tuple[Any, float]:
        """What an undisturbed run of a stage leaves, and its seconds of work; made once."""
        stage, out, note = (
            self.stages[name],
            self.work / f"reference-{name}",
            self.work / f"reference-{name}.json",
        )
        if not note.exists():
            shutil.rmtree(out, ignore_errors=True)
            argv = self.material.argv(stage.command, out)
            seconds = seconds_after(argv, out / stage.sign, self.work / "log.txt")
            note.write_text(json.dumps({"seconds": seconds}))
        return stage.left(out), json.loads(note.read_text())["seconds"]

    def finish(self, name: str, out: Path) -> str | None:
        """Resumes and compares."""
        stage = self.stages[name]
        before = ended(out / stage.sign) if stage.played else set()
        answer = lawm([*self.material.argv(stage.command, out), "--resume"], self.work / "log.txt")
        if answer.status != 0:
            return f"resuming: exit status {answer.status}: {answer.err[-300:]}"
        if stage.played and not before <= ended(out / stage.sign):
            return "resumed, but what had ended was played again"
        return None if stage.left(out) == self.reference(name)[0] else "resumed, but the result differs"

    def kill(self, name: str) -> Trial:
        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            stage, out = self.stages[name], folder / "out"
            _, span = self.reference(name)
            argv = self.material.argv(stage.command, out)
            wrong = kill_at_random(argv, out / stage.sign, span, rng, self.work / "log.txt")
            return wrong or self.finish(name, out)

        return trial

    def disk_full(self, name: str) -> Trial:
        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            stage = self.stages[name]
            self.reference(name)
            whole = self.work / f"reference-{name}"
            with small_disk(folder / "disk", too_small(whole, stage, rng)) as disk:
                argv = self.material.argv(stage.command, disk / "out")
                answer = lawm(argv, self.work / "log.txt")
                if answer.status == 0:
                    raise NotStruck("the disk was large enough")
                if answer.status != 2 or "disk" not in answer.err or "Traceback" in answer.err:
                    return f"exit status {answer.status}: {answer.err[-300:]}"
                if stage.played and not ended(disk / "out" / stage.sign):
                    return "no episode that ended before the disk was full was kept"
                subprocess.run(["mount", "-o", f"remount,size={2**30}", str(disk)], check=True)
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


def prepare(args: Args, *more: Path) -> tuple[Args, str]:
    """Folders, and an environment in which children find this code and the folders of `more`, which are files
    that make the campaign, too. Also the hash of the code: what other code left in --work is not used."""
    code = code_hash(more)
    args = replace(args, work=args.work / code)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"LAWM_CACHE": str(args.work / "cache"), "OMP_NUM_THREADS": "1"}
    places = [str(Path(cli.__file__).parents[1]), *dict.fromkeys(str(path.parent) for path in more)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")])
    return args, code


def code_hash(more: Iterable[Path]) -> str:
    """Of the package, its configurations and the campaign."""
    package = Path(cli.__file__).parent
    parts = [p for p in files_below(package) if p.suffix != ".pyc"]
    parts += [
        *files_below(package.parent / "configs"),
        *sorted(Path(__file__).parent.glob("fault_*.py")),
        *more,
    ]
    digest = hashlib.sha256()
    for path in parts:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def run_trials(
    args: FaultArgs, plan: Mapping[str, Sequence[Trial]], question: str, notes: str, code: str
) -> None:
    """Does what is missing of the plan, one trial after the other, and writes down what survived."""
    journal = Journal(args.out, code, resume=args.resume)
    done = {(line["campaign"], line["trial"]) for line in journal.lines}
    asked = [(name, i, t) for name, trials in plan.items() if args.only in name for i, t in enumerate(trials)]
    if not asked:
        raise UserError(
            f"expected --only in a campaign's name ({', '.join(plan)}), found {args.only!r}: correct it"
        )
    todo = [(name, index, trial) for name, index, trial in asked if (name, index) not in done]
    with progress("faults", len(asked), unit="trials", done=len(asked) - len(todo)) as bar:
        for name, index, trial in todo:
            began = time.monotonic()
            wrong, again = _tried(trial, np.random.default_rng([index, *name.encode()]), args.work)
            seconds = round(time.monotonic() - began, 1)
            line = {"campaign": name, "trial": index, "wrong": wrong, "again": again, "seconds": seconds}
            journal.add([line])
            bar.advance(note=name if wrong is None else f"{name}: {wrong}")
    rows, targets = judged(plan, journal.lines)
    write_result(
        args.out,
        question=question,
        seconds=sum(line["seconds"] for line in journal.lines),
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=f"{notes} Drawn again: faults that came too late to strike. Code {code}.",
    )


def _tried(trial: Trial, rng: np.random.Generator, work: Path) -> tuple[str | None, int]:
    """What went wrong, and how many draws did not strike."""
    for drawn in range(DRAWS):
        folder = Path(tempfile.mkdtemp(dir=work, prefix="trial-"))
        try:
            return trial(rng, folder), drawn
        except NotStruck as why:
            missed = str(why)
        except Exception as error:  # what cannot be read any more did not survive
            return one_line(error), drawn
        finally:
            shutil.rmtree(folder)
    return f"{DRAWS} draws did not strike: {missed}", DRAWS


def judged(
    plan: Mapping[str, Sequence[Trial]], lines: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Target]]:
    """Rows and targets of all that was planned or done; open where trials are missing."""
    rows, targets = [], []
    for name in dict.fromkeys([*plan, *(line["campaign"] for line in lines)]):
        found = [line for line in lines if line["campaign"] == name]
        survived = sum(line["wrong"] is None for line in found)
        first = next((line["wrong"] for line in found if line["wrong"]), "")
        rows.append(
            {
                "campaign": name,
                "tried": len(found),
                "survived": survived,
                "drawn again": sum(line["again"] for line in found),
                "first that did not": first,
            }
        )
        target = Target(f"{name}: share that survived", ">= 1", None)
        if found and len(found) >= len(plan.get(name, ())):
            interval = wilson(survived, len(found))
            target = replace(target, value=survived / len(found), interval=(interval.low, interval.high))
        targets.append(target)
    return rows, targets
