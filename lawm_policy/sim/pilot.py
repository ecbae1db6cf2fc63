"""How a scripted expert moves: the commanded pose of the gripper, and motions that change it.

A motion is a generator: it changes `pilot.pose` and `pilot.gripper`, and yields once a control step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lawm_policy.sim.tabletop_env import CONTROL_HZ, EE_STRIDE, POSE_LIMITS, TabletopEnv
from lawm_policy.sim.tabletop_tasks import World

Moves = Iterator[None]
Target = np.ndarray | Callable[[], np.ndarray]  # (4,) x y z yaw, fixed or followed
DT = 1.0 / CONTROL_HZ
SPEED, ACCELERATION = 0.30, 1.6  # of the gripper, at style.speed = 1
YAW_SPEED = 2.2
OPEN, CLOSED = -1.0, 1.0
CLEAR_Z = 0.075  # fingers, and what they hold, pass above blocks


@dataclass(frozen=True)
class Style:
    """How one episode is done."""

    speed: float = 1.0
    cruise: float = 0.11  # height of flight, metres
    wander: float = 0.0  # standard deviation of smooth deviations, metres a second
    drift: np.ndarray | None = None  # (3,) a detour at the start
    miss: float = 0.0  # probability that a grasp closes beside the block first

    @staticmethod
    def sample(rng: np.random.Generator) -> Style:
        drift = rng.uniform(-1, 1, 3) * [0.06, 0.06, 0.03] if rng.random() < 0.12 else None
        return Style(
            speed=float(rng.uniform(0.8, 1.2)),
            cruise=float(rng.uniform(0.10, 0.14)),
            wander=float(rng.uniform(0.0, 0.05)),
            drift=drift,
            miss=0.05,
        )


class Pilot:
    """The commanded pose and gripper of one environment, and the motions that change them."""

    def __init__(self, env: TabletopEnv, rng: np.random.Generator, style: Style):
        self.env, self.rng, self.style = env, rng, style
        self.pose = env.commanded_pose.copy()
        self.gripper = env.gripper_command()
        self._q = env.commanded_q.copy()
        self._velocity = np.zeros(4)
        self._deviation = np.zeros(3)
        self.world: World = env.world()

    def action(self) -> np.ndarray:
        """(A,) float32 for the environment's command."""
        if self.env.command == "ee":
            values = np.clip((self.pose - self.env.commanded_pose) / EE_STRIDE, -1, 1)
        else:
            self._q, _ = self.env.kinematics.inverse(self.pose, self._q)
            values = self._q
        return np.append(values, self.gripper).astype(np.float32)

    def observe(self) -> None:
        self.world = self.env.world()
        if self.env.command == "ee":
            self.pose = self.env.commanded_pose.copy()

    # ------------------------------------------------------------------ motion

    def fly(
        self,
        goal: Target,
        *,
        tolerance: float = 0.004,
        speed: float = 1.0,
        cruise: float | None = None,
        limit: int = 90,
    ) -> Moves:
        """Up, across and down in one curve: a funnel over the goal decides how low the gripper may be."""
        height = self.style.cruise if cruise is None else cruise
        for _ in range(limit):
            target = np.clip(goal() if callable(goal) else goal, POSE_LIMITS[:, 0], POSE_LIMITS[:, 1])
            across = float(np.linalg.norm(target[:2] - self.pose[:2]))
            funnel = np.clip((across - 0.008) / 0.035, 0.0, 1.0)
            aim = target.copy()
            aim[2] = target[2] + funnel * max(height - target[2], 0.0)
            sideways = 1.0
            if across > 0.045:
                sideways = float(np.clip((self.pose[2] - 0.6 * CLEAR_Z) / (0.4 * CLEAR_Z), 0.0, 1.0))
            if (
                np.linalg.norm(target[:3] - self.pose[:3]) < tolerance
                and abs(target[3] - self.pose[3]) < 0.05
            ):
                return
            self.approach(aim, speed, sideways, deviate=funnel)
            yield

    def slide(self, goal: Target, *, tolerance: float = 0.004, speed: float = 1.0, limit: int = 60) -> Moves:
        """Straight to the goal."""
        for _ in range(limit):
            target = np.clip(goal() if callable(goal) else goal, POSE_LIMITS[:, 0], POSE_LIMITS[:, 1])
            if np.linalg.norm(target[:3] - self.pose[:3]) < tolerance:
                return
            self.approach(target, speed, 1.0, deviate=0.0)
            yield

    def approach(self, aim: np.ndarray, speed: float, sideways: float, deviate: float) -> None:
        """One step towards `aim`: speed limited so that the gripper can stop there."""
        offset = aim - self.pose
        distance = float(np.linalg.norm(offset[:3]))
        fastest = min(
            SPEED * self.style.speed * speed, np.sqrt(2 * 0.7 * ACCELERATION * distance), distance / DT
        )
        wanted = np.zeros(4)
        if distance > 1e-6:
            wanted[:3] = offset[:3] / distance * fastest
        self._deviation += -0.15 * self._deviation + self.style.wander * 0.54 * self.rng.standard_normal(3)
        wanted[:3] += self._deviation * deviate
        wanted[:2] *= sideways
        wanted[3] = np.clip(offset[3] / (2 * DT), -YAW_SPEED, YAW_SPEED)
        change = wanted - self._velocity
        grip = ACCELERATION * DT * max(1.0, 2.0 * (distance < 0.02))
        length = float(np.linalg.norm(change[:3]))
        if length > grip:
            change[:3] *= grip / length
        self._velocity += change
        step = self._velocity * DT
        self.pose = np.clip(self.pose + step, POSE_LIMITS[:, 0], POSE_LIMITS[:, 1])

    def fingers(self, command: float) -> Moves:
        """Drive the fingers until they stop moving."""
        self.gripper, still, before = command, 0, self.world.opening
        for count in range(14):
            self.stop()
            yield
            still = still + 1 if abs(self.world.opening - before) < 0.015 else 0
            before = self.world.opening
            if count >= 2 and still >= 1:
                return

    def rise(self, height: float | None = None) -> Moves:
        place = self.pose.copy()
        place[2] = self.style.cruise if height is None else height
        yield from self.slide(place, tolerance=0.02)

    def stop(self) -> None:
        self._velocity[:] = 0.0
