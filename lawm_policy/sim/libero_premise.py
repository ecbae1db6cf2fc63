"""Whether an episode may begin: the task is not done yet, and things are where the problem says.

A state that does not hold its premise after settling (an object fell, flew off, or the goal is reached
already) says nothing about a policy: it becomes an error record, never a failure.

The limits lie outside what LIBERO's own stored states do under MuJoCo 3.3.2: 1.5 cm across in most tasks
(in libero_spatial-0 a bowl slides off the ramekin's rim, up to 6 cm), 16 cm down (many begin in the air),
15 cm up (some begin inside the floor, and bounce), 16 degrees. Of 800 that were tried, three are beyond them:
libero_spatial-2 state 18 (a bowl turns by 39 degrees), libero_10-0 state 2 (moved by 10 cm) and libero_10-3
state 19 (a bottle rolls 26 cm).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

ACROSS, DOWN, UP = 0.08, 0.25, 0.20  # metres that a thing may move by while it settles
TURN = 30.0  # degrees
FASTEST = 2.0  # metres a second that a thing may have after it
BESIDE = 0.05  # metres outside its region, or off the middle of what carries it


class BrokenPremise(RuntimeError):
    """The episode cannot begin: its initial state does not hold."""

    harmless = True  # the next one can, in the same environment


class Diverged(RuntimeError):
    """Commands drove the simulation apart: numbers that are none."""


class Premise:
    """Of one task, on one simulation (LIBERO's domain object)."""

    def __init__(self, sim: Any) -> None:
        self._sim = sim
        self._start: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._slack: dict[str, float] = {}

    def remember(self, slack: Mapping[str, float] | None = None) -> None:
        """Where things are before they settle. `slack`: metres outside its region that one was put."""
        self._slack = dict(slack or {})
        self._start = {name: self._pose(name) for name in self._sim.objects_dict}

    def broken(self) -> str | None:
        """What is wrong, in a few words."""
        data = self._sim.sim.data._data
        if not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
            return "the simulation diverged"
        if self._sim._check_success():
            return "the goal is reached already"
        for name in self._start:
            if found := self._unsettled(name):
                return f"{name} {found}"
        for said in self._sim.parsed_problem["initial_state"]:
            if found := self._untrue(said):
                return f"expected ({' '.join(said)}), found {found}"
        return None

    def _unsettled(self, name: str) -> str | None:
        place, turn_33 = self._pose(name)
        before, turn_before_33 = self._start[name]
        change = place - before
        across = float(np.linalg.norm(change[:2]))
        if across > ACROSS or not -DOWN < change[2] < UP:
            return f"moved {100 * across:.0f} cm across and {100 * change[2]:+.0f} cm in height"
        cosine = (np.trace(turn_33 @ turn_before_33.T) - 1) / 2
        if (angle := float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))) > TURN:
            return f"turned by {angle:.0f} degrees"
        velocity = self._sim.sim.data._data.cvel[self._sim.obj_body_id[name]][3:]
        if (speed := float(np.linalg.norm(velocity))) > FASTEST:
            return f"moves at {speed:.1f} m/s"
        return None

    def _untrue(self, said: list[str]) -> str | None:
        """Of one sentence of the problem's :init."""
        sim = self._sim
        if len(said) == 2:
            return None if sim._eval_predicate(said) else "it is not"
        _, name, where = said
        if name not in sim.objects_dict:
            return None  # fixtures do not move
        place = self._pose(name)[0]
        if where in sim.objects_dict:
            away = float(np.linalg.norm((place - self._pose(where)[0])[:2]))
        elif where in sim.parsed_problem["regions"]:
            away = self.outside(name, where) - self._slack.get(name, 0.0)
        else:
            return None
        return None if away <= BESIDE else f"it {100 * away:.0f} cm away"

    def outside(self, name: str, region: str) -> float:
        """How far a thing is from a region, seen from above."""
        place = self._pose(name)[0]
        data = self._sim.sim.data
        ranges = np.array(self._sim.parsed_problem["regions"][region]["ranges"])  # x1 y1 x2 y2
        site = self._sim.sim.model.site_name2id(region)
        if not len(ranges):  # a part of a fixture, whose box is as its frame lies
            half = np.abs(data.site_xmat[site].reshape(3, 3)) @ self._sim.sim.model.site_size[site]
            middles, halves = data.site_xpos[site][None, :2], half[None, :2]
        else:  # the site stands in the first rectangle's middle
            middles = (ranges[:, :2] + ranges[:, 2:]) / 2
            halves = (ranges[:, 2:] - ranges[:, :2]) / 2
            middles = middles - middles[0] + data.site_xpos[site][:2]
        beyond = np.maximum(np.abs(place[:2] - middles) - halves, 0)
        return float(np.linalg.norm(beyond, axis=1).min())

    def _pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        body, data = self._sim.obj_body_id[name], self._sim.sim.data
        return data.body_xpos[body].copy(), data.body_xmat[body].reshape(3, 3).copy()
