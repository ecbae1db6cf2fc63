"""A world of a few numbers, and policies for it: spawned workers import it by name."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np

from lawm_policy.policies.ensembling import Ensemble
from lawm_policy.sim.libero_premise import BrokenPremise
from lawm_policy.sim.protocol import Suite
from lawm_policy.types import UserError

CARD = {
    "embodiment": "arm6",
    "command": "joint",
    "action_names": ["x", "y"],
    "state_names": ["x", "y"],
    "rate": 20,
}


class PointEnv(gymnasium.Env):
    """A point walks to the goal in its image; harder goals are out of reach within the limit."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(
        self, embodiment="arm6", command="joint", size=8, cameras=("front",), distractors=0, images=True
    ):
        if embodiment != "arm6":
            raise ValueError(f"no embodiment {embodiment}")
        self.size, self.cameras, self.images, self.render_now, self.rendered = size, cameras, images, True, 0

    def robot_card(self):
        return dict(CARD)

    def reset(self, *, seed=None, options=None):
        rng = np.random.default_rng([seed, len(options["task"])])
        self.place, self.goal, self.count = np.zeros(2), rng.uniform(-1.4, 1.4, 2), 0
        self.task = options["task"]
        return self._look(), {"instruction": f"do {self.task}", "task": self.task, "success": False}

    def step(self, action):
        self.place += np.clip(action, -1, 1) * 0.05
        self.count += 1
        success = bool(np.abs(self.place - self.goal).max() < 0.05)
        info = {"instruction": f"do {self.task}", "task": self.task, "success": success}
        return self._look(), 0.0, success, self.count >= 24, info

    def _look(self):
        image = np.zeros((self.size, self.size, 3), np.uint8)
        if self.render_now and self.images:
            self.rendered += 1
            image[0, 0, :2] = np.round((self.goal + 1.5) * 80)
        return {"images": {name: image for name in self.cameras}, "state": self.place.astype(np.float32)}


def choose(words: str) -> tuple[str, ...]:
    names = ("near", "far", "other")
    if words != "all" and not set(words.split(",")) <= {*names}:
        raise UserError(f"expected a task, found {words}")
    return tuple(name for name in names if words == "all" or name in words.split(","))


def suite() -> Suite:
    return Suite(
        "point",
        {"near": 24, "far": 24, "other": 24},
        ("other",),
        choose,
        PointEnv,
        ("front", "wrist"),
        ("numpy",),
    )


class BrokenStart(PointEnv):
    """What is far begins in no episode, once."""

    def reset(self, *, seed=None, options=None):
        if options["task"] == "far" and seed % 2:
            raise BrokenPremise("the goal fell over")
        return super().reset(seed=seed, options=options)


def suite_with_a_broken_start() -> Suite:
    return replace(suite(), make=BrokenStart)


class Walker:
    """Walks to the goal that it sees, with a step of its own chance."""

    cameras, size, execute, robot, sha256 = ("front",), 8, 4, CARD, "walker"

    def __init__(self, run=""):
        self.run = run

    def reset(self):
        self.memory = 0

    def act(self, observation):
        goal = observation["images"]["front"][0, 0, :2] / 80 - 1.5
        towards = np.sign(goal - observation["state"]) * np.random.uniform(0.5, 1.0)  # noqa: NPY002
        return np.tile(towards, (6, 1))


class Bad(Walker):
    """Says nonsense, raises, hangs, or kills its worker; `run` says where and how."""

    def act(self, observation):
        if "other" in observation["instruction"]:
            match self.run.partition(":"):
                case "nan", _, _:
                    return np.full((6, 2), np.nan)
                case "shape", _, _:
                    return np.zeros((6, 3))
                case "raise", _, _:
                    raise RuntimeError("two\nlines")
                case "stop", _, _:
                    next(iter(()))
                case "die", _, _:
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang", _, _:
                    time.sleep(100)
                case "raise_once", _, flag if not Path(flag).exists():
                    Path(flag).touch()
                    raise RuntimeError("once")
        return super().act(observation)


class Changing(Walker):
    """Another one whenever it is loaded again."""

    def __init__(self, run=""):
        self.sha256 = "later" if Path(run).exists() else "walker"
        Path(run).touch()


class Crowd:
    """Walks to the goals that it sees, many at a time. `run` is how many, or "raise", "hang" at `other`."""

    cameras, size, execute, robot, sha256 = ("front",), 8, 4, CARD, "crowd"

    def __init__(self, run=""):
        self.run, self.ensemble = run, Ensemble(0.5, 3, 4)

    def reset(self):
        self.ensemble = self.ensemble.fresh()

    def act(self, observation):
        return self.ensemble(self.act_batch([observation] * int(self.run or 1))[0])

    def act_batch(self, observations):
        if self.run == "raise" and any("other" in o["instruction"] for o in observations):
            raise RuntimeError("no answer for other")
        if self.run == "hang" and any("other" in o["instruction"] for o in observations):
            time.sleep(100)
        assert len(observations) == int(self.run) if self.run.isdigit() else True
        goal_B2 = np.stack([o["images"]["front"][0, 0, :2] for o in observations]) / 80 - 1.5
        way_B2 = goal_B2 - np.stack([o["state"] for o in observations])
        return np.repeat((0.7 * np.sign(way_B2))[:, None], 6, axis=1) * np.linspace(1, 0.5, 6)[:, None]


def blue(run):
    return SimpleNamespace(cameras=("blue",), size=8, execute=4, robot=CARD, sha256="x")


def three_joints(run):
    card = {**CARD, "action_names": ["x", "y", "z"]}
    return SimpleNamespace(cameras=("front",), size=8, execute=4, robot=card, sha256="x")


def four_hands(run):
    card = {**CARD, "embodiment": "hands"}
    return SimpleNamespace(cameras=("front",), size=8, execute=4, robot=card, sha256="x")


class Witness:
    """Leaves a digest of everything that it saw in an episode in the folder `run`, in a file named after what
    it saw first."""

    def __init__(self, run=""):
        self.folder = run

    def reset(self):
        self.seen, self.name = hashlib.sha256(), ""

    def saw(self, observation):
        for view in (*observation["images"].values(), observation["state"]):
            self.seen.update(view.tobytes())
        self.name = self.name or f"{observation['instruction']} {self.seen.hexdigest()}"
        if self.folder:
            Path(self.folder).mkdir(exist_ok=True)
            Path(self.folder, self.name).write_text(self.seen.hexdigest())


def witnessed(folder):
    """What every episode saw: its first look, and all of them."""
    return sorted((path.name, path.read_text()) for path in Path(folder).iterdir())


class Wanderer(Witness):
    """Moves the tabletop's arm about from where it is, by the draw of its episode."""

    cameras, size, execute, sha256 = ("front", "wrist"), 32, 8, "wanderer"

    def __init__(self, run=""):
        from lawm_policy.sim.tabletop_env import TabletopEnv

        super().__init__(run)
        self.robot = TabletopEnv(images=False).robot_card()

    def act(self, observation):
        self.saw(observation)
        steps = np.random.normal(0, 0.1, (8, 6)).cumsum(0)  # noqa: NPY002
        return np.concatenate([observation["state"][:6] + steps, np.zeros((8, 1))], 1)


def slow(run):
    walker = Walker()
    act = walker.act
    walker.act = lambda observation: (time.sleep(0.05), act(observation))[1]
    return walker


# --- jobs for the worker pool -------------------------------------------------------------------


def squares(log=""):
    """Squares; negative numbers raise, 1000 kills the worker, 2000 hangs, 3000 dies once."""
    state = {"clean": True}

    def work(x):
        if log:
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {x}\n")
        if x < 0:
            state["clean"] = False
            raise ValueError(f"negative {x}")
        if x == 1000:
            os._exit(3)
        if x == 2000:
            time.sleep(100)
        if x == 3000 and not Path(f"{log}.died").exists():
            Path(f"{log}.died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x * x if state["clean"] else "dirty"

    return work


def asking():
    """Asks for two numbers and multiplies them; what it is not told is its error. 1000 dies while it asks."""

    def work(x):
        if x == 1000:
            os._exit(3)
        first = yield x
        second = yield -x
        return first * second

    return work


def mistaken():
    raise UserError("expected a run, found none: make one")


def faulty():
    raise KeyError("missing part")


def dead():
    os._exit(7)
