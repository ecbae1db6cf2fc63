"""Does the world model predict, and does it listen to z? On held-out clips of the study's pretraining runs,
each against an equally trained twin without z.

    python benchmarks/gates.py --out benchmarks/results/gates [--resume] [--recipes lawm,variational]

Pretraining runs are made where they are missing, as units of `label_efficiency.py`. `journal.jsonl` in the
output holds what a resumed run goes on from. It carries the hash of the code, and is refused under
another."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from controls import MODULES
from harness import Journal, Target, answer, write_result
from study import FULL, QUICK, Study
from units import StudyArgs

import lawm_policy
from lawm_policy import checkpoint, stats
from lawm_policy.config import from_dict
from lawm_policy.data.clips import ClipDataset
from lawm_policy.layers import to_unit
from lawm_policy.measures import paired_futures, psnr, z_use
from lawm_policy.policies.loading import load_pretrained, load_run
from lawm_policy.recipe import Recipe, RecipeConfig
from lawm_policy.sim.futures import paired_clips
from lawm_policy.sim.tabletop_env import TabletopEnv
from lawm_policy.stages.pretrain import PretrainConfig, clip_config
from lawm_policy.types import Clip

STEPS = (2, 4, 6)
CLIPS = 3  # of each held-out episode
NOTES = f"""Held-out clips, {CLIPS} of each episode; dB over pixels that moved, against the best of copy, mean
frame and the z-free twin: mean over episodes with Student's t; `lawm` on captioned clips from the first
second. Paired futures: from one simulated state, two instructions; the z of each must predict its own future
better than the other's (Wilson's interval, a pair is one draw). A recipe that reads z off the future passes
that by its nature; for `lawm` it is the test. Clips without text (play) are in rows of their own, and no
target judges them. One pretraining run a recipe."""
FUTURES_SEED = 110_000  # validation states, apart from those that tune learning rates


@dataclass(frozen=True)
class Args:
    """Prediction and the use of z, on held-out clips."""

    out: Path
    """where result.json and page.md go"""
    work: Path = Path("runs/label_efficiency")
    """the study's data and weights; a quick run has its own, in WORK-quick"""
    recipes: str = "inverse-kl,variational,lawm"
    """which, separated by commas"""
    resume: bool = False
    """go on where this run stopped"""
    quick: bool = False
    """the same code on less work; teaches nothing"""


def load_twin(folder: Path) -> Recipe:
    saved = load_run(folder, "pretrained")
    twin = MODULES["z-free"](from_dict(RecipeConfig, saved.meta["config"]["recipe"]))
    checkpoint.load_exactly(twin, saved.tensors("model"), folder)
    return twin.eval()


def held_out(stores: list[Path], folder: Path, each: int, **changes: Any) -> list[Clip]:
    """So many clips of each episode: first one of every episode, then another of every episode, ..."""
    cfg = from_dict(PretrainConfig, checkpoint.load(folder).meta["config"])
    data = ClipDataset(stores, replace(clip_config(cfg), shift=0, **changes), split="val")
    rng, of_N = np.random.default_rng(1), data.episodes()
    drawn = [rng.choice(np.flatnonzero(of_N == episode), each) for episode in np.unique(of_N)]
    clips = np.stack(drawn, 1).flatten()
    return [data.__getitems__(part.tolist()) for part in np.array_split(clips, -(-len(clips) // 32))]


def mean_frame(clips: list[Clip]) -> torch.Tensor:
    frames = torch.cat([to_unit(c.frames_BTVCHW[:, 0]) for c in clips])
    return frames.mean(0)


def over_episodes(rows: list[dict[str, float]], key: str, each: int) -> stats.Interval:
    """Mean over episodes of (model - key) in dB, by Student's t: clips of one episode are alike. Clips in
    which nothing moved are left out."""
    name, step = key.split("_", 1)
    gaps_RE = np.array([row[f"model_{step}"] - row[f"{name}_{step}"] for row in rows]).reshape(each, -1)
    there_RE = np.isfinite(gaps_RE)
    sum_E, count_E = np.where(there_RE, gaps_RE, 0.0).sum(0), there_RE.sum(0)
    return stats.seed_difference((sum_E[count_E > 0] / count_E[count_E > 0]).tolist())


def measure(recipe: Recipe, twin: Recipe, clips: list[Clip], judged: list[Clip], each: int) -> dict[str, Any]:
    """The use of z on `clips`, and the prediction of `judged` beside its three baselines. Both hold `each`
    clips of every episode."""
    use = z_use(recipe, clips)
    twin_use = z_use(twin, clips)
    rows = psnr(recipe, judged, twin=twin, mean_frame_VCHW=mean_frame(clips), steps=STEPS)
    row: dict[str, Any] = {
        "moving_mse_over_twin": use["moving_mse"] / twin_use["moving_mse"],
        "shuffled_cost": use["shuffled_cost"],
        "mean_cost": use["mean_cost"],
    }
    for step in STEPS:
        gaps = {other: over_episodes(rows, f"{other}_{step}", each) for other in ("copy", "mean", "twin")}
        best = min(gaps, key=lambda other: gaps[other].value)
        row |= {
            f"dB_over_best_{step}": gaps[best].value,
            f"interval_{step}": (gaps[best].low, gaps[best].high),
        }
        row |= {
            f"best_{step}": best,
            f"dB_over_copy_whole_{step}": over_episodes(rows, f"copy_{step}_whole", each).value,
        }
    return row


def futures(recipe: Recipe, count: int, size: int) -> dict[str, Any]:
    env = TabletopEnv(size=size)
    chunk = recipe.cfg.policy.chunk
    a, b = paired_clips(env, range(FUTURES_SEED, FUTURES_SEED + count), chunk, stride=4)
    env.close()
    right_B = paired_futures(recipe, a, b).float().mean(1)  # the two sides of a pair are not two draws
    interval = stats.wilson(float(right_B.sum()), len(right_B))
    return {"paired_futures": interval.value, "paired_futures_interval": (interval.low, interval.high)}


def measure_recipe(study: Study, name: str, quick: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is judged, and the same of clips without text."""
    stores = study.data()
    folder = study.pretraining(name)
    recipe, twin = load_pretrained(folder), load_twin(study.pretraining(f"{name}+z-free"))
    each = 1 if quick else CLIPS
    both = [stores["arm"], stores["hand"]]
    clips = held_out(both, folder, each)
    silent = held_out(both, folder, each, caption="absent")
    judged = clips
    if name == "lawm":
        judged = held_out([stores["arm"]], folder, each, early_seconds=1.0, caption="required")
    row = measure(recipe, twin, clips, judged, each)
    row |= futures(recipe, 4 if quick else 60, recipe.cfg.policy.size)
    apart = measure(recipe, twin, silent, silent, each)
    return {"recipe": name, "clips": "all"} | row, {"recipe": name, "clips": "without text"} | apart


def code_hash() -> str:
    """Of everything that may decide what is found."""
    digest = hashlib.sha256()
    package = Path(lawm_policy.__file__).parent
    for path in [*sorted(package.rglob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def main(args: Args) -> None:
    torch.set_num_threads(1)
    study = Study(*StudyArgs(args.out, args.work, args.quick).folders, QUICK if args.quick else FULL)
    code = code_hash() + (" quick" if args.quick else "")
    journal = Journal(args.out, code, resume=args.resume)
    done = {line["recipe"]: line for line in journal.lines}
    names = args.recipes.split(",")
    for name in (name for name in names if name not in done):
        started = time.monotonic()
        rows = measure_recipe(study, name, args.quick)
        done[name] = {"recipe": name, "rows": rows, "seconds": time.monotonic() - started}
        journal.add([done[name]])
    write_result(
        args.out,
        question="Does the world model predict, and does it listen to z?",
        seconds=sum(done[name]["seconds"] for name in names),
        seeds=[1, FUTURES_SEED],
        rows=[row for name in names for row in done[name]["rows"]],
        targets=[target for name in names for target in judge(name, done[name]["rows"][0])],
        notes=f"{NOTES} Code {code}.",
    )


def judge(name: str, row: dict[str, Any]) -> list[Target]:
    share, interval = row["paired_futures"], row["paired_futures_interval"]
    if name == "lawm":
        low = min(row[f"interval_{s}"][0] for s in STEPS)
        found = [
            Target("lawm: paired futures told apart", ">= 0.8", share, interval),
            Target("lawm: dB over the best baseline, lowest end of interval", "> 0", low),
        ]
    else:
        found = [
            Target(
                f"{name}: moving-pixel loss over the z-free twin's", "<= 0.9", row["moving_mse_over_twin"]
            ),
            Target(f"{name}: cost of shuffled z", ">= 0.1", row["shuffled_cost"]),
            Target(f"{name}: cost of mean z", ">= 0.1", row["mean_cost"]),
        ]
        for s in STEPS:
            value, interval = row[f"dB_over_best_{s}"], row[f"interval_{s}"]
            found.append(Target(f"{name}: dB over the best baseline, step {s}", ">= 0.5", value, interval))
    whole = min(row[f"dB_over_copy_whole_{s}"] for s in STEPS)
    return [*found, Target(f"{name}: dB over copy, whole frame, worst step", ">= 0", whole)]


if __name__ == "__main__":
    answer(main, Args)
