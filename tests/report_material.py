"""Folders like those that the stages leave, small and made up, for the report to show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lawm_policy.sim.film import write_mp4
from lawm_policy.sim.protocol import EPISODES, SUMMARY, VIDEO, Episode, Record, summarize
from lawm_policy.stages.evaluate import film_name

TASKS = {
    "open_drawer": "pull the drawer open",
    "place_red_yellow": "set the red cube inside the yellow bowl",
    "push_green": "slide the green block until it is on the pad",
    "place_green_yellow_then_close": "put the green block in the yellow bowl, then close the drawer",
}
VERSIONS = {
    "lawm_policy": "0.1.0",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "python": "3.11.7",
    "packages": {"mujoco": "3.3.2", "numpy": "2.4.6", "torch": "2.13.0+cpu"},
    "data": {"hands": "5f2e" * 16},
    "seeds": {"train": 0},
    "command": "lawm pretrain lawm --data data/hands --out runs/pretrained --train.steps 2000",
    "started": "2026-01-02T03:04:05Z",
    "hardware": {"cpu": "a processor", "cores": 2, "memory_gb": 7.8, "gpus": []},
}


def evaluation(
    folder: Path, rate: float, seed: int, films: bool = True, error: bool = False, **protocol
) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    records = [
        Record(
            suite="tabletop",
            task=task,
            init_state=200_000 + i,
            seed=0,
            success=None if error and i == 3 else bool(rng.random() < rate),
            steps=int(rng.integers(40, 150)),
            error="RuntimeError: no GL context (env.py:12)" if error and i == 3 else None,
            seconds=0.5,
            checkpoint_sha256=f"{seed:064x}",
            instruction=text,
        )
        for task, text in TASKS.items()
        for i in range(20)
    ]
    told = {
        "suite": "tabletop",
        "cameras": ["front", "wrist"],
        "resolution": 64,
        "execute": 8,
        "held_out": ["push_green"],
    }
    summary = {
        "complete": True,
        "protocol": told | protocol,
        "policy": {"run": str(folder), "checkpoint_sha256": f"{seed:064x}", "blind": False},
        "versions": VERSIONS,
        **summarize(records, told["held_out"]),
    }
    (folder / SUMMARY).write_text(json.dumps(summary))
    (folder / EPISODES).write_text("".join(json.dumps(vars(r)) + "\n" for r in records))
    if films:
        (folder / VIDEO).mkdir()
        for task in TASKS:
            film(folder / VIDEO / film_name(Episode(task, 200_000, 0)), rng)
    return folder


def film(path: Path, rng: np.random.Generator) -> None:
    """Blocks that slide over a table, twice side by side."""
    frames = []
    colours, starts = rng.integers(60, 220, (3, 3)), rng.integers(10, 90, (3, 2))
    for t in range(20):
        frame = np.full((128, 256, 3), (214, 205, 190), np.uint8)
        for colour, (y, x) in zip(colours, starts, strict=True):
            for shift in (0, 128):
                frame[y : y + 18, x + t + shift : x + t + 18 + shift] = colour
        frames.append(frame)
    write_mp4(path, frames, hz=10)


def training(folder: Path, steps: int = 1500) -> Path:
    from matplotlib.image import imsave

    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    lines = []
    for step in range(10, steps + 1, 10):
        loss = 4 * np.exp(-step / 200) + 0.08 + 0.02 * rng.standard_normal()
        lines.append(
            {"step": step, "split": "train", "loss": loss, "frames": loss * 0.9, "lr": 1e-4, "kl": 0.4}
        )
        if step % 100 == 0:
            lines.append(
                {"step": step, "split": "val", "loss": loss * 1.1, "frames": loss, "kl": 0.5 + step / 9e3}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99')
    (folder / "versions.json").write_text(json.dumps(VERSIONS))
    (folder / "strips").mkdir()
    for step in (500, steps):
        image = np.full((192 * 2, 64 * 14, 3), 235, np.uint8)
        for k in range(14):
            for row in range(6):
                image[row * 64 + 20 : row * 64 + 34, k * 64 + 8 + 3 * (k % 7) : k * 64 + 24 + 3 * (k % 7)] = (
                    60 * (row % 3 + 1)
                )
        imsave(folder / "strips" / f"step-{step:08d}.png", image)
    return folder


def benchmark(folder: Path) -> Path:
    folder.mkdir(parents=True)
    means = {
        "scratch": {3: 0.12, 10: 0.41, 30: 0.66},
        "inverse-kl": {3: 0.31, 10: 0.585, 30: 0.72},
        "lawm": {10: 0.49},
        "variational": {10: 0.56},
        "supervised": {10: 0.68},
        "blind": {10: 0.06},
    }
    rows = [
        {
            "arm": arm,
            "n": n,
            "mean": mean,
            "interval": [max(0, mean - 0.07), mean + 0.06],
            "seeds": 5,
            "episodes": 1000,
        }
        for arm, found in means.items()
        for n, mean in found.items()
    ]
    for row in rows:
        if row["n"] == 10 and row["arm"] != "scratch":
            row |= {
                "minus_scratch": row["mean"] - 0.41,
                "minus_scratch_interval": [row["mean"] - 0.5, row["mean"] - 0.3],
            }
            row["says"] = "what this arm is, in some words that a reader may want beside its name"
    rows.append({"arm": "hand-only", "n": 10, "seeds": 0, "mean": None})
    targets = [
        {
            "name": "best - scratch at n = 10, points",
            "goal": ">= 15",
            "value": 17.5,
            "interval": [9.1, 25.9],
            "met": True,
        },
        {
            "name": "share of the way to supervised",
            "goal": ">= 0.5",
            "value": 0.48,
            "interval": None,
            "met": False,
        },
        {"name": "hand-only videos", "goal": "> 0", "value": None, "interval": None, "met": None},
    ]
    result = {
        "question": "Does pretraining on unlabelled videos save demonstrations?",
        "notes": "Five draws of demonstrations and initialisations, the same for every arm.",
        "command": "python benchmarks/label_efficiency.py --out results",
        "versions": VERSIONS,
        "hardware": VERSIONS["hardware"],
        "seeds": [0, 1, 2, 3, 4],
        "seconds": 51234.5,
        "rows": rows,
        "targets": targets,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def everything(root: Path) -> list[str]:
    """One folder of each kind, as arguments of `lawm report`."""
    return [
        f"scratch={evaluation(root / 'evals' / 'a', 0.35, 1)}",
        f"pretrained={evaluation(root / 'evals' / 'b', 0.6, 2, error=True)}",
        str(benchmark(root / "label_efficiency")),
        str(training(root / "runs" / "pretrain")),
    ]
