"""What survives kill -9, a full disk, corrupt files and wrong arguments?

    python benchmarks/faults.py --out benchmarks/results/faults [--quick] [--resume]

Every trial compares with a run that nothing disturbed: survived means that the same command with
`--resume` ends with exit status 0 and the same episodes, losses, weights and results, or, for what
cannot be used, that one line and exit status 2 came and nothing was written or lost.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fault_cases
import numpy as np
from fault_bench import Bench, FaultArgs, Stage, Trial, left_by_evaluation, prepare, records, run_trials
from fault_cases import BAD_REQUESTS, fingerprint
from fault_processes import WRITER, lawm, may_mount
from harness import answer

PRELOAD = [
    "lawm_policy.recipe",
    "lawm_policy.training",
    "lawm_policy.data.clips",
    "lawm_policy.policies.loading",
]
TRAINING = "--train.steps 40 --train.save_every 2 --train.log_every 1 --train.eval_every 10"


@dataclass(frozen=True)
class Args(FaultArgs):
    """Disturbs every stage at random moments and counts what survives."""


def left_by_training(out: Path) -> Any:
    last = out / "checkpoints" / "last"
    return records(out / "metrics.jsonl"), fingerprint(last)["model.safetensors"]


def left_by_import(out: Path) -> Any:
    from lawm_policy.data.store import EpisodeStore

    store = EpisodeStore.open(out)
    return sorted(  # what was salvaged may stand before what was made again
        (e.source, e.length, e.text, [int(store.frames(e.index, c).sum()) for c in e.cameras])
        for e in store.episodes
    )


STAGES = {
    "import": Stage("import videos {videos} --out {out} --size 32 --workers 1", "meta", left_by_import),
    "training": Stage(
        f"pretrain debug --data {{store}} --out {{out}} {TRAINING}", "metrics.jsonl", left_by_training
    ),
    "evaluation": Stage(
        "eval {finetuned} --tasks push_red,open_drawer --episodes 10 --workers 2 --out {out}",
        "episodes.jsonl",
        left_by_evaluation,
        played=True,
    ),
}


# Campaigns: each yields its trials ------------------------------------------------------------------


@dataclass
class TabletopBench(Bench):
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


def campaigns(bench: TabletopBench, trials: int) -> dict[str, list[Trial]]:
    pretrain = f"pretrain debug --data {{store}} --out {{damaged}} {TRAINING} --resume"
    evaluate = STAGES["evaluation"].command.replace("{out}", "{damaged}") + " --resume"
    made: dict[str, list[Trial]] = {f"kill -9 in {name}": [bench.kill(name)] * trials for name in STAGES}
    made["kill -9 in checkpointing"] = [bench.kill_checkpointing] * trials
    if may_mount():
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
    args, code = prepare(args, Path(__file__))
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    material = fault_cases.build(
        args.work / "material", lambda argv: int(lawm(argv, args.work / "log.txt").status or 0)
    )
    bench = TabletopBench(material, args.work, STAGES)
    for name in STAGES:
        bench.reference(name)
    run_trials(
        args,
        campaigns(bench, args.each),
        question="What survives kill -9, a full disk, corrupt files, wrong arguments?",
        notes="A kill comes at a uniformly random moment after the stage has begun to write."
        + ("" if may_mount() else " A full disk was not tried: mounting a small one needs root."),
        code=code,
    )


if __name__ == "__main__":
    answer(main, Args)
