"""Scripted experts for LIBERO: the problem's goal, said in BDDL, becomes a handful of skills.

There is no script of any task. Supports come before what lies on them, drawers open before things go in,
and close last; a goal that is not reached is tried again in another way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mujoco
import numpy as np

from lawm_policy.sim.libero_doors import Joint
from lawm_policy.sim.libero_env import LiberoEnv
from lawm_policy.sim.libero_hand import Moves, Style
from lawm_policy.sim.libero_protocol import split_task
from lawm_policy.sim.libero_scene import Scene
from lawm_policy.sim.libero_shelves import find_opening
from lawm_policy.sim.libero_skills import Destination, Skills

Goal = tuple[str, ...]  # ("on", "akita_black_bowl_1", "plate_1")
ROUNDS = 5
LONGEST = {"libero_10": 520}
TOGETHER = 0.02  # metres between the origins of a thing and what it lies on (LIBERO asks for 3 cm)
BEYOND = {"open": 0.006, "close": 0.008, "turnon": 0.25, "turnoff": 0.05}  # past what the goal asks


class Expert(Skills):
    """Skills in the order that the goal asks for."""

    @property
    def sim(self) -> Any:
        return self.scene.sim

    def perform(self) -> Moves:
        """Every goal in turn, again where one failed; ends when there is nothing left to try."""
        for attempt in range(ROUNDS):
            for goal in ordered(self.sim):
                if not self.holds(goal):
                    yield from self.achieve(goal, attempt)

    def holds(self, goal: Goal) -> bool:
        return bool(self.sim._eval_predicate(list(goal)))

    def achieve(self, goal: Goal, attempt: int) -> Moves:
        kind = goal[0]
        if kind in ("in", "on"):
            yield from self._bring(goal[1], goal[2], goal, attempt)
        elif kind in ("turnon", "turnoff"):
            yield from self.turn_knob(self.joint(goal))
        elif kind in ("open", "close"):
            joint = self.joint(goal)
            if self.env.model.jnt_type[joint.index] == int(mujoco.mjtJoint.mjJNT_SLIDE):
                yield from self.open_drawer(joint) if kind == "open" else self.close_drawer(joint)
            else:
                yield from self.swing(joint)
        else:
            raise ValueError(f"expected a goal such as LIBERO's tasks have, found {goal}")

    def _bring(self, name: str, where: str, goal: Goal, attempt: int) -> Moves:
        site = self.sim.object_sites_dict.get(where)
        if site is not None and site.joints and kind_of(self.sim, where) == "drawer":
            opened: Goal = ("open", where)
            if not self.holds(opened):
                yield from self.open_drawer(self.joint(opened))
        if flat(self.scene, name):
            yield from self.push(name, self.destination(goal).middle_2)
            return
        yield from self.pick(name, attempt, self.destination(goal))
        if self.held:
            yield from self.put(self.destination(goal))

    def destination(self, goal: Goal) -> Destination:
        kind, _, where = goal
        if where in self.sim.objects_dict:
            middle = self.scene.place(where)

            def above(origin_3: np.ndarray) -> bool:
                return bool(
                    np.linalg.norm(origin_3[:2] - middle[:2]) < TOGETHER and origin_3[2] > middle[2] - 0.005
                )

            return Destination(middle[:2], np.full(2, 0.03), above)
        site = self.sim.object_sites_dict[where]
        index = self.sim.sim.model.site_name2id(where)
        place = self.env.data.site_xpos[index].copy()
        turn = self.env.data.site_xmat[index].reshape(3, 3).copy()
        judge = site.in_box if kind == "in" else site.under

        def right(origin_3: np.ndarray) -> bool:
            return bool(judge(place, turn, origin_3))

        half = np.abs(turn @ site.size)
        side = find_opening(self.scene, place, half, turn) if kind == "in" else None
        if side is not None:
            fixture = self.sim.get_object(self.sim.object_states_dict[where].parent_name)
            side = replace(side, shuts=bool(fixture.joints))
        return Destination(place[:2], half[:2], right, side)

    def joint(self, goal: Goal) -> Joint:
        """The joint that a goal is about, and where it shall be."""
        kind, name = goal
        sites, model = self.sim.object_sites_dict, self.sim.sim.model
        if name in sites:
            fixture, joints = (
                self.sim.get_object(self.sim.object_states_dict[name].parent_name),
                sites[name].joints,
            )
        else:
            fixture = self.sim.get_object(name)
            joints = fixture.joints
        index = model.joint_name2id(joints[0])
        ranges = fixture.object_properties["articulation"]
        low, high = sorted(ranges[f"default_{kind}_ranges"])
        now = float(self.env.data.qpos[model.jnt_qposadr[index]])
        # The goal begins at the end of the range that is nearer to where the joint is now.
        nearer, further = (low, high) if abs(low - now) < abs(high - now) else (high, low)
        sign = np.sign(further - nearer) if kind != "close" else np.sign(low + high - 2 * now)
        wanted = nearer + sign * BEYOND[kind]
        body = int(model.jnt_bodyid[index])
        return Joint(index, body, float(wanted), float(sign), lambda: self._past(index, wanted, sign))

    def _past(self, index: int, wanted: float, sign: float) -> bool:
        now = float(self.env.data.qpos[self.env.model.jnt_qposadr[index]])
        return sign * (now - wanted) >= 0


def ordered(sim: Any) -> list[Goal]:
    """Doors open and knobs first, supports before what lies on them, closing last."""
    goals = [tuple(goal) for goal in sim.parsed_problem["goal_state"]]

    def rank(goal: Goal) -> tuple[int, int]:
        kind = goal[0]
        if kind == "close":
            return (3 if any(other[0] == "in" for other in goals) else 0), 0
        depth = sum(1 for other in goals if len(other) == 3 and len(goal) == 3 and other[1] == goal[2])
        return {"turnon": 1, "turnoff": 1, "open": 1}.get(kind, 2), depth

    return sorted(goals, key=rank)


def kind_of(sim: Any, region: str) -> str:
    """ "drawer", where the region moves along a line."""
    joints = sim.object_sites_dict[region].joints
    model = sim.sim.model
    return "drawer" if joints and model.jnt_type[model.joint_name2id(joints[0])] == 2 else "fixed"


def flat(scene: Scene, name: str) -> bool:
    """Too wide and low to be taken: to be pushed."""
    corners = scene.boxes(name).corners_M3()
    size = corners.max(0) - corners.min(0)
    return bool(size[2] < 0.03 and min(size[:2]) > 0.1)


# ---------------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Rollout:
    """One recorded episode. `frames[camera][t]` and `state_TP[t]` are what is seen before `action_TA[t]`."""

    # camera -> (T', H, W, 3) uint8; T' = T / frame_stride, rounded up. Of an episode that succeeds.
    frames: dict[str, np.ndarray]
    state_TP: np.ndarray
    action_TA: np.ndarray  # what the expert wanted: the labels
    executed_TA: np.ndarray  # with the deviations: these re-create the episode, but for their rounding
    text: str
    task: str
    success: bool
    seed: int


def rollout(
    env: LiberoEnv,
    seed: int,
    *,
    init_state: int | np.ndarray | None = None,
    style: Style | None = None,
    attempt: int = 0,
    frame_stride: int = 1,
    limit: int | None = None,
) -> Rollout:
    """The expert does the environment's task from the state that is given or else `seed`'s. Pure in its
    arguments; another `attempt` does it in another way. `env` takes hand commands."""
    assert env.command == "ee"
    rng = np.random.default_rng([seed, 5, attempt, *env.task.encode()])
    chosen = Style.sample(rng) if style is None else style
    asked = env.render_now
    # Nothing is drawn before it is known to be kept: an attempt that fails costs no images.
    env.render_now, env.remember = False, asked and bool(env.cameras)
    sights, states, wanted, executed = [], [], [], []
    try:
        observation, _ = env.reset(seed=seed, options={"init_state": init_state})
        expert = Expert(env, Scene(env._sim), rng, chosen)
        for step, _ in zip(range(limit or longest(env)), expert.perform(), strict=False):
            if env.sight is not None and step % frame_stride == 0:
                sights.append(env.sight)
            states.append(observation["state"])
            wanted.append(expert.action())
            executed.append(expert.executed())
            observation, _, done, _, _ = env.step(executed[-1])
            if done:
                break
    finally:
        env.render_now, env.remember = asked, False
    action_TA = np.array(wanted, np.float32).reshape(-1, 7)
    return Rollout(
        frames=env.draw(sights) if env.success else {},
        state_TP=np.array(states, np.float32).reshape(len(action_TA), -1),
        action_TA=action_TA,
        executed_TA=np.array(executed, np.float32).reshape(-1, 7),
        text=env.instruction,
        task=env.task,
        success=env.success,
        seed=seed,
    )


def longest(env: LiberoEnv) -> int:
    """Control steps that an expert may take: the protocol's, and for the long suite the usual 520."""
    return max(env.limit, LONGEST.get(split_task(env.task)[0], 0))
