"""The pictures behind the label-efficiency study: where each arm succeeds, and how its held-out loss falls.

    python benchmarks/label_pictures.py [--work runs/label_efficiency]

Two are drawn from the committed units. Film strips of the pretrained world models come from the work folder,
while it is there."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import answer
from matplotlib.figure import Figure
from PIL import Image

from lawm_policy.sim.tabletop_tasks import TASKS

SHOWN = ("scratch", "scratch-longer", "lawm", "variational", "inverse-kl", "inverse-kl-longer", "supervised")
N = 10
STRIPS = {"inverse-kl": "world/strips", "variational": "strips", "lawm": "strips"}
STRIP_PIXELS = 900  # across


@dataclass(frozen=True)
class Args:
    """Draws what the study found."""

    out: Path = Path("benchmarks/results/label_efficiency")
    """the study's results; pictures/ in it is written"""
    work: Path = Path("runs/label_efficiency")
    """the study's work folder; what is not there is not drawn"""


def main(args: Args) -> None:
    cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((args.out / "units").glob(f"n{N}__*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        cells[cell["arm"]].append(cell)
    folder = args.out / "pictures"
    folder.mkdir(exist_ok=True)
    shown = {arm: cells[arm] for arm in SHOWN if arm in cells}
    by_task(shown, folder / "by_task.png")
    held_out(shown, folder / "held_out.png")
    for recipe, place in STRIPS.items():
        drawn = sorted((args.work / f"pretrain-{recipe}" / place).glob("*.png"))
        if drawn:
            small(drawn[-1], folder / f"strip_{recipe}.png")


def by_task(cells: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One point a seed, one group a task."""
    tasks = list(next(iter(cells.values()))[0]["successes"])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for k, (arm, found) in enumerate(cells.items()):
        x = np.arange(len(tasks)) + (k - (len(cells) - 1) / 2) * 0.8 / len(cells)
        rates_ST = np.array([[share(cell["successes"][task]) for task in tasks] for cell in found])
        axes.bar(x, rates_ST.mean(0), 0.7 / len(cells), label=arm, color=f"C{k}", alpha=0.6)
        axes.plot(np.tile(x, len(found)), rates_ST.flatten(), ".", color=f"C{k}", markersize=4)
    names = [task.replace("_", " ") + (" *" if TASKS[task].held_out else "") for task in tasks]
    axes.set_xticks(range(len(tasks)), names)
    axes.set(ylabel="success, %", ylim=(0, 105), title=f"n = {N}: a point is a seed, * in no video")
    axes.legend(fontsize=7, ncols=len(cells), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path, dpi=110)


def held_out(cells: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for k, (arm, found) in enumerate(cells.items()):
        for number, cell in enumerate(cell for cell in found if "held_out" in cell):
            steps = [int(step) for step in cell["held_out"]]
            losses = list(cell["held_out"].values())
            axes.plot(steps, losses, f"C{k}", lw=1, label=arm if number == 0 else None)
    axes.set(
        xscale="log", xlabel="step of fine-tuning", ylabel="held-out loss", title=f"n = {N}: one line a seed"
    )
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def share(marks: str) -> float:
    return 100 * marks.count("1") / len(marks)


def small(source: Path, path: Path) -> None:
    """The first two clips of a film strip, small enough to commit."""
    with Image.open(source) as image:
        half = image.crop((0, 0, image.width, image.height // 2)).convert("RGB")
    half.thumbnail((STRIP_PIXELS, STRIP_PIXELS))
    half.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    answer(main, Args)
