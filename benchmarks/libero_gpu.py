"""The published setting, for a machine with a GPU: pretraining on LIBERO-90 without labels, then 50
demonstrations a task (and 10, and 5) and 500 episodes in each of four suites, at 128 px, with and without
pretraining; beside them a policy without images and one without the instruction.

    python benchmarks/libero_gpu.py --plan                       units, seconds a step here, predicted hours
    python benchmarks/libero_gpu.py --out DIR --datasets LIBERO  with the official HDF5 files below LIBERO
    python benchmarks/libero_gpu.py --out DIR [--resume]         with scripted experts' demonstrations

The official files hold 50 demonstrations a task, of which a tenth is held out to choose the step whose
weights are played: 45 are learnt from. Of the experts' 60, 50 are.
The speeds in a plan are measured on the machine that it is made on, once, and kept in --out."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from campaign import (
    FEWEST,
    LABEL_FREE,
    Arm,
    Campaign,
    Overrides,
    compared,
    finite,
    played,
    rate,
    to_its_end,
)
from harness import Target, answer, write_result
from libero_units import made_with
from timing import panda_policy, random_clip, random_demo, seconds_a_step
from units import StudyArgs, Unit, work_through

from lawm_policy.config import load_config
from lawm_policy.data.store import EpisodeStore
from lawm_policy.policies.latent_policy import LatentPolicyConfig
from lawm_policy.recipe import Recipe
from lawm_policy.runs import hardware, write_text
from lawm_policy.sim import libero_assets
from lawm_policy.sim.libero_protocol import TASK_COUNTS, choose
from lawm_policy.sim.protocol import read_summary
from lawm_policy.sim.workers import run_jobs
from lawm_policy.stages.collect import CollectArgs
from lawm_policy.stages.collect import run as collect
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.stages.finetune import FinetuneConfig
from lawm_policy.stages.importing import ImportArgs
from lawm_policy.stages.importing import run as import_demos
from lawm_policy.stages.pretrain import PretrainConfig, pretrain
from lawm_policy.stats import seed_difference
from lawm_policy.training import TrainConfig
from lawm_policy.types import UserError

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
VIDEOS = "libero_90"
COLLECTED, MOST, MOST_OFFICIAL = 60, 50, 45  # demonstrations a task; what is learnt from leaves out a tenth
FEW = (10, 5)
STATES, PIXELS = 50, 128
PUBLISHED = {"scratch": 95.5, "pretrained": 97.25}  # LAWM's BAKU, mean of the four suites
MEAN_STEPS, EXPERT_STEPS = 150, 110  # control steps of an episode
PRETRAIN: Overrides = (("train.steps", "60000"), ("train.batch_size", "128"), ("train.save_every", "1000"))
PRETRAIN += (("recipe.policy.size", str(PIXELS)), ("train.eval_every", "2000"))
# A recipe in two phases has as many steps in all; the second overfits to the videos sooner.
TWO_PHASES: Overrides = (("world.steps", "40000"), ("world.batch_size", "128"), ("train.steps", "20000"))
FINETUNE: Overrides = (("train.steps", "30000"), ("train.batch_size", "256"), ("train.save_every", "1000"))
FINETUNE += (("policy.policy.size", str(PIXELS)), ("train.eval_every", "2000"))
OF_FEW: Overrides = (("train.steps", "10000"),)  # fine-tuning with few demonstrations
QUICK: Overrides = (("train.steps", "4"), ("train.batch_size", "4"), ("train.eval_every", "0"))


@dataclass(frozen=True)
class Args(StudyArgs):
    """Success in the published setting, with and without pretraining."""

    out: Path = Path("benchmarks/results/libero_gpu")
    work: Path = Path("runs/libero_gpu")
    recipe: str = "lawm"
    """which pretraining"""
    datasets: Path | None = None
    """the official demonstrations: a folder with libero_90, libero_spatial, ... (left out: experts'); what is
    learnt from them lies in OUT-official and WORK-official"""
    seeds: int = 3
    """policies of each kind"""
    accumulate: int = 1
    """parts that a batch is cut into, where the GPU's memory is too small: the result is the same"""
    workers: int = os.cpu_count() or 1
    """processes that simulate"""

    @property
    def folders(self) -> tuple[Path, Path]:
        out, work = super().folders
        return (out, work) if self.datasets is None else (Path(f"{out}-official"), Path(f"{work}-official"))


@dataclass(frozen=True)
class Speeds:
    """Seconds, on this machine."""

    pretrain_step: float
    finetune_step: float
    control_step: float  # with the images that a policy looks at; one process
    device: str


@dataclass(frozen=True)
class GpuStudy(Campaign):
    script: ClassVar[str] = "libero_gpu"

    args: Args

    @property
    def pretrain_overrides(self) -> Overrides:
        two = load_config(self.args.recipe, PretrainConfig, stage="pretrain").world.steps > 0
        given = (*PRETRAIN, *(TWO_PHASES if two else ()), ("train.accumulate", str(self.args.accumulate)))
        few = (*QUICK, ("validation_clips", "4"), *((("world.steps", "4"),) if two else ()))
        return given + LABEL_FREE + (few if self.args.quick else ())

    @property
    def ns(self) -> tuple[int, ...]:
        """Demonstrations a task that policies learn from; the first is the published setting."""
        if self.args.quick:
            return (1,)
        return (MOST if self.args.datasets is None else MOST_OFFICIAL, *FEW)

    def finetune_overrides(self, n: int) -> Overrides:
        given = (*FINETUNE, ("train.accumulate", str(self.args.accumulate)))
        if self.args.quick:
            return (*given, *QUICK, ("validation_batches", "1"))
        return given + (OF_FEW if n in FEW else ())

    def store(self, suite: str) -> Path:
        """Demonstrations of a suite; of the videos' suite nothing but frames and captions is read."""
        out, quick = self.work / suite, self.args.quick
        if self.args.datasets is not None:
            given = ImportArgs("libero", (self.args.datasets / suite,), out, size=PIXELS)
            given = replace(given, workers=self.args.workers, resume=out.exists())
            self.once(suite, lambda: import_demos(given), (str(self.args.datasets.resolve()), PIXELS))
            return out
        asked = CollectArgs(suite, out, episodes=2 if quick else COLLECTED, size=PIXELS)
        asked = replace(asked, workers=self.args.workers, resume=out.exists())
        asked = replace(asked, tasks="0" if quick else "all", protocol="lawm+fresh")
        self.once(suite, lambda: collect(asked), (asked.tasks, asked.episodes, asked.protocol, PIXELS))
        return out

    def data(self, suite: str) -> dict[str, Any]:
        """Makes a suite's demonstrations, and refuses too few here, not after days of pretraining."""
        found = Counter(e.task for e in EpisodeStore.open(self.store(suite)).episodes if e.split == "train")
        least = 1 if suite == VIDEOS else max(self.ns)
        few = [t for t in choose(suite, "0" if self.args.quick else "all") if found[t] < least]
        if few:
            told = ", ".join(f"{found[task]} of {task}" for task in few)
            raise UserError(
                f"expected {least} training demonstrations of each task of {suite}, found {told}: see what "
                f"the import of {self.work / suite} left out, or collect more"
            )
        return {"training demonstrations": dict(found)}

    def pretraining(self, name: str) -> Path:
        out = self.work / f"pretrain-{name}"
        self.once(out.name, partial(self._pretrain, name, out), self.pretrain_overrides)
        return out

    def _pretrain(self, name: str, out: Path) -> None:
        cfg = load_config(name, PretrainConfig, self.pretrain_overrides, stage="pretrain")
        to_its_end(pretrain(cfg, (self.store(VIDEOS),), out, resume=out.exists()))

    def cell(self, arm: Arm, suite: str, n: int, seed: int) -> dict[str, Any]:
        quick = self.args.quick
        name = f"{suite}-{arm.name}-n{n}-{seed}"
        fitted = self.fit(name, arm, self.store(suite), self.finetune_overrides(n), n, seed)
        grid = EvaluateArgs(
            str(fitted.run),
            fitted.run.with_name(f"{name}-eval"),
            suite=f"{suite}@lawm",
            tasks="0" if quick else "all",
            episodes=1 if quick else STATES,
            workers=min(self.args.workers, 1 if quick else 10),
        )
        cell = {"arm": arm.name, "suite": suite, "n": n, "seed": seed}
        successes = played(grid)
        return (
            cell
            | fitted.told
            | {"successes": successes, "libero": made_with(read_summary(grid.out)["protocol"])}
        )


def arms(recipe: str, seeds: int) -> tuple[Arm, ...]:
    like = head_of(recipe)
    return (
        Arm(recipe, "label-free LIBERO-90 first", recipe, seeds=seeds),
        Arm("scratch", "no pretraining, the same architecture", overrides=like, seeds=seeds),
        Arm("blind", "no images", overrides=(*like, ("policy.sees", "false")), seeds=1),
        Arm("no-language", "no instruction", overrides=(*like, ("policy.hears", "false")), seeds=1),
    )


def head_of(recipe: str) -> Overrides:
    """What a recipe changes of the policy that it pretrains: who begins without it has the same one."""
    policy = load_config(recipe, PretrainConfig, stage="pretrain").recipe.policy
    return tuple(
        (f"policy.policy.{key}", str(getattr(policy, key)).lower()) for key in ("components", "density")
    )


def units(study: GpuStudy, speeds: Speeds) -> Iterator[Unit]:
    workers = study.args.workers
    for suite in (VIDEOS, *SUITES):
        steps = TASK_COUNTS[suite] * COLLECTED * EXPERT_STEPS
        minutes = steps * 2 * speeds.control_step / workers / 60  # images at every step
        yield Unit(f"data/{suite}", minutes, partial(study.data, suite))
    asked = dict(study.pretrain_overrides)
    steps = int(asked["train.steps"]) + int(asked.get("world.steps", 0))
    start = partial(made, study.pretraining, study.args.recipe)
    yield Unit(f"pretrain/{study.args.recipe}", steps * speeds.pretrain_step / 60, start)
    play = 10 * STATES * MEAN_STEPS * speeds.control_step / min(workers, 10) / 60
    for n in study.ns:
        fit = int(dict(study.finetune_overrides(n))["train.steps"]) * speeds.finetune_step / 60
        for seed in range(study.args.seeds):
            for suite in SUITES:
                for arm in (a for a in arms(study.args.recipe, study.args.seeds) if seed < a.seeds):
                    cell = partial(study.cell, arm, suite, n, seed)
                    yield Unit(f"n{n}/{suite}/{arm.name}/{seed}", fit + play, cell)


def made(make: Callable[[str], Path], name: str) -> dict[str, Any]:
    make(name)
    return {}


# Speeds ---------------------------------------------------------------------------------------------


def speeds_here(study: GpuStudy) -> Speeds:
    """Measured, or as they were measured before in --out on a machine of this kind."""
    path, device = study.out / "speeds.json", device_here()
    if path.is_file() and not study.args.quick:
        before = Speeds(**json.loads(path.read_text(encoding="utf-8")))
        if before.device == device:
            return before
    cfg = load_config(study.args.recipe, PretrainConfig, study.pretrain_overrides, stage="pretrain")
    recipe = Recipe(cfg.recipe)
    pretrain_s = timed(recipe, random_clip(cfg.train.batch_size, recipe), cfg.train)
    fine = load_config("default", FinetuneConfig, study.finetune_overrides(study.ns[0]), stage="finetune")
    policy = panda_policy(replace(LatentPolicyConfig(), policy=fine.policy.policy))
    finetune_s = timed(policy, random_demo(fine.train.batch_size, policy), fine.train)
    [played_] = run_jobs("libero_gpu:stepping", {}, [f"{SUITES[1]}-0"], workers=1)
    if played_.error is not None:
        raise UserError(f"expected LIBERO to step, found {played_.error}: try lawm doctor")
    found = Speeds(pretrain_s, finetune_s, played_.result, device)
    if not study.args.quick:  # of other batches
        study.out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(found), indent=1) + "\n")
    return found


def device_here() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else str(hardware()["cpu"])


def timed(module: torch.nn.Module, batch: Any, train: TrainConfig) -> float:
    short = replace(train, steps=8, warmup=1, eval_every=0, save_every=8)
    return float(np.median(seconds_a_step(module, batch, short)))


def stepping() -> Callable[[str], float]:
    """A worker that says how long a control step takes when every eighth is looked at."""
    from lawm_policy.sim.libero_env import LiberoEnv

    def work(task: str) -> float:
        env = LiberoEnv(task)
        env.reset(seed=0)
        began = time.perf_counter()
        for k in range(48):
            env.render_now = k % 8 == 7
            env.step(np.zeros(7))
        seconds = (time.perf_counter() - began) / 48
        env.close()
        return seconds

    return work


# The table ------------------------------------------------------------------------------------------


def table(study: GpuStudy, speeds: Speeds | None) -> None:
    rows: list[dict[str, Any]] = []
    whole: dict[tuple[str, int], dict[int, float]] = {}  # of arm and n -> seed -> mean of the four suites

    def results(arm: str, suite: str, n: int) -> dict[int, Any]:
        found = {s: study.result(f"n{n}/{suite}/{arm}/{s}") for s in range(study.args.seeds)}
        return {seed: f for seed, f in found.items() if f is not None}

    for n, suite, arm in product(study.ns, SUITES, arms(study.args.recipe, study.args.seeds)):
        there, base = results(arm.name, suite, n), results("scratch", suite, n)
        row = {"n": n, "suite": suite, "arm": arm.name, "says": arm.says, "seeds": len(there)}
        if there:
            row |= compared(there, base if arm.name != "scratch" else None)
            row["pretrainings"] = len({f["start"] for f in there.values() if f["start"]})
            row["made with"] = "; ".join(sorted({f["libero"] for f in there.values()}))
        rows.append(row if there else row | {"mean": "not run"})
    for n, arm in product(study.ns, arms(study.args.recipe, study.args.seeds)):
        suites = [results(arm.name, suite, n) for suite in SUITES]
        seeds = set.intersection(*(set(found) for found in suites))
        whole[arm.name, n] = {
            seed: 100 * float(np.mean([rate(found[seed]) for found in suites])) for seed in sorted(seeds)
        }
    write_result(
        study.out,
        question="The published setting: four suites, with and without LIBERO-90's videos",
        argv=("--resume", *study.flags),
        seconds=study.spent(),
        machine=study.machine(),
        seeds=list(range(study.args.seeds)),
        rows=rows,
        targets=targets(whole, study.args, study.ns),
        notes=f"Published means of the four suites, with 50 demonstrations: {PUBLISHED['scratch']}% from "
        f"scratch, {PUBLISHED['pretrained']}% pretrained. n: demonstrations a task that are learnt from; "
        "those that choose the step come on top. Protocol: lawm, stored states. Student's t intervals over "
        "seeds, pairs by seed; all play the same states and begin with one pretraining: neither draw is in "
        f"an interval. {study.made_by()} " + ("" if speeds is None else f"Seconds here: {speeds}."),
    )


def targets(whole: dict[tuple[str, int], dict[int, float]], args: Args, ns: tuple[int, ...]) -> list[Target]:
    """Judged when all seeds are there."""
    most, means = f"mean of the four suites, n = {ns[0]}", dict[tuple[str, int], float | None]()
    for cell, found in whole.items():
        means[cell] = float(np.mean(list(found.values()))) if len(found) == args.seeds else None
    targets = [
        Target(f"{most}, pretrained, %", f">= {PUBLISHED['pretrained']}", means[args.recipe, ns[0]]),
        Target(f"{most}, from scratch, %", f">= {PUBLISHED['scratch']}", means["scratch", ns[0]]),
    ]
    for n in ns:
        ours, base = whole[args.recipe, n], whole["scratch", n]
        name = f"what pretraining adds at n = {n}, mean of the four suites, points"
        gains = [ours[seed] - base[seed] for seed in ours.keys() & base.keys()]
        if len(gains) < args.seeds:
            targets.append(Target(name, "> 0", None))
            continue
        gain = seed_difference(gains)
        targets.append(Target(name, "> 0", gain.value, finite(gain)))
        if len(gains) >= FEWEST:
            targets.append(Target(f"{name}: low end of the interval", "> 0", gain.low))
    return targets


def main(args: Args) -> None:
    libero_assets.check_ready()
    flags = ["--recipe", args.recipe, "--seeds", str(args.seeds), "--workers", str(args.workers)]
    flags += ["--accumulate", str(args.accumulate)] if args.accumulate > 1 else []
    flags += ["--datasets", str(args.datasets)] if args.datasets else []
    study = GpuStudy(*args.folders, args, flags=tuple(flags))
    speeds = None if args.table else speeds_here(study)
    if args.plan and speeds is not None:
        print(
            f"{speeds.device}: {1e3 * speeds.pretrain_step:.0f} ms a step of pretraining, "
            f"{1e3 * speeds.finetune_step:.0f} of fine-tuning, {1e3 * speeds.control_step:.0f} of control"
        )
    planned = partial(units, study, speeds or Speeds(0, 0, 0, ""))
    if work_through(study, args, planned, ("data", "pretrain")):
        table(study, speeds)


if __name__ == "__main__":
    answer(main, Args)
