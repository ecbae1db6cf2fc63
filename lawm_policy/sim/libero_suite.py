"""A LIBERO suite as one Gymnasium environment, for the evaluator."""

from __future__ import annotations

import gc
from collections import OrderedDict
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


class LiberoSuiteEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """All tasks of a suite behind one reset, for the evaluator: `options={"task": ...}` chooses.

    The compiled models stay, up to `kept` of them (90 MB each).
    """

    def __init__(
        self,
        suite: str,
        protocol: LiberoProtocol | str = "lawm",
        kept: int = 2,
        distractors: int = 0,
        **settings: Any,
    ):
        if distractors:
            raise UserError(f"expected no distractors in suite {suite}, found {distractors}: leave them out")
        self.suite, self._kept, self._settings = suite, kept, settings
        self.protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
        prepare()
        shown = shown_and_taken(self.protocol, **settings)
        self._cameras, _, self.action_space, self.observation_space = shown
        self._made: OrderedDict[str, LiberoEnv] = OrderedDict()
        self._task_now = task_names(suite)[0]
        self.render_now = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        task = (options or {}).get("task", self._task_now)
        self._task(task)
        self._task_now = task
        self._now.render_now = self.render_now
        return self._now.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._now.render_now = self.render_now
        return self._now.step(action)

    def render(self) -> Any:
        return self._now.render()

    def close(self) -> None:
        for env in self._made.values():
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
        return self._task(self._task_now)

    def _task(self, name: str) -> LiberoEnv:
        """Compiled when it is first needed: a worker's first task is seldom the suite's."""
        if name not in self._made:
            if len(self._made) >= self._kept:
                self._made.popitem(last=False)[1].close()
                gc.collect()  # robosuite's objects refer to each other in circles, 90 MB a task
            self._made[name] = LiberoEnv(name, protocol=self.protocol, **self._settings)
        self._made.move_to_end(name)
        return self._made[name]
