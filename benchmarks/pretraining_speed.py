"""How many frames a second does pretraining take in? Real steps (forward, backward, AdamW, EMA) on random
clips, by recipe, resolution, model size, batch and precision.

    python benchmarks/pretraining_speed.py --out benchmarks/results/pretraining_speed
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from harness import Target, answer, interval_of_median, write_result
from timing import random_clip, seconds_a_step

from lawm_policy.config import load_config
from lawm_policy.recipe import Recipe
from lawm_policy.stages.pretrain import PretrainConfig
from lawm_policy.training import TrainConfig


@dataclass(frozen=True)
class Args:
    """View-frames a second that pretraining takes in."""

    out: Path
    """where result.json and page.md go"""
    quick: bool = False
    """fewer cells, fewer steps"""
    threads: int = 2
    """CPU threads"""


@dataclass(frozen=True)
class Cell:
    recipe: str
    size: int = 64
    batch: int = 32
    precision: Literal["no", "bf16"] = "bf16"
    decode_steps: int = 0  # of 6
    deter: int = 512
    channels: int = 48


CELLS = (
    *(Cell(recipe, size) for size in (64, 128) for recipe in ("lawm", "inverse-kl", "variational")),
    *(Cell("inverse-kl", size, decode_steps=3) for size in (64, 128)),
    *(Cell("inverse-kl", batch=batch) for batch in (8, 128)),
    Cell("inverse-kl", precision="no"),
    Cell("inverse-kl", deter=256, channels=32),
    Cell("inverse-kl", deter=2048, channels=64),
)
QUICK = (Cell("inverse-kl", decode_steps=3), Cell("lawm", 128, batch=8))


def measure(cell: Cell, steps: int) -> dict[str, Any]:
    """Median over single steps of the real loop, the first ones left out (they load kernels)."""
    cfg = load_config(cell.recipe, PretrainConfig, stage="pretrain").recipe
    world = replace(cfg.world_model, decode_steps=cell.decode_steps, deter=cell.deter, channels=cell.channels)
    policy = replace(cfg.policy, size=cell.size)
    cfg = replace(cfg, policy=policy, world_model=world, world_share=1.0)  # every frame does all of the work
    recipe = Recipe(cfg)
    batch = random_clip(cell.batch, recipe)
    train = TrainConfig(
        steps=steps, batch_size=cell.batch, ema=0.998, precision=cell.precision, save_every=steps
    )
    seconds = seconds_a_step(recipe, batch, train)
    frames = batch.frames_BTVCHW[:, :, :, 0, 0, 0].numel()
    low, high = interval_of_median(list(frames / seconds))
    return {
        "recipe": cell.recipe,
        "size": cell.size,
        "batch": cell.batch,
        "precision": cell.precision,
        "decoded_steps": cell.decode_steps or cfg.policy.chunk,
        "parameters_m": round(sum(p.numel() for p in recipe.parameters()) / 1e6, 1),
        "frames_per_second": float(np.median(frames / seconds)),
        "interval": (low, high),
        "ms_per_step": float(1e3 * np.median(seconds)),
        "steps": len(seconds),
    }


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    rows = [measure(cell, 6 if args.quick else 14) for cell in (QUICK if args.quick else CELLS)]
    slowest = {
        size: min(
            (r for r in rows if r["size"] == size),
            key=lambda r: r["frames_per_second"],
            default=None,
        )
        for size in (64, 128)
    }
    goals = {64: ">= 200", 128: ">= 60"}
    targets = [
        Target(
            f"slowest setting at {size} px, frames/s", goals[size], row["frames_per_second"], row["interval"]
        )
        for size, row in slowest.items()
        if row is not None
    ]
    write_result(
        args.out,
        question="How many frames a second does pretraining take in?",
        seconds=time.monotonic() - started,
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=f"{args.threads} threads. A frame is one view at one moment; every clip has 7 moments and 2 "
        "views, all of which the model reads. Data are in memory: `loader.py` measures what brings them.",
    )


if __name__ == "__main__":
    answer(main, Args)
