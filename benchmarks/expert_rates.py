"""How often do the scripted experts succeed? Every task, fresh scenes, no images.

    python benchmarks/expert_rates.py --out benchmarks/results/expert_rates [--resume]

`journal.jsonl` in the output holds one line an episode: what a resumed run goes on from. It carries the hash
of the simulator's code, and is refused under another.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import Journal, Target, answer, write_result

import lawm_policy.sim
from lawm_policy.console import progress
from lawm_policy.sim.experts_tabletop import rollout
from lawm_policy.sim.tabletop_env import TabletopEnv
from lawm_policy.sim.tabletop_tasks import TASKS
from lawm_policy.sim.workers import run_jobs
from lawm_policy.stats import wilson

FIRST_SEED = 300_000  # scenes that no training, validation or test uses, and no expert was tuned on


@dataclass(frozen=True)
class Args:
    """Success of the experts, per embodiment and task."""

    out: Path
    """where result.json, page.md and journal.jsonl go"""
    quick: bool = False
    """10 scenes a task"""
    resume: bool = False
    """go on where this run stopped"""
    embodiments: str = "arm6,hand,arm5,arm7"
    """separated by commas"""
    scenes: int = 200
    """of each task"""
    workers: int = 1
    """processes"""


class Job(NamedTuple):
    embodiment: str
    task: str
    seeds: tuple[int, ...]


def code_hash() -> str:
    """Of everything that decides what an expert does."""
    root = Path(lawm_policy.sim.__file__).parent
    parts = sorted([*root.glob("tabletop_*.py"), root / "pilot.py", root / "experts_tabletop.py"])
    parts += sorted((root / "kinematics").glob("*.*"))
    digest = hashlib.sha256()
    for path in parts:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def prepare() -> Callable[[Job], list[dict[str, Any]]]:
    envs: dict[str, TabletopEnv] = {}

    def work(job: Job) -> list[dict[str, Any]]:
        if job.embodiment not in envs:
            envs[job.embodiment] = TabletopEnv(embodiment=job.embodiment, images=False)
        lines = []
        for seed in job.seeds:
            started = time.process_time()
            episode = rollout(envs[job.embodiment], job.task, seed)
            lines.append(
                {
                    "embodiment": job.embodiment,
                    "task": job.task,
                    "seed": seed,
                    "success": episode.success,
                    "steps": len(episode.action_TA),
                    "seconds": round(time.process_time() - started, 4),
                }
            )
        return lines

    return work


def main(args: Args) -> None:
    scenes = 10 if args.quick else args.scenes
    seeds = range(FIRST_SEED, FIRST_SEED + scenes)
    code = code_hash()
    journal = Journal(args.out, code, resume=args.resume)
    done = {(line["embodiment"], line["task"], line["seed"]): line for line in journal.lines}
    jobs = []
    for embodiment in args.embodiments.split(","):
        for task in TASKS:
            left = [seed for seed in seeds if (embodiment, task, seed) not in done]
            jobs += [Job(embodiment, task, tuple(left[k : k + 20])) for k in range(0, len(left), 20)]
    with progress("experts", len(jobs), unit="x20 episodes") as bar:
        for outcome in run_jobs("expert_rates:prepare", {}, jobs, workers=args.workers):
            if outcome.error is not None:
                raise RuntimeError(outcome.error)
            journal.add(outcome.result)
            done |= {(line["embodiment"], line["task"], line["seed"]): line for line in outcome.result}
            bar.advance()
    _report(args, list(seeds), done, code)


def _report(
    args: Args, seeds: list[int], done: dict[tuple[str, str, int], dict[str, Any]], code: str
) -> None:
    rows, targets = [], []
    for embodiment in args.embodiments.split(","):
        rates = {}
        for task in TASKS:
            lines = [done[embodiment, task, seed] for seed in seeds]
            won = sum(line["success"] for line in lines)
            found = wilson(won, len(lines))
            rates[task] = (100 * won / len(lines), (100 * found.low, 100 * found.high))
            rows.append(
                {
                    "embodiment": embodiment,
                    "task": task,
                    "success %": rates[task][0],
                    "95% interval": rates[task][1],
                    "episodes": len(lines),
                    "failed scenes": [line["seed"] for line in lines if not line["success"]],
                    "mean steps": float(np.mean([line["steps"] for line in lines])),
                    "longest": max(line["steps"] for line in lines),
                    "limit": TASKS[task].step_limit,
                }
            )
        worst = min(rates, key=lambda task: rates[task][0])
        targets.append(Target(f"{embodiment}: worst task ({worst}), success %", ">= 98", *rates[worst]))
    spent = sum(line["seconds"] for line in done.values())
    steps = sum(line["steps"] for line in done.values())
    write_result(
        args.out,
        question="How often do the scripted experts succeed?",
        seconds=spent,
        seeds=[seeds[0], seeds[-1]],
        rows=rows,
        targets=targets,
        notes=f"Code {code}. Seeds are the first and last of the scenes; each is played once. "
        f"{steps / spent:.0f} control steps per CPU second, the expert's own thinking included.",
    )


if __name__ == "__main__":
    answer(main, Args)
