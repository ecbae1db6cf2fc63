"""Scripted experts: they read the simulator's truth and command the gripper's pose, as a person would move.

Every pause has a visible cause (fingers closing or opening). Variety comes from `Style`: speed, height,
smooth deviations from which the motion recovers, a detour, and now and then a grasp that misses.
Commands are recorded as they were executed, so that an episode can be re-created from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lawm_policy.sim.pilot import CLOSED, OPEN, Moves, Pilot, Style
from lawm_policy.sim.tabletop_env import CONTROL_HZ, TabletopEnv, find_task
from lawm_policy.sim.tabletop_layout import AREA, KEEP_OUT, PUSH_BEHIND
from lawm_policy.sim.tabletop_scene import BLOCKS, BOWL_HEIGHT, DRAWER_FRONT, DRAWER_TRAVEL
from lawm_policy.sim.tabletop_tasks import OPENED, TASKS, Goal, Task, World, graspable, in_drawer

PUSH_GRIP = 0.55  # fingers a little apart: two points of contact push straight
GRASP_Z = 0.020  # fingers around a block
HOOK, BAR = 0.0285, 0.059  # gap of the drawer's handle, and outer face of its bar, from the housing's front


class Expert(Pilot):
    """Skills, each a motion."""

    def detour(self) -> Moves:
        if self.style.drift is not None:
            place = self.pose.copy()
            place[:3] += self.style.drift
            place[2] = max(place[2], 0.11)
            yield from self.slide(lambda: place, tolerance=0.02)

    def grasp(self, block: str, tries: int = 4) -> Moves:
        if self._holds(block):
            return
        for _ in range(tries):
            if self.gripper == CLOSED and self.world.opening < 0.8:
                yield from self.fingers(OPEN)
            self.gripper = OPEN
            yaw = self._grasp_yaw(self.world.yaws[block])
            beside = np.zeros(2)
            if self.rng.random() < self.style.miss:  # ahead of the block, where the fingers close on nothing
                beside = 0.046 * self.rng.choice([-1.0, 1.0]) * np.array([np.cos(yaw), np.sin(yaw)])
            low = GRASP_Z + (0.035 if beside.any() else 0.0)
            yield from self.fly(partial(self._at_block, block, low, yaw, beside))
            yield from self.fingers(CLOSED)
            if self._holds(block):
                return

    def _at_block(self, block: str, height: float, yaw: float, shift: np.ndarray) -> np.ndarray:
        return np.array([*(self.world.blocks[block][:2] + shift), height, yaw])

    def _holds(self, block: str) -> bool:
        near = np.linalg.norm(self.world.blocks[block] - self.world.gripper) < 0.022
        return bool(near and self.gripper == CLOSED and 0.3 < self.world.opening < 0.75)

    def place_in_bowl(self, block: str, bowl: str) -> Moves:
        yield from self.grasp(block)
        height = BOWL_HEIGHT + 0.024
        yaw = self.pose[3] * 0.5
        yield from self.fly(lambda: np.array([*self.world.bowls[bowl][:2], height, yaw]), tolerance=0.008)
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
        yield from self.fly(np.array([*place, GRASP_Z + 0.006, yaw]))
        yield from self.fingers(OPEN)
        yield from self.rise()

    def push(self, block: str, target: np.ndarray, tries: int = 3) -> Moves:
        """`target` is (2,): where the block's centre shall be."""
        for _ in range(tries):
            path = target - self.world.blocks[block][:2]
            length = float(np.linalg.norm(path))
            if length < 0.014:
                break
            direction = path / length
            yaw = _nearest(np.arctan2(direction[1], direction[0]), self.pose[3], np.pi)
            behind = self.world.blocks[block][:2] - PUSH_BEHIND * direction
            self.gripper = PUSH_GRIP
            yield from self.fly(np.array([*behind, 0.022, yaw]))
            for _ in range(60):
                ahead = float((target - self.world.blocks[block][:2]) @ direction)
                if ahead < 0.006:
                    break
                # Along the line through the target, slower as the block comes near it.
                off_line = target - self.pose[:2] - direction * ((target - self.pose[:2]) @ direction)
                aim = self.pose[:2] + direction * (ahead + 0.004) + off_line
                self.approach(np.array([*aim, 0.022, yaw]), 0.8, 1.0, 0.0)
                yield
            back = self.pose.copy()
            back[:2] -= 0.02 * direction
            back[2] += 0.03
            yield from self.slide(back, tolerance=0.01)
        yield from self.rise()

    def _handle(self, ahead: float) -> np.ndarray:
        """The pose at the drawer's handle, `ahead` of the tray's front."""
        world = self.world
        return np.array(
            [world.drawer_place[0] + DRAWER_FRONT + ahead + world.drawer, world.drawer_place[1], 0.030, 0.0]
        )

    def open_drawer(self, target: float = DRAWER_TRAVEL) -> Moves:
        self.gripper = CLOSED
        yield from self.fly(lambda: self._handle(HOOK))
        yield from self._drag(min(target, OPENED + 0.007))
        yield from self.rise()

    def close_drawer(self, target: float = 0.0) -> Moves:
        self.gripper = CLOSED
        yield from self.fly(lambda: self._handle(BAR + 0.026))
        yield from self._drag(max(target, 0.006))
        yield from self.slide(lambda: self._handle(BAR + 0.022) + np.array([0, 0, 0.02, 0]), tolerance=0.012)
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
            self.approach(aim, 0.7, 1.0, 0.0)
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
            self.stop()
            yield

    def _grasp_yaw(self, block_yaw: float) -> float:
        """The gripper's yaw across a face of the block, the nearest to straight ahead."""
        return _nearest(block_yaw, 0.0, np.pi / 2)


def _reached(world: World, goal: Goal) -> bool:
    """As `goal.holds`, without asking for the release that follows by itself."""
    if goal.kind == "in_drawer":
        return in_drawer(world, goal.block)
    return goal.holds(world)


def _nearest(angle: float, reference: float, period: float) -> float:
    return float(reference + (angle - reference + period / 2) % period - period / 2)


class Player(Expert):
    """Purposeful motion without a task: what a curious hand does with the things on a table."""

    def wander_about(self) -> Moves:
        """For ever. Never does what a held-out task asks."""
        while True:
            whim = self.rng.choice(["reach", "carry", "nudge", "drawer"], p=[0.2, 0.4, 0.2, 0.2])
            loose = [block for block in BLOCKS if graspable(self.world, block)]
            if whim == "reach" or (whim != "drawer" and not loose):
                yield from self._reach()
            elif whim == "carry":
                yield from self._carry(str(self.rng.choice(loose)))
            elif whim == "nudge":
                yield from self._nudge(str(self.rng.choice(loose)))
            else:
                target = float(self.rng.uniform(0.0, DRAWER_TRAVEL))
                yield from (self.open_drawer if target > self.world.drawer else self.close_drawer)(target)

    def _reach(self) -> Moves:
        """Over something or nothing, and on."""
        things = [*self.world.blocks.values(), *self.world.bowls.values(), self.world.pad]
        place = things[self.rng.integers(len(things))][:2] if self.rng.random() < 0.6 else self._somewhere()
        pose = np.array([*place, self.rng.uniform(0.065, 0.13), self.rng.uniform(-0.6, 0.6)])
        if self.rng.random() < 0.3:
            self.gripper = CLOSED if self.gripper == OPEN else OPEN
        yield from self.fly(pose, tolerance=0.015)

    def _carry(self, block: str) -> Moves:
        bowls = [
            name
            for name, bowl in self.world.bowls.items()
            if Goal("in_bowl", block, name) not in HELD_OUT
            and all(np.linalg.norm(place[:2] - bowl[:2]) > 0.06 for place in self.world.blocks.values())
        ]
        fate = self.rng.random()
        if fate < 0.35 and bowls:
            yield from self.place_in_bowl(block, str(self.rng.choice(bowls)))
        elif fate < 0.5:
            yield from self.place_in_drawer(block)
        else:
            yield from self.put_down(block, self._somewhere())

    def _nudge(self, block: str) -> Moves:
        here = self.world.blocks[block][:2]
        angle = self.rng.uniform(-np.pi, np.pi)
        target = here + self.rng.uniform(0.03, 0.07) * np.array([np.cos(angle), np.sin(angle)])
        held_out = Goal("on_pad", block, "pad") in HELD_OUT
        if held_out and np.linalg.norm(target - self.world.pad[:2]) < 0.08:
            return
        yield from self.push(block, np.clip(target, AREA[:, 0], AREA[:, 1]), tries=1)

    def _somewhere(self) -> np.ndarray:
        """(2,) free of other things, as far as a few draws find."""
        others = np.array([*self.world.blocks.values(), *self.world.bowls.values(), self.world.pad])[:, :2]
        draws = self.rng.uniform(AREA[:, 0], AREA[:, 1], (24, 2))
        draws = draws[~((draws[:, 0] < KEEP_OUT[0]) & (draws[:, 1] > KEEP_OUT[1]))]
        room = np.linalg.norm(draws[:, None] - others, axis=-1).min(axis=1)
        free = np.flatnonzero(room > 0.09)
        return draws[free[0] if len(free) else int(room.argmax())]


HELD_OUT = {goal for task in TASKS.values() if task.held_out for goal in task.goals}


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
    attempt: int = 0,
) -> Rollout:
    """The expert does `task` in the scene of `seed` (or from a saved `state`). Pure in its arguments;
    another `attempt` does it in another way."""
    rng = np.random.default_rng([seed, 2, attempt, *task.encode()])
    chosen = Style.sample(rng) if style is None else style
    env.reset(seed=seed, options={"task": task, "paraphrase": paraphrase, "state": state})
    asked = find_task(task)
    expert = Expert(env, rng, chosen)
    recording = _Recording(env, frame_stride)
    for _ in zip(range(asked.step_limit), expert.perform(asked), strict=False):
        if recording.step(expert):
            break
    return recording.finish(env.instruction, task, seed)


def play(
    env: TabletopEnv, seed: int, seconds: float, *, style: Style | None = None, frame_stride: int = 1
) -> Rollout:
    """Motion without a task or a caption in the scene of `seed`. Pure in its arguments."""
    rng = np.random.default_rng([seed, 3])
    chosen = Style.sample(rng) if style is None else style
    env.reset(seed=seed, options={"task": "open_drawer"})  # some task must be set; none is followed
    player = Player(env, rng, chosen)
    recording = _Recording(env, frame_stride)
    for _ in zip(range(round(seconds * CONTROL_HZ)), player.wander_about(), strict=False):
        recording.step(player)
    return replace(recording.finish("", "play", seed), success=True)


class _Recording:
    """Steps the environment and keeps what a dataset needs."""

    def __init__(self, env: TabletopEnv, frame_stride: int):
        self.env, self.frame_stride = env, frame_stride
        self.frames: dict[str, list[np.ndarray]] = {camera: [] for camera in env.cameras}
        self.states: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.success = False

    def step(self, pilot: Pilot) -> bool:
        """Whether the task is done."""
        env = self.env
        if len(self.actions) % self.frame_stride == 0:
            for camera, image in env.render_images().items():
                self.frames[camera].append(image)
        self.states.append(env.state())
        self.actions.append(pilot.action())
        before, env.render_now = env.render_now, False
        *_, info = env.step(self.actions[-1])
        env.render_now = before
        pilot.observe()
        self.success = bool(info["success"])
        return self.success

    def finish(self, text: str, task: str, seed: int) -> Rollout:
        return Rollout(
            frames={camera: np.stack(images) for camera, images in self.frames.items()},
            state_TP=np.stack(self.states),
            action_TA=np.stack(self.actions),
            text=text,
            task=task,
            success=self.success,
            seed=seed,
        )
