"""Does the world model predict, and does it listen to z? Gate 2 of the design, on held-out clips of the
study's pretraining runs, each against an equally trained twin without z.

    python benchmarks/gates.py --out benchmarks/results/gates [--recipes inverse-kl,lawm,variational]

Pretraining runs are made where they are missing, as units of `label_efficiency.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from controls import MODULES
from harness import Target, answer, write_result
from study import FULL, QUICK, Study

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
NOTES = """Held-out clips; dB over pixels that moved, against the best of copy, mean frame and the z-free
twin: mean over clips with Student's t; `lawm` on captioned clips from the first second. Paired futures: from
one simulated state, two instructions; the z of each must predict its own future better than the other's. A
recipe that reads z off the future passes that by its nature; for `lawm` it is the test."""
FUTURES_SEED = 110_000  # validation states, apart from those that tune learning rates


@dataclass(frozen=True)
class Args:
    """Prediction and the use of z, on held-out clips."""

    out: Path
    """where result.json and page.md go"""
    work: Path = Path("runs/label_efficiency")
    """the study's data and weights"""
    recipes: str = "inverse-kl,variational,lawm"
    """which, separated by commas"""
    quick: bool = False
    """the same code on less work; teaches nothing"""


def load_twin(folder: Path) -> Recipe:
    saved = load_run(folder, "pretrained")
    twin = MODULES["z-free"](from_dict(RecipeConfig, saved.meta["config"]["recipe"]))
    checkpoint.load_exactly(twin, saved.tensors("model"), folder)
    return twin.eval()


def held_out(stores: list[Path], folder: Path, count: int, **changes: Any) -> list[Clip]:
    cfg = from_dict(PretrainConfig, checkpoint.load(folder).meta["config"])
    data = ClipDataset(stores, replace(clip_config(cfg), shift=0, **changes), split="val")
    return [data.batch(i, 32, seed=1) for i in range(count)]


def mean_frame(clips: list[Clip]) -> torch.Tensor:
    frames = torch.cat([to_unit(c.frames_BTVCHW[:, 0]) for c in clips])
    return frames.mean(0)


def over_clips(rows: list[dict[str, float]], key: str) -> stats.Interval:
    """Mean over clips of (model - key) in dB, by Student's t; clips in which nothing moved are left out."""
    name, step = key.split("_", 1)
    gaps = [row[f"model_{step}"] - row[f"{name}_{step}"] for row in rows]
    return stats.seed_difference([g for g in gaps if np.isfinite(g)])


def measure(name: str, recipe: Recipe, twin: Recipe, clips: list[Clip], early: list[Clip]) -> dict[str, Any]:
    use = z_use(recipe, clips)
    twin_use = z_use(twin, clips)
    judged = early if name == "lawm" else clips
    rows = psnr(recipe, judged, twin=twin, mean_frame_VCHW=mean_frame(clips), steps=STEPS)
    row: dict[str, Any] = {
        "recipe": name,
        "moving_mse_over_twin": use["moving_mse"] / twin_use["moving_mse"],
        "shuffled_cost": use["shuffled_cost"],
        "mean_cost": use["mean_cost"],
    }
    for step in STEPS:
        gaps = {other: over_clips(rows, f"{other}_{step}") for other in ("copy", "mean", "twin")}
        best = min(gaps, key=lambda other: gaps[other].value)
        row |= {
            f"dB_over_best_{step}": gaps[best].value,
            f"interval_{step}": (gaps[best].low, gaps[best].high),
        }
        row |= {
            f"best_{step}": best,
            f"dB_over_copy_whole_{step}": over_clips(rows, f"copy_{step}_whole").value,
        }
    return row


def futures(recipe: Recipe, count: int, size: int) -> dict[str, Any]:
    env = TabletopEnv(size=size)
    chunk = recipe.cfg.policy.chunk
    a, b = paired_clips(env, range(FUTURES_SEED, FUTURES_SEED + count), chunk, stride=4)
    env.close()
    right = paired_futures(recipe, a, b).flatten()
    interval = stats.wilson(int(right.sum()), len(right))
    return {"paired_futures": interval.value, "paired_futures_interval": (interval.low, interval.high)}


def main(args: Args) -> None:
    torch.set_num_threads(1)
    started = time.monotonic()
    study = Study(args.out, args.work, QUICK if args.quick else FULL)
    stores = study.data()
    rows, targets = [], []
    for name in args.recipes.split(","):
        folder = study.pretraining(name)
        recipe, twin = load_pretrained(folder), load_twin(study.pretraining(f"{name}+z-free"))
        size = recipe.cfg.policy.size
        batches = 1 if args.quick else 8
        clips = held_out([stores["arm"], stores["hand"]], folder, batches)
        early = held_out([stores["arm"]], folder, batches, early_seconds=1.0, caption="required")
        row = measure(name, recipe, twin, clips, early) | futures(recipe, 4 if args.quick else 60, size)
        rows.append(row)
        targets += judge(name, row)
    write_result(
        args.out,
        question="Does the world model predict, and does it listen to z?",
        seconds=time.monotonic() - started,
        seeds=[1, FUTURES_SEED],
        rows=rows,
        targets=targets,
        notes=NOTES,
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
