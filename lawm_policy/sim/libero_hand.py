"""How LIBERO's scripted experts move: a servo on the hand's pose, and motions that set its goal.

A motion is a generator: it sets `hand.command`, and yields once a control step. The command depends on
where the hand is and where it is going, and on nothing else: that is what a policy can learn from images.
Variety comes from `Style`. What is executed strays from the command, smoothly; the command is the label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lawm_policy.sim.libero_env import LiberoEnv, axis_angle
from lawm_policy.sim.libero_scene import Scene

Moves = Iterator[None]
OPENED, CLOSED = -1.0, 1.0
REACH, SPIN = 0.05, 0.5  # metres and radians that a command of 1 stands for
GAIN, SPIN_GAIN = 3.0, 3.0
STRAIGHT = np.pi / 2  # the fingers' axis as the arm begins: across the robot's view
UP = np.array([0.0, 0.0, 1.0])
STEP, AHEAD = 0.01, 9  # metres between points of a flight's profile, and how many the hand looks ahead
RIM, SLACK = 0.006, 0.004  # metres between the heights of a rim, and across that are as good as none


@dataclass(frozen=True)
class Style:
    """How one episode is done."""

    speed: float = 1.0
    lift: float = 0.04  # metres of room kept while flying over things
    wander: float = 0.0  # size of smooth deviations, as a share of the largest command
    drift: int = 0  # steps at the start in which the hand strays at random
    whim: float = 0.0  # how far from the best grasp and place the choice may be

    @staticmethod
    def sample(rng: np.random.Generator) -> Style:
        return Style(
            speed=float(rng.uniform(0.7, 1.0)),
            lift=float(rng.uniform(0.03, 0.07)),
            wander=float(rng.uniform(0.0, 0.25)),
            drift=int(rng.integers(4, 12)) if rng.random() < 0.5 else 0,
            whim=0.006,
        )


@dataclass(frozen=True)
class Pose:
    place_3: np.ndarray
    turn_33: np.ndarray  # columns: the fingers' axis, across, the way the hand points


def downward(place_3: np.ndarray, yaw: float) -> Pose:
    return Pose(np.asarray(place_3, float), pointing_down(yaw))


def pointing_down(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def turned_by(rotation_3: np.ndarray) -> np.ndarray:
    """(3, 3) of a rotation vector."""
    angle = float(np.linalg.norm(rotation_3))
    x, y, z = rotation_3 / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rotation_between(turn_33: np.ndarray, goal_33: np.ndarray) -> np.ndarray:
    """(3,) rotation vector, in the world, from one to the other."""
    between = goal_33 @ turn_33.T
    sine = np.array(
        [between[2, 1] - between[1, 2], between[0, 2] - between[2, 0], between[1, 0] - between[0, 1]]
    )
    angle = float(np.arctan2(np.linalg.norm(sine) / 2, (np.trace(between) - 1) / 2))
    if angle > 3.0:  # the sine alone says too little there
        return _half_turn(between, angle)
    length = float(np.linalg.norm(sine))
    return sine / length * angle if length > 1e-9 else np.zeros(3)


def _half_turn(between_33: np.ndarray, angle: float) -> np.ndarray:
    import mujoco

    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, between_33.ravel())
    found = axis_angle(quat)
    return found if np.linalg.norm(found) <= np.pi + 1e-6 else -found / np.linalg.norm(found) * angle


class Hand:
    """The hand of one environment."""

    def __init__(self, env: LiberoEnv, scene: Scene, rng: np.random.Generator, style: Style):
        self.env, self.scene, self.rng, self.style = env, scene, rng, style
        self.command = np.zeros(6)
        self.gripper = OPENED
        self.held: str | None = None
        self.free = 1.0  # share of the deviations that may be: little near things
        self._stray = np.zeros(3)
        self._drift = rng.normal(size=3) * [1, 1, 0.5]
        self._drift *= 0.8 / np.linalg.norm(self._drift)
        self._steps = 0

    # ------------------------------------------------------------------ what the hand reads

    @property
    def here(self) -> np.ndarray:
        return self.env.data.site_xpos[self.env._arm.site].copy()

    @property
    def turn(self) -> np.ndarray:
        return self.env.data.site_xmat[self.env._arm.site].reshape(3, 3).copy()

    @property
    def yaw(self) -> float:
        turn = self.turn
        return float(np.arctan2(turn[1, 0], turn[0, 0]))

    @property
    def opening(self) -> float:
        fingers = self.env.data.qpos[self.env._arm.fingers_at]
        return float(fingers[0] - fingers[1])

    # ------------------------------------------------------------------ what is sent

    def action(self) -> np.ndarray:
        """(7,) what the expert wants: the label."""
        return np.append(np.clip(self.command, -1, 1), self.gripper)

    def executed(self) -> np.ndarray:
        """(7,) with the deviations; call it once a step."""
        found = self.action()
        self._stray += -0.15 * self._stray + 0.5 * self.style.wander * self.rng.standard_normal(3)
        found[:3] += self._stray * self.free
        if self._steps < self.style.drift and self.free > 0.5:
            found[:3] = self._drift + self._stray
        self._steps += 1
        return np.clip(found, -1, 1)

    def aim(self, goal: Pose, fastest: float = 1.0) -> None:
        """One step towards a pose."""
        error = goal.place_3 - self.here
        push = GAIN * error / REACH
        push += 0.06 * error / (np.linalg.norm(error) + 0.004)  # against friction
        length, most = float(np.linalg.norm(push)), self.style.speed * fastest
        self.command[:3] = push * min(1.0, most / max(length, 1e-9))
        spin = SPIN_GAIN * rotation_between(self.turn, goal.turn_33) / SPIN
        length = float(np.linalg.norm(spin))
        self.command[3:] = spin * min(1.0, 0.8 * most / max(length, 1e-9))

    # ------------------------------------------------------------------ motions

    def slide(
        self,
        goal: Pose | Callable[[], Pose],
        *,
        near: float = 0.006,
        turned: float = 0.06,
        fastest: float = 1.0,
        free: float = 0.0,
        limit: int = 60,
        until: Callable[[], bool] | None = None,
        patience: int = 4,
    ) -> Moves:
        """Straight to the goal; ends there, where it can get no nearer, or where `until` says so."""
        best, stuck = np.inf, 0
        for _ in range(limit):
            target = goal() if callable(goal) else goal
            away = float(np.linalg.norm(target.place_3 - self.here))
            twist = float(np.linalg.norm(rotation_between(self.turn, target.turn_33)))
            if (until is not None and until()) or (away < near and twist < turned):
                return
            left = away + 0.05 * twist
            stuck = stuck + 1 if left > best - 0.0008 else 0
            best = min(best, left)
            if stuck > patience:
                return
            self.free = free
            self.aim(target, fastest)
            yield

    def fly(
        self,
        goal: Pose | Callable[[], Pose],
        *,
        hang: float = 0.012,
        wide: float = 0.06,
        near: float = 0.006,
        left_out: tuple[str, ...] = (),
        limit: int = 110,
        until: Callable[[], bool] | None = None,
        rim_K: np.ndarray | None = None,
    ) -> Moves:
        """Up, across and down in one curve, over everything on the way; a funnel over the goal decides
        how low the hand may be. `hang`, `wide`: how far what it holds reaches below and beside it.
        `rim_K`: how low the hand may be at each RIM metres before the goal."""
        target = goal() if callable(goal) else goal
        start, way = self.here[:2], target.place_3[:2] - self.here[:2]
        length = float(np.linalg.norm(way))
        tops_K = self._tops(start, way, wide, left_out) + hang + self.style.lift
        best, stuck, sunk, over = np.inf, 0, 0.0, True
        for _ in range(limit):
            target = goal() if callable(goal) else goal
            here = self.here
            across = float(np.linalg.norm(target.place_3[:2] - here[:2]))
            twist = float(np.linalg.norm(rotation_between(self.turn, target.turn_33)))
            away = float(np.linalg.norm(target.place_3 - here))
            if (until is not None and until()) or (away < near and twist < 0.08):
                return
            along = float((here[:2] - start) @ way) / max(length, 1e-6)
            k = int(np.clip(along / STEP, 0, len(tops_K) - 1))
            top = min(float(tops_K[k : k + AHEAD].max()), self.scene.ceiling(here[:2]) - 0.01) - sunk
            top = max(top, target.place_3[2])
            funnel = float(np.clip((across + 0.06 * max(twist - 0.05, 0) - 0.009) / 0.03, 0.0, 1.0))
            aim = target.place_3.copy()
            aim[2] += funnel * (top - aim[2])
            if rim_K is not None:
                before = (across - SLACK + 0.06 * max(twist - 0.05, 0)) / RIM
                aim[2] = max(aim[2], min(top, float(np.interp(before, np.arange(len(rim_K)), rim_K))))
            if across > 0.03:  # first up, then over
                share = float(np.clip(1 - (top - 0.4 * self.style.lift - here[2]) / 0.04, 0.0, 1.0))
                if share < 1:
                    aim[:2] = here[:2] + share * min(1.0, 0.04 / across) * (aim[:2] - here[:2])
            # On the way down the funnel the aim sinks faster than the hand: only the goal stands still.
            left = (across + abs(aim[2] - here[2]) if funnel == 1 else away) + 0.05 * twist
            if over != (funnel == 1):
                best, over = np.inf, funnel == 1
            stuck = stuck + 1 if left > best - 0.0008 else 0
            best = min(best, left)
            if stuck > 4:
                if funnel == 0 or across < 0.03 or sunk > 0.15:
                    return
                # Out of the arm's reach up there: lower, then.
                stuck, best, sunk = 0, np.inf, sunk + 0.02
            self.free = funnel
            self.aim(Pose(aim, target.turn_33), 1.0 if funnel > 0 or away > 0.03 else 0.7)
            yield

    def _tops(
        self, start_2: np.ndarray, way_2: np.ndarray, wide: float, left_out: tuple[str, ...]
    ) -> np.ndarray:
        """(K,) how high things reach around each point of a line, a centimetre apart."""
        count = int(np.linalg.norm(way_2) / STEP) + 2
        line_K2 = start_2 + np.linspace(0, 1, count)[:, None] * way_2
        low, high = line_K2.min(0) - wide, line_K2.max(0) + wide
        boxes = self.scene.others(*left_out).near(low, high)
        tops_K = np.full(count, self.scene.table)
        if len(boxes):
            xs = [np.arange(a, b + STEP, STEP) for a, b in zip(low, high, strict=True)]
            grid = np.stack(np.meshgrid(*xs, indexing="ij"), -1).reshape(-1, 2)
            _, tops = boxes.span_M2(grid)
            hit = tops > self.scene.table
            near = np.linalg.norm(line_K2[:, None] - grid[None, hit], axis=-1) < wide
            tops_K = np.maximum(tops_K, np.where(near, tops[hit], self.scene.table).max(axis=1, initial=-9))
        return tops_K

    def fingers(self, command: float, goal: Pose | None = None) -> Moves:
        """Drive the fingers until they stop."""
        self.gripper, self.free = command, 0.0
        hold = Pose(self.here, self.turn) if goal is None else goal
        before, moved = self.opening, False
        for count in range(12):
            self.aim(hold, 0.5)
            yield
            change = abs(self.opening - before)
            before = self.opening
            moved |= change > 0.002
            if change < 0.0015 and (moved or count >= 2):
                return

    def release(self) -> Moves:
        yield from self.fingers(OPENED)
        self.held = None
        yield from self.slide(Pose(self.here + 0.07 * UP, self.turn), near=0.025, turned=0.5)
