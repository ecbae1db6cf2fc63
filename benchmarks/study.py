"""The units of the label-efficiency study on the tabletop: data, pretraining, and cells (one arm, one n, one
seed)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from campaign import Arm, Campaign, Overrides, played, to_its_end
from controls import CHANGES, MODULES

from lawm_policy.config import load_config, to_dict
from lawm_policy.sim.protocol import SPLITS
from lawm_policy.stages.collect import CollectArgs
from lawm_policy.stages.collect import run as collect
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.stages.finetune import FinetuneConfig, finetune
from lawm_policy.stages.importing import ImportArgs
from lawm_policy.stages.importing import run as import_videos
from lawm_policy.stages.pretrain import PretrainConfig, pretrain

VIDEO_SEED, HAND_SEED, DEMO_SEED = 0, 20_000, 50_000  # first scenes; all below the validation states
TEST_STATES = 210_000  # nobody played these before the table: the quickstart has played from 200_000
CORES = os.cpu_count() or 1  # data come first and alone; every other unit is one thread of Python


@dataclass(frozen=True)
class Sizes:
    """Fixed by a pilot, once, before the seeds of the table are run."""

    tasks: str = "all"
    video_tasks: str = "train"
    arm_videos: int = 60  # a task
    hand_videos: int = 15  # a task
    play_videos: int = 60  # an embodiment
    demos: int = 60  # a task, from which each seed draws n
    states: int = 18  # initial states a task in each cell
    pretrain: Overrides = ()
    recipes: tuple[tuple[str, Overrides], ...] = ()  # more for one recipe: as many minutes for each
    supervised: Overrides = ()
    finetune: Overrides = ()


FULL = Sizes(
    tasks="drawer,place_red_yellow,place_green_purple,place_blue_yellow",  # the last is in no video
    video_tasks="place_red_yellow,place_red_purple,place_green_yellow,place_green_purple,place_blue_purple,drawer",
    arm_videos=100,
    hand_videos=25,
    play_videos=15,
    demos=45,
    states=14,
    pretrain=(
        ("train.steps", "3000"),
        ("train.batch_size", "64"),
        ("train.eval_every", "300"),
        ("train.save_every", "150"),
        ("recipe.world_model.decode_steps", "3"),
    ),
    recipes=(
        ("inverse-kl", (("world.steps", "2000"), ("train.steps", "1800"))),  # later the policy overfits
        ("lawm", (("train.batch_size", "24"),)),
    ),
    supervised=(("train.steps", "3000"), ("train.batch_size", "64"), ("train.eval_every", "300")),
    finetune=(("train.steps", "600"), ("train.batch_size", "64"), ("train.eval_every", "150")),
)
QUICK = Sizes(
    tasks="push_red,open_drawer",
    video_tasks="push_red,open_drawer",
    arm_videos=4,
    hand_videos=2,
    play_videos=2,
    demos=36,  # 30 to learn from
    states=2,
    pretrain=(("train.steps", "10"), ("train.batch_size", "8"), ("validation_clips", "16")),
    recipes=(("inverse-kl", (("world.steps", "5"),)),),
    supervised=(("train.steps", "10"), ("train.batch_size", "8"), ("validation_batches", "1")),
    finetune=(("train.steps", "10"), ("train.batch_size", "8"), ("validation_batches", "1")),
)


@dataclass(frozen=True)
class Study(Campaign):
    script: ClassVar[str] = "label_efficiency"

    sizes: Sizes

    # Data.

    def data(self) -> dict[str, Path]:
        """Everything that is trained on, made where it is missing. `pool` holds the very episodes of the
        arm's videos, with their commands: for the supervised arm alone."""
        s, work = self.sizes, self.work
        stores = {name: work / f"store-{name}" for name in ("arm", "hand")} | {
            "pool": work / "pool",
            "demos": work / "demos",
        }
        self._collect(work / "videos-arm", "arm6", s.video_tasks, s.arm_videos, VIDEO_SEED, s.play_videos)
        self._collect(work / "videos-hand", "hand", s.video_tasks, s.hand_videos, HAND_SEED, s.play_videos)
        self._collect(stores["pool"], "arm6", s.video_tasks, s.arm_videos, VIDEO_SEED)
        self._collect(stores["demos"], "arm6", s.tasks, s.demos, DEMO_SEED)
        for name in ("arm", "hand"):
            source = work / f"videos-{name}"
            arguments = ImportArgs("videos", (source,), stores[name], fps="10", size=64, workers=CORES)
            imported = partial(import_videos, replace(arguments, resume=arguments.out.exists()))
            self.once(f"import-{name}", imported)
        return stores

    def _collect(
        self, out: Path, body: str, tasks: str, episodes: int, seed: int, play: int | None = None
    ) -> None:
        arguments = CollectArgs(
            "tabletop",
            out,
            kind="demos" if play is None else "videos",
            embodiment=body,
            tasks=tasks,
            episodes=episodes,
            play=play or 0,
            seed=seed,
            fps=20 if play is None else 10,
            workers=CORES,
        )
        self.once(f"collect-{out.name}", lambda: collect(replace(arguments, resume=out.exists())))

    # Pretraining.

    def pretraining(self, name: str) -> Path:
        out = self.work / f"pretrain-{name}"
        self.once(f"pretrain-{name}", partial(self._pretrain, name, out))
        return out

    def _pretrain(self, name: str, out: Path) -> None:
        stores = self.data()
        resume = out.exists()
        if name == "supervised":
            supervised = load_config("default", FinetuneConfig, self.sizes.supervised, stage="finetune")
            to_its_end(finetune(supervised, stores["pool"], out, resume=resume))
            return
        recipe, _, control = name.partition("+")
        overrides = self.sizes.pretrain + dict(self.sizes.recipes).get(recipe, ())
        if control == "untrained":
            overrides = (*overrides, ("train.steps", "1"), ("train.lr", "1e-12"), ("train.warmup", "0"))
        cfg = load_config(recipe, PretrainConfig, overrides, stage="pretrain")
        if control == "z-free" and cfg.world.steps:  # nothing to clone
            cfg = replace(cfg, train=replace(cfg.train, **to_dict(cfg.world)))
        if control in (*MODULES, "untrained"):
            cfg = replace(cfg, world=replace(cfg.world, steps=0))
        data = (stores["hand"],) if control == "hand-only" else (stores["arm"], stores["hand"])
        module, change = MODULES.get(control), CHANGES.get(control)
        to_its_end(pretrain(cfg, data, out, module=module, change=change, resume=resume))

    # Cells.

    def cell(
        self, arm: Arm, n: int, draw: int, split: Literal["val", "test"], settings: Overrides
    ) -> dict[str, Any]:
        """Fine-tunes and plays one cell; draw and seed of initialisation are one number."""
        name = f"{split}-{arm.name}-n{n}-seed{draw}" + "".join(f"-{k}={v}" for k, v in settings)
        fitted = self.fit(name, arm, self.data()["demos"], (*self.sizes.finetune, *settings), n, draw)
        first = TEST_STATES if split == "test" else SPLITS[split]
        grid = EvaluateArgs(
            str(fitted.run),
            fitted.run.with_name(f"{name}-from{first}"),
            tasks=self.sizes.tasks,
            episodes=self.sizes.states,
            split=split,
            seed_base=first,
            workers=1,
        )
        cell = {"arm": arm.name, "n": n, "seed": draw, "split": split, "first_state": first}
        cell |= {"settings": dict(settings)}
        return cell | fitted.told | {"successes": played(grid)}
