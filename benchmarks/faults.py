"""What survives kill -9, a full disk, corrupt files and wrong arguments?

    python benchmarks/faults.py --out benchmarks/results/faults [--quick] [--resume]

Every trial compares with a run that nothing disturbed: survived means that the same command with
`--resume` ends with exit status 0 and the same episodes, losses, weights and results, or, for what
cannot be used, that one line and exit status 2 came and nothing was written or lost.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fault_cases
import numpy as np
import tyro
from fault_cases import BAD_REQUESTS, DAMAGE, Material, files_below, fingerprint
from fault_processes import WRITER, Answer, kill_at_random, lawm, lawm_forked, seconds_after, small_disk
from harness import Target, write_result

from lawm_policy import cli
from lawm_policy.console import progress
from lawm_policy.stats import wilson

PRELOAD = [
    "lawm_policy.recipe",
    "lawm_policy.training",
    "lawm_policy.data.clips",
    "lawm_policy.policies.loading",
]
CLOCK = ("second", "time", "host")  # keys of what clocks say
TRAINING = "--train.steps 40 --train.save_every 2 --train.log_every 1 --train.eval_every 10"


@dataclass(frozen=True)
class Args:
    """Disturbs every stage at random moments and counts what survives."""

    out: Path
    """where trials.jsonl, result.json and page.md go"""
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


# What a stage leaves, without what clocks say --------------------------------------------------------


def records(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(c in k for c in CLOCK)} for row in lines]


def left_by_training(out: Path) -> Any:
    last = out / "checkpoints" / "last"
    return records(out / "metrics.jsonl"), fingerprint(last)["model.safetensors"]


def left_by_evaluation(out: Path) -> Any:
    return sorted(json.dumps(row, sort_keys=True) for row in records(out / "episodes.jsonl"))


def left_by_import(out: Path) -> Any:
    from lawm_policy.data.store import EpisodeStore

    store = EpisodeStore.open(out)
    return sorted(  # what was salvaged may stand before what was made again
        (e.source, e.length, e.text, [int(store.frames(e.index, c).sum()) for c in e.cameras])
        for e in store.episodes
    )


class Stage(NamedTuple):
    command: str
    sign: str  # a file that exists once the work has begun
    left: Callable[[Path], Any]


STAGES = {
    "import": Stage("import videos {videos} --out {out} --size 32 --workers 1", "meta", left_by_import),
    "training": Stage(
        f"pretrain debug --data {{store}} --out {{out}} {TRAINING}", "metrics.jsonl", left_by_training
    ),
    "evaluation": Stage(
        "eval {finetuned} --tasks push_red,open_drawer --episodes 2 --workers 2 --out {out}",
        "episodes.jsonl",
        left_by_evaluation,
    ),
}


# Campaigns: each yields its trials, a trial says None or what went wrong -----------------------------

Trial = Callable[[np.random.Generator, Path], str | None]


@dataclass
class Bench:
    material: Material
    work: Path

    def reference(self, name: str) -> tuple[Any, float, int]:
        """What an undisturbed run of a stage leaves, its seconds of work and its bytes; made once."""
        stage, out, note = STAGES[name], self.work / f"reference-{name}", self.work / f"reference-{name}.json"
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
        stage = STAGES[name]
        answer = lawm([*self.material.argv(stage.command, out), "--resume"], self.work / "log.txt")
        if answer.status != 0:
            return f"resuming: exit status {answer.status}: {answer.err[-300:]}"
        return None if stage.left(out) == self.reference(name)[0] else "resumed, but the result differs"

    def kill(self, name: str) -> Trial:
        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            stage, out = STAGES[name], folder / "out"
            _, span, _ = self.reference(name)
            argv = self.material.argv(stage.command, out)
            wrong = kill_at_random(argv, out / stage.sign, span, rng, self.work / "log.txt")
            return wrong or self.finish(name, out)

        return trial

    def kill_checkpointing(self, rng: np.random.Generator, folder: Path) -> str | None:
        """A program that does nothing but write checkpoints of 4 MB."""
        run, shown = folder / "run", folder / "shown.txt"
        with shown.open("wb") as file:
            child = subprocess.Popen([sys.executable, "-c", WRITER, str(run)], stdout=file)
        while not (run / "checkpoints" / "last").exists():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 1))
        child.kill()
        child.wait()
        told = [int(line) for line in shown.read_text().splitlines(keepends=True) if line.endswith("\n")]
        from lawm_policy import checkpoint

        found = checkpoint.load(run)
        step = int(found.folder.name.removeprefix("step-"))
        if step < max(told, default=1):
            return f"step {max(told)} was reported, {step} is there"
        if not all((value == step).all() for value in found.tensors().values()):
            return "tensors of another step"
        checkpoint.prune(run, 1)
        left = sorted(p.name for p in (run / "checkpoints").iterdir())
        return (
            None
            if len(left) <= 3 and not any(n.startswith(".step") for n in left)
            else f"left behind: {left}"
        )

    def disk_full(self, name: str) -> Trial:
        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            stage = STAGES[name]
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
                kinds |= {"NaN": fault_cases.not_a_number, "other shape": fault_cases.other_shape}
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

    def bad_request(self, index: int) -> Trial:
        def trial(rng: np.random.Generator, folder: Path) -> str | None:
            case = BAD_REQUESTS[index]
            before = fingerprint(self.material.root)
            environment = {k: v.format(fresh=folder / "fresh") for k, v in case.environment}
            answer = self.answers(self.material.argv(case.command, folder / "out"), folder, **environment)
            if wrong := answer.refusal(case.said):
                return f"{case.name}: {wrong}"
            if (folder / "out").exists() or any((folder / "here").iterdir()):
                return f"{case.name}: something was written"
            return (
                None if fingerprint(self.material.root) == before else f"{case.name}: something was changed"
            )

        return trial


def campaigns(bench: Bench, trials: int) -> dict[str, list[Trial]]:
    pretrain = f"pretrain debug --data {{store}} --out {{damaged}} {TRAINING} --resume"
    evaluate = STAGES["evaluation"].command.replace("{out}", "{damaged}") + " --resume"
    made: dict[str, list[Trial]] = {f"kill -9 in {name}": [bench.kill(name)] * trials for name in STAGES}
    made["kill -9 in checkpointing"] = [bench.kill_checkpointing] * trials
    if os.geteuid() == 0:  # only root may mount a small disk
        made |= {f"disk full in {name}": [bench.disk_full(name)] * trials for name in STAGES}
    damages = {
        "checkpoint, to evaluate": (
            "finetuned",
            "eval {damaged} --episodes 1 --out {out}",
            "checkpoints/last",
            (2,),
        ),
        "checkpoint, to finetune": (
            "pretrained",
            "finetune debug --data {demos} --init {damaged} --out {out}",
            "checkpoints/last",
            (2,),
        ),
        # What a store or a video lost cannot always be known: a flipped bit may be a valid pixel.
        "demonstrations": ("demos", "finetune debug --data {damaged} --out {out}", "", (0, 2)),
        "store of videos": ("store", "pretrain debug --data {damaged} --out {out}", "", (0, 2)),
        "store, inspected": ("store", "inspect {damaged}", "", (0, 1, 2)),  # 1: it reports damage
        "videos": (
            "videos",
            "import videos {damaged} --out {out} --size 32 --workers 1",
            "",
            (0,),
        ),  # the rest is imported
        "run, to resume": ("reference-training", pretrain, "", (0, 2)),
        "evaluation, to resume": ("reference-evaluation", evaluate, "", (0, 2)),
    }
    for name, (what, command, below, allowed) in damages.items():
        made[f"damaged {name}"] = [bench.damaged(what, command, below, allowed)] * trials
    made["wrong arguments"] = [bench.bad_request(i) for i in range(len(BAD_REQUESTS))]
    return made


def main(args: Args) -> None:
    began = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"LAWM_CACHE": str(args.work / "cache"), "OMP_NUM_THREADS": "1"}
    root = str(Path(cli.__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    material = fault_cases.build(
        args.work / "material", lambda argv: int(lawm(argv, args.work / "log.txt").status or 0)
    )
    bench = Bench(material, args.work)
    for name in STAGES:
        bench.reference(name)
    path = args.out / "trials.jsonl"
    if not args.resume:
        path.unlink(missing_ok=True)
    done = (
        {(r["campaign"], r["trial"]): r["wrong"] for r in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else {}
    )
    plan = campaigns(bench, 2 if args.quick else args.trials)
    todo = [(name, i, t) for name, trials in plan.items() if args.only in name for i, t in enumerate(trials)]
    with path.open("a") as log, progress("faults", len(todo), unit="trials", done=len(done)) as bar:
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
            log.write(json.dumps({"campaign": name, "trial": index, "wrong": wrong}) + "\n")
            log.flush()
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
        question="What survives kill -9, a full disk, corrupt files, wrong arguments?",
        seconds=time.monotonic() - began,
        seeds=[0],
        rows=rows,
        targets=targets,
        notes="A kill comes at a uniformly random moment after the stage has begun to write."
        + ("" if os.geteuid() == 0 else " A full disk was not tried: mounting a small one needs root."),
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
