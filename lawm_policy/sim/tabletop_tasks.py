"""What can be asked on the tabletop: tasks, the English that asks for them, and when they are done.

A task is one or two goals. All goals are tested on the simulator's state, and a task is done when all of
its goals have held together for `HOLD_STEPS` control steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lawm_policy.config import nearest
from lawm_policy.sim.tabletop_scene import BLOCKS, BOWL_RADIUS, BOWLS, DRAWER_FRONT, DRAWER_TRAVEL
from lawm_policy.types import UserError

HOLD_STEPS = 5  # 0.25 s
OPENED, CLOSED = DRAWER_TRAVEL - 0.015, 0.012
ON_PAD = 0.030  # a block's centre to the pad's


@dataclass(frozen=True)
class World:
    """What goals and experts read from the simulator."""

    blocks: dict[str, np.ndarray]  # colour -> (3,) centre
    yaws: dict[str, float]  # colour -> yaw of the block
    speeds: dict[str, float]  # colour -> metres a second
    bowls: dict[str, np.ndarray]  # colour -> (3,)
    pad: np.ndarray  # (3,)
    drawer_place: np.ndarray  # (3,) of the housing
    drawer: float  # how far it is open, metres
    opening: float  # of the gripper, 0 closed .. 1 open
    gripper: np.ndarray  # (3,) of the point between the fingertips
    yaw: float  # of the gripper


@dataclass(frozen=True)
class Goal:
    """`kind` of relation, its `block` (or "") and `target` (a bowl, "pad", "open", "closed", "drawer")."""

    kind: str
    block: str = ""
    target: str = ""

    def holds(self, world: World) -> bool:
        return _HOLDS[self.kind](world, self)


@dataclass(frozen=True)
class Task:
    name: str
    kind: str  # place | push | drawer | two_step
    goals: tuple[Goal, ...]
    paraphrases: tuple[str, ...]
    step_limit: int  # at 20 Hz
    held_out: bool = False  # never in pretraining videos

    def done(self, world: World) -> bool:
        """At this instant; the environment adds the hold time."""
        return all(goal.holds(world) for goal in self.goals)


def _released(world: World, block: str) -> bool:
    """The gripper has let go: it is open, or away from the block."""
    return world.opening > 0.62 or bool(np.linalg.norm(world.gripper - world.blocks[block]) > 0.06)


def _in_bowl(world: World, goal: Goal) -> bool:
    offset = world.blocks[goal.block] - world.bowls[goal.target]
    inside = bool(np.linalg.norm(offset[:2]) < BOWL_RADIUS * 0.75) and offset[2] < 0.040
    return inside and world.speeds[goal.block] < 0.10 and _released(world, goal.block)


def _on_pad(world: World, goal: Goal) -> bool:
    block = world.blocks[goal.block]
    near = bool(np.linalg.norm(block[:2] - world.pad[:2]) < ON_PAD) and block[2] < 0.028
    return near and world.speeds[goal.block] < 0.05


def _drawer(world: World, goal: Goal) -> bool:
    return world.drawer > OPENED if goal.target == "open" else world.drawer < CLOSED


def in_drawer(world: World, block: str) -> bool:
    """Whether the block lies in the tray, wherever the tray is."""
    offset = world.blocks[block] - world.drawer_place
    return bool(
        -DRAWER_FRONT < offset[0] - world.drawer < DRAWER_FRONT
        and abs(offset[1]) < 0.05
        and offset[2] < 0.045
    )


def _in_drawer(world: World, goal: Goal) -> bool:
    return in_drawer(world, goal.block) and _released(world, goal.block)


_HOLDS: dict[str, Callable[[World, Goal], bool]] = {
    "in_bowl": _in_bowl,
    "on_pad": _on_pad,
    "drawer": _drawer,
    "in_drawer": _in_drawer,
}


def graspable(world: World, name: str) -> bool:
    """Whether the block lies free on the table, where the gripper can take it."""
    block = world.blocks[name]
    on_table = block[2] < 0.028 and -0.16 < block[0] < 0.17 and abs(block[1]) < 0.235
    free = not in_drawer(world, name) and all(
        np.linalg.norm(block[:2] - bowl[:2]) > BOWL_RADIUS + 0.02 for bowl in world.bowls.values()
    )
    return bool(on_table and free)


_PLACE = (
    "put the {block} block in the {bowl} bowl",
    "place the {block} cube into the {bowl} bowl",
    "pick up the {block} block and drop it in the {bowl} bowl",
    "move the {block} block to the {bowl} bowl",
    "drop the {block} cube in the {bowl} bowl",
    "grab the {block} block and put it into the {bowl} bowl",
    "the {block} block goes in the {bowl} bowl",
    "set the {block} cube inside the {bowl} bowl",
)
_PUSH = (
    "push the {block} block onto the pad",
    "slide the {block} cube to the pad",
    "push the {block} cube over to the cyan pad",
    "move the {block} block onto the pad by pushing it",
    "shove the {block} block onto the cyan pad",
    "slide the {block} block until it is on the pad",
)
_OPEN = (
    "open the drawer",
    "pull the drawer open",
    "pull out the drawer",
    "slide the drawer open",
    "open the wooden drawer all the way",
    "pull the handle to open the drawer",
)
_CLOSE = (
    "close the drawer",
    "push the drawer shut",
    "shut the drawer",
    "slide the drawer closed",
    "push the drawer all the way in",
    "close the wooden drawer",
)
_PLACE_THEN_CLOSE = (
    "put the {block} block in the {bowl} bowl, then close the drawer",
    "place the {block} cube into the {bowl} bowl and shut the drawer",
    "drop the {block} block in the {bowl} bowl and then close the drawer",
    "first move the {block} cube to the {bowl} bowl, then push the drawer shut",
    "after putting the {block} block in the {bowl} bowl, close the drawer",
    "set the {block} cube inside the {bowl} bowl, then slide the drawer closed",
)
_STOW = (
    "put the {block} block in the drawer and close it",
    "place the {block} cube into the drawer, then shut it",
    "drop the {block} block in the drawer and push it closed",
    "store the {block} cube in the drawer and close the drawer",
    "first put the {block} block into the drawer, then close the drawer",
    "move the {block} cube into the drawer and slide it shut",
)


def _phrases(templates: tuple[str, ...], block: str = "", bowl: str = "") -> tuple[str, ...]:
    return tuple(template.format(block=block, bowl=bowl) for template in templates)


def _make_tasks() -> dict[str, Task]:
    tasks = [
        Task(
            name=f"place_{block}_{bowl}",
            kind="place",
            goals=(Goal("in_bowl", block, bowl),),
            paraphrases=_phrases(_PLACE, block, bowl),
            step_limit=150,
            held_out=(block, bowl) == ("blue", "yellow"),
        )
        for block in BLOCKS
        for bowl in BOWLS
    ]
    tasks += [
        Task(
            name=f"push_{block}",
            kind="push",
            goals=(Goal("on_pad", block, "pad"),),
            paraphrases=_phrases(_PUSH, block),
            step_limit=140,
            held_out=block == "green",
        )
        for block in BLOCKS
    ]
    opened, closed = Goal("drawer", target="open"), Goal("drawer", target="closed")
    tasks += [
        Task("open_drawer", "drawer", (opened,), _OPEN, step_limit=100),
        Task("close_drawer", "drawer", (closed,), _CLOSE, step_limit=90),
        Task(
            "place_green_yellow_then_close",
            "two_step",
            (Goal("in_bowl", "green", "yellow"), closed),
            _phrases(_PLACE_THEN_CLOSE, "green", "yellow"),
            step_limit=240,
        ),
        Task(
            "place_red_purple_then_close",
            "two_step",
            (Goal("in_bowl", "red", "purple"), closed),
            _phrases(_PLACE_THEN_CLOSE, "red", "purple"),
            step_limit=240,
        ),
        Task(
            "stow_blue",
            "two_step",
            (Goal("in_drawer", "blue", "drawer"), closed),
            _phrases(_STOW, "blue"),
            step_limit=240,
        ),
    ]
    return {task.name: task for task in tasks}


TASKS: dict[str, Task] = _make_tasks()


def select_tasks(words: str) -> tuple[str, ...]:
    """Names from a comma-separated list of names, kinds, `all`, `held_out`, `train` (all others)."""
    chosen: list[str] = []
    for word in words.split(","):
        word = word.strip()
        if word == "all":
            found = list(TASKS)
        elif word == "train":
            found = [name for name, task in TASKS.items() if not task.held_out]
        elif word == "held_out":
            found = [name for name, task in TASKS.items() if task.held_out]
        elif word in TASKS:
            found = [word]
        else:
            found = [name for name, task in TASKS.items() if task.kind == word]
        if not found:
            known = ["all", "train", "held_out", *(task.kind for task in TASKS.values()), *TASKS]
            raise UserError(f"expected tasks of the tabletop, found {word!r}: {nearest(word, {*known})}")
        chosen += [name for name in found if name not in chosen]
    return tuple(chosen)
