"""What can be asked of `lawm collect`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from lawm_policy.sim.libero_protocol import TASK_COUNTS
from lawm_policy.sim.libero_robot import CONTROL_HZ
from lawm_policy.sim.suites import TABLETOP

SUITES = (TABLETOP, *TASK_COUNTS)
ONLY = {  # options that mean nothing to another suite, or another kind
    "play": TABLETOP,
    "play_seconds": TABLETOP,
    "shared_scenes": TABLETOP,
    "distractors": TABLETOP,
    "protocol": "LIBERO",
    "fps": "videos",
    "caption_rate": "videos",
}


@dataclass(frozen=True)
class CollectArgs:
    """Episodes by scripted experts, in the built-in tabletop or in LIBERO.

    demos: an episode store with images, states and commands at 20 Hz. videos: folders of mp4 without
    commands, named after who moves (arm, hand, play; panda in LIBERO), NAME.front.mp4 beside NAME.wrist.mp4,
    NAME.json (the scene, and the expert's attempt at it) and, where there is a caption, NAME.txt. Only
    episodes that succeed are kept. The same arguments give the same episodes, whatever the number of workers.
    """

    suite: Annotated[tyro.conf.Positional[Literal[SUITES]], tyro.conf.arg(metavar="SUITE")]  # type: ignore[valid-type]
    """Where: tabletop, libero_spatial, libero_object, libero_goal, libero_10 or libero_90."""
    out: Path
    """The folder to write."""
    kind: Literal["demos", "videos"] = "demos"
    """Labelled demonstrations, or unlabelled videos."""
    embodiment: Annotated[str, tyro.conf.arg(help_behavior_hint="(left out: arm6; LIBERO: panda)")] = ""
    """tabletop: arm5, arm6, arm7 or hand; for videos also several, separated by commas."""
    command: Annotated[
        Literal["joint", "ee"] | None, tyro.conf.arg(help_behavior_hint="(left out: joint; LIBERO: ee)")
    ] = None
    """Absolute joint targets, or steps of the hand's pose. LIBERO's stores have these and serve both: see
    data.command."""
    tasks: Annotated[
        str | None, tyro.conf.arg(help_behavior_hint="(left out: all; for videos of the tabletop train)")
    ] = None
    """tabletop: names, kinds, all, train (all but two), held_out; LIBERO: all, or numbers such as 0,3 or
    0-4."""
    episodes: int = 10
    """Episodes of each task."""
    play: int = 0
    """tabletop: episodes of motion without a task."""
    play_seconds: float = 10.0
    """tabletop: length of one of those."""
    seed: int = 0
    """The first scene."""
    shared_scenes: bool = False
    """tabletop: every task in the same scenes; else each episode has a scene of its own."""
    size: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(left out: 64; LIBERO: 128)")] = None
    """Pixels of the images' side (even)."""
    protocol: str = "lawm+fresh+lite"
    """LIBERO: where episodes begin, and how they are rendered."""
    fps: int = CONTROL_HZ
    """videos: frames a second, 20, 10, 5 or 4 (demonstrations always have 20)."""
    caption_rate: float = 1.0
    """videos: share of those of tasks that get a caption."""
    distractors: int = 0
    """tabletop: small things that move along the table's edges."""
    workers: int | str = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes; 0: none but this; ray://HOST:PORT on a Ray cluster."""
    resume: bool = False
    """Go on where this collection stopped."""
    force: bool = False
    """Replace an earlier collection, when the new one is complete (there has to be room for both)."""

    @property
    def pixels(self) -> int:
        """`size`, where it was left out too."""
        return (64 if self.suite == TABLETOP else 128) if self.size is None else self.size


class Slot(NamedTuple):
    """One episode to be: `task` may be `play`; `folder` is where it goes, relative to the output."""

    embodiment: str
    task: str
    seed: int
    folder: str

    @property
    def name(self) -> str:
        return f"{self.embodiment}-{self.task}-{self.seed:06d}"


class Played(NamedTuple):
    """What became of a slot: `episode` is a rollout in the scene it names, or None where it was given up."""

    episode: Any
    failures: int  # of the expert
    attempt: int = 0  # the one that succeeded, in that scene


def closing(perform: Any, envs: Mapping[str, Any]) -> Any:
    """`perform`, with a `close` that closes the simulators it has opened by then."""

    def close() -> None:
        for env in envs.values():
            env.close()

    perform.close = close
    return perform
