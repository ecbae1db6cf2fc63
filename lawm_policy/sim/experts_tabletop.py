"""Scripted experts: they read the simulator's truth and command the gripper's pose, as a person would move.

A skill is a generator: it changes `pilot.pose` and `pilot.gripper`, and yields once a control step. Every
pause has a visible cause (fingers closing or opening). Variety comes from `Style`: speed, height, the side
of approach, smooth deviations from which the motion recovers, and now and then a grasp that misses.
Commands are recorded as they were executed, so that an episode can be re-created from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lawm_policy.sim.tabletop_env import CONTROL_HZ, EE_STRIDE, POSE_LIMITS, TabletopEnv
from lawm_policy.sim.tabletop_layout import PUSH_BEHIND
from lawm_policy.sim.tabletop_scene import BOWL_HEIGHT, DRAWER_FRONT, DRAWER_TRAVEL
from lawm_policy.sim.tabletop_tasks import OPENED, Goal, Task, World, in_drawer

Moves = Iterator[None]
DT = 1.0 / CONTROL_HZ
SPEED, ACCELERATION = 0.30, 1.6  # of the gripper, at style.speed = 1
YAW_SPEED = 2.2
OPEN, CLOSED = -1.0, 1.0
PUSH_GRIP = 0.34  # fingers a little apart: two points of contact push straight
GRASP_Z, CLEAR_Z = 0.020, 0.075  # fingers around a block; fingers above blocks
HOOK = 0.0285  # gap of the drawer's handle, and outer face of its bar, from the tray's front
BAR = 0.059


@dataclass(frozen=True)
class Style:
    """How one episode is done."""

    speed: float = 1.0
    cruise: float = 0.11  # height of flight, metres
    wander: float = 0.0  # standard deviation of smooth deviations, metres a second
    drift: np.ndarray | None = None  # (3,) a detour at the start
    miss: float = 0.0  # probability that a grasp closes beside the block first
    yaw_turns: int = 0  # prefers a grasp turned by this many quarter turns

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
        self.gripper = OPEN
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
        goal: Callable[[], np.ndarray],
        *,
        tolerance: float = 0.004,
        speed: float = 1.0,
        cruise: float | None = None,
        limit: int = 90,
    ) -> Moves:
        """Up, across and down in one curve: a funnel over the goal decides how low the gripper may be."""
        height = self.style.cruise if cruise is None else cruise
        for _ in range(limit):
            target = np.clip(goal(), POSE_LIMITS[:, 0], POSE_LIMITS[:, 1])
            across = float(np.linalg.norm(target[:2] - self.pose[:2]))
            funnel = np.clip((across - 0.008) / 0.035, 0.0, 1.0)
            aim = target.copy()
            aim[2] = target[2] + funnel * max(height - target[2], 0.0)
            sideways = 1.0
            if across > 0.045:
                sideways = float(np.clip((self.pose[2] - 0.6 * CLEAR_Z) / (0.4 * CLEAR_Z), 0.0, 1.0))
            if np.linalg.norm(target[:3] - self.pose[:3]) < tolerance and abs(target[3] - self.pose[3]) < 0.05:
                return
            self._approach(aim, speed, sideways, deviate=funnel)
            yield

    def slide(self, goal: Callable[[], np.ndarray], *, tolerance: float = 0.004, speed: float = 1.0, limit: int = 60) -> Moves:
        """Straight to the goal."""
        for _ in range(limit):
            target = np.clip(goal(), POSE_LIMITS[:, 0], POSE_LIMITS[:, 1])
            if np.linalg.norm(target[:3] - self.pose[:3]) < tolerance:
                return
            self._approach(target, speed, 1.0, deviate=0.0)
            yield

    def _approach(self, aim: np.ndarray, speed: float, sideways: float, deviate: float) -> None:
        """One step towards `aim`: speed limited so that the gripper can stop there."""
        offset = aim - self.pose
        distance = float(np.linalg.norm(offset[:3]))
        fastest = min(SPEED * self.style.speed * speed, np.sqrt(2 * 0.7 * ACCELERATION * distance), distance / DT)
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
            self._velocity *= 0.0
            yield
            still = still + 1 if abs(self.world.opening - before) < 0.015 else 0
            before = self.world.opening
            if count >= 2 and still >= 1:
                return

    def rise(self, height: float | None = None) -> Moves:
        place = self.pose.copy()
        place[2] = self.style.cruise if height is None else height
        yield from self.slide(lambda: place, tolerance=0.02)

    # ------------------------------------------------------------------ skills

    def detour(self) -> Moves:
        if self.style.drift is not None:
            place = self.pose.copy()
            place[:3] += self.style.drift
            place[2] = max(place[2], 0.11)
            yield from self.slide(lambda: place, tolerance=0.02)

    def grasp(self, block: str, tries: int = 4) -> Moves:
        for _ in range(tries):
            if self.world.opening < 0.8 and self.gripper != OPEN:
                yield from self.fingers(OPEN)
            self.gripper = OPEN
            yaw = self._grasp_yaw(self.world.yaws[block])
            beside = np.zeros(2)
            if self.rng.random() < self.style.miss:  # ahead of the block, where the fingers close on nothing
                beside = 0.046 * self.rng.choice([-1.0, 1.0]) * np.array([np.cos(yaw), np.sin(yaw)])
            low = GRASP_Z + (0.035 if beside.any() else 0.0)
            yield from self.fly(lambda yaw=yaw, beside=beside, low=low: _at(self.world.blocks[block], low, yaw, beside))
            yield from self.fingers(CLOSED)
            if self.world.opening > 0.3 and not beside.any():
                return

    def place_in_bowl(self, block: str, bowl: str) -> Moves:
        yield from self.grasp(block)
        height = BOWL_HEIGHT + 0.024
        yaw = self.pose[3] * 0.5
        yield from self.fly(lambda: _at(self.world.bowls[bowl], height, yaw), tolerance=0.008)
        yield from self.fingers(OPEN)
        yield from self.rise()

    def place_in_drawer(self, block: str) -> Moves:
        if self.world.drawer < 0.055:
            yield from self.open_drawer()
        yield from self.grasp(block)

        def over() -> np.ndarray:
            x = self.world.drawer_place[0] + DRAWER_FRONT + self.world.drawer / 2 + 0.001
            return np.array([x, self.world.drawer_place[1], 0.070, 0.0])

        yield from self.fly(over, cruise=max(self.style.cruise, 0.12))
        yield from self.fingers(OPEN)
        yield from self.rise(0.12)

    def put_down(self, block: str, place: np.ndarray) -> Moves:
        """On the table."""
        yield from self.grasp(block)
        yaw = self.pose[3]
        yield from self.fly(lambda: np.array([place[0], place[1], GRASP_Z + 0.006, yaw]))
        yield from self.fingers(OPEN)
        yield from self.rise()

    def push(self, block: str, target: np.ndarray) -> Moves:
        """`target` is (2,): where the block's centre shall be."""
        for _ in range(3):
            path = target - self.world.blocks[block][:2]
            length = float(np.linalg.norm(path))
            if length < 0.014:
                break
            direction = path / length
            yaw = _nearest(np.arctan2(direction[1], direction[0]), self.pose[3], np.pi)
            behind = self.world.blocks[block][:2] - PUSH_BEHIND * direction
            self.gripper = PUSH_GRIP
            yield from self.fly(lambda behind=behind, yaw=yaw: np.array([*behind, 0.022, yaw]))
            end = target + 0.01 * direction
            for _ in range(60):
                ahead = float((target - self.world.blocks[block][:2]) @ direction)
                if ahead < 0.006:
                    break
                self._approach(np.array([*end, 0.022, yaw]), 0.8, 1.0, 0.0)
                yield
            back = self.pose.copy()
            back[:2] -= 0.02 * direction
            back[2] += 0.03
            yield from self.slide(lambda back=back: back, tolerance=0.01)
        yield from self.rise()

    def _handle(self, ahead: float) -> np.ndarray:
        """The pose at the drawer's handle, `ahead` of the tray's front."""
        world = self.world
        return np.array([world.drawer_place[0] + DRAWER_FRONT + ahead + world.drawer, world.drawer_place[1], 0.030, 0.0])

    def open_drawer(self, target: float = DRAWER_TRAVEL) -> Moves:
        self.gripper = CLOSED
        yield from self.fly(lambda: self._handle(HOOK))
        yield from self._drag(min(target, OPENED + 0.007))
        yield from self.rise()

    def close_drawer(self, target: float = 0.0) -> Moves:
        self.gripper = CLOSED
        yield from self.fly(lambda: self._handle(BAR + 0.026))
        yield from self._drag(max(target, 0.006))
        yield from self.slide(lambda: self._handle(BAR + 0.022) + [0, 0, 0.02, 0], tolerance=0.012)
        yield from self.rise()

    def _drag(self, target: float) -> Moves:
        """Move along x until the drawer is open by `target`."""
        sign = np.sign(target - self.world.drawer)
        for _ in range(60):
            left = sign * (target - self.world.drawer)
            if left <= 0:
                return
            aim = self.pose.copy()
            aim[0] += sign * (left + 0.02)
            self._approach(aim, 0.7, 1.0, 0.0)
            yield

    def achieve(self, goal: Goal) -> Moves:
        if goal.kind == "in_bowl":
            yield from self.place_in_bowl(goal.block, goal.target)
        elif goal.kind == "in_drawer":
            yield from self.place_in_drawer(goal.block)
        elif goal.kind == "on_pad":
            yield from self.push(goal.block, self.world.pad[:2])
        elif goal.target == "open":
            yield from self.open_drawer()
        else:
            yield from self.close_drawer()

    def perform(self, task: Task, tries: int = 3) -> Moves:
        """Every goal of the task in turn, again where one failed."""
        yield from self.detour()
        for _ in range(tries):
            for goal in task.goals:
                if not _reached(self.world, goal):
                    yield from self.achieve(goal)
            if task.done(self.world):
                break
        while True:  # done, or given up: hold still until the environment ends the episode
            self._velocity *= 0.0
            yield

    def _grasp_yaw(self, block_yaw: float) -> float:
        """The gripper's yaw across a face of the block, the nearest to straight ahead."""
        return _nearest(block_yaw, 0.0, np.pi / 2) + self.style.yaw_turns * np.pi / 2


def _reached(world: World, goal: Goal) -> bool:
    """As `goal.holds`, without asking for the release that follows by itself."""
    if goal.kind == "in_drawer":
        return in_drawer(world, goal.block)
    return goal.holds(world)


def _at(place: np.ndarray, height: float, yaw: float, shift: np.ndarray | float = 0.0) -> np.ndarray:
    return np.array([*(place[:2] + shift), height, yaw])


def _nearest(angle: float, reference: float, period: float) -> float:
    return float(reference + (angle - reference + period / 2) % period - period / 2)


# ---------------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Rollout:
    """One recorded episode. `frames[camera][t]` and `state_TP[t]` are what is seen before `action_TA[t]`."""

    frames: dict[str, np.ndarray]  # camera -> (T', H, W, 3) uint8; T' = T / frame_stride, rounded up
    state_TP: np.ndarray
    action_TA: np.ndarray
    text: str
    task: str
    success: bool
    seed: int


def rollout(
    env: TabletopEnv,
    task: str,
    seed: int,
    *,
    style: Style | None = None,
    paraphrase: int | None = None,
    state: dict[str, np.ndarray] | None = None,
    frame_stride: int = 1,
) -> Rollout:
    """The expert does `task` in the scene of `seed` (or from a saved `state`). Pure in its arguments."""
    rng = np.random.default_rng([seed, 2, *task.encode()])
    chosen = Style.sample(rng) if style is None else style
    env.reset(seed=seed, options={"task": task, "paraphrase": paraphrase, "state": state})
    assert env.task is not None
    pilot = Pilot(env, rng, chosen)
    return _record(env, pilot, pilot.perform(env.task), env.task.step_limit, frame_stride, seed)


def _record(env: TabletopEnv, pilot: Pilot, moves: Moves, steps: int, frame_stride: int, seed: int) -> Rollout:
    frames: dict[str, list[np.ndarray]] = {camera: [] for camera in env.cameras}
    states, actions, ended, success = [], [], False, False
    rendered, env.render_now = env.render_now, False
    for index in range(steps):
        if next(moves, ended) is ended:
            break
        if index % frame_stride == 0:
            for camera, image in env.render_images().items():
                frames[camera].append(image)
        states.append(env.state())
        actions.append(pilot.action())
        *_, info = env.step(actions[-1])
        pilot.observe()
        success = bool(info["success"])
        if success and env.instruction:
            break
    env.render_now = rendered
    assert env.task is not None
    return Rollout(
        frames={camera: np.stack(images) for camera, images in frames.items()},
        state_TP=np.stack(states),
        action_TA=np.stack(actions),
        text=env.instruction,
        task=env.task.name,
        success=success,
        seed=seed,
    )
