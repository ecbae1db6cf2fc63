"""A LIBERO suite as one Gymnasium environment, for the evaluator."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np

from lawm_policy.sim.libero_assets import prepare
from lawm_policy.sim.libero_env import LiberoEnv, shown_and_taken
from lawm_policy.sim.libero_protocol import LiberoProtocol, protocol_named, task_names
from lawm_policy.sim.libero_render import FilmRig
from lawm_policy.sim.libero_robot import panda_card
from lawm_policy.types import UserError

KEPT = 2  # compiled tasks a process holds, 90 MB each


class Tasks:
    """A process's compiled tasks: made when first asked for, up to `kept` of them."""

    def __init__(self, make: Callable[[str], LiberoEnv], kept: int = KEPT):
        self._make, self._kept = make, kept
        self.made: OrderedDict[str, LiberoEnv] = OrderedDict()  # the one that was used last at the end

    def __getitem__(self, name: str) -> LiberoEnv:
        if name not in self.made:
            if len(self.made) >= self._kept:
                self.made.popitem(last=False)[1].close()
                gc.collect()  # robosuite's objects refer to each other in circles
            self.made[name] = self._make(name)
        self.made.move_to_end(name)
        return self.made[name]


class LiberoSuiteEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """All tasks of a suite behind one reset, for the evaluator: `options={"task": ...}` chooses."""

    def __init__(
        self,
        suite: str,
        protocol: LiberoProtocol | str = "lawm",
        kept: int = KEPT,
        distractors: int = 0,
        **settings: Any,
    ):
        if distractors:
            raise UserError(f"expected no distractors in suite {suite}, found {distractors}: leave them out")
        self.suite, self._settings = suite, settings
        self.protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
        prepare()
        shown = shown_and_taken(self.protocol, **settings)
        self._cameras, _, self.action_space, self.observation_space = shown
        self._tasks = Tasks(lambda name: LiberoEnv(name, protocol=self.protocol, **settings), kept)
        self._task_now = task_names(suite)[0]
        self.render_now = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        task = (options or {}).get("task", self._task_now)
        env = self._tasks[task]  # refused before anything changes
        self._task_now = task
        env.render_now = self.render_now
        return env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._now.render_now = self.render_now
        return self._now.step(action)

    def render(self) -> Any:
        return self._now.render()

    def close(self) -> None:
        for env in self._tasks.made.values():
            env.close()

    @property
    def data(self) -> mujoco.MjData:
        return self._now.data

    def robot_card(self) -> dict[str, Any]:
        rules = self.protocol
        return panda_card(self._settings.get("command", "ee"), self._cameras, rules.flip, rules.visuals)

    def camera_rig(self, size: int) -> FilmRig:
        return self._now.camera_rig(size)

    @property
    def _now(self) -> LiberoEnv:
        return self._tasks[self._task_now]
