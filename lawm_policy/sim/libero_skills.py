"""What LIBERO's scripted experts can do with things: pick, place, push; with joints: see libero_doors.

Each skill is a motion of the hand that knows shapes and joints, and no task.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from lawm_policy.sim.libero_doors import Doors
from lawm_policy.sim.libero_grasps import Grasp, find_grasps, find_spots, lower_side, nearest
from lawm_policy.sim.libero_hand import CLOSED, OPENED, STRAIGHT, UP, Moves, Pose, downward

YAWS = STRAIGHT + np.radians(np.arange(-90, 91, 15))


@dataclass(frozen=True)
class Destination:
    """Where the origin of a thing shall be."""

    middle_2: np.ndarray
    reach_2: np.ndarray  # how far from the middle to look
    right: Callable[[np.ndarray], bool]  # whether an origin (3,) is


class Skills(Doors):
    """The skills of one episode."""

    # ------------------------------------------------------------------ pick and place

    def pick(self, name: str, attempt: int = 0) -> Moves:
        """Ends with the thing in the air, or without it (`held` says)."""
        self.held = None
        height = self.scene.place(name)[2]
        grasp = yield from self._seize(name, attempt)
        if grasp is None:
            return
        yield from self.slide(Pose(self.here + 0.06 * UP, self.turn), near=0.02, turned=0.5)
        if self.scene.place(name)[2] > height + 0.015:
            self.held = name

    def _seize(self, name: str, attempt: int) -> Generator[None, None, Grasp | None]:
        """Ends with the fingers closed around it, as far as one can see."""
        middle = self.env.data.xipos[self.scene.sim.obj_body_id[name]][:2]
        yaw_now = nearest(self.yaw, STRAIGHT, np.pi)
        grasps = find_grasps(self.scene, self.scene.boxes(name), middle, yaw_now)
        if not grasps:
            return None
        grasp = self._choose(grasps, attempt)
        start = self.scene.place(name)
        yaw = nearest(grasp.yaw, self.yaw, np.pi)
        if self.gripper == CLOSED:
            yield from self.fingers(OPENED)

        def there() -> Pose:
            """The thing may give way a little, no more."""
            moved = self.scene.place(name) - start
            return downward(
                grasp.place_3 + moved * min(1.0, 0.015 / max(float(np.linalg.norm(moved)), 1e-9)), yaw
            )

        yield from self.fly(there, near=0.004)
        yield from self.fingers(CLOSED)
        return grasp

    def _choose(self, grasps: list[Grasp], attempt: int) -> Grasp:
        good = [grasp for grasp in grasps if grasp.cost <= grasps[0].cost + self.style.whim]
        if attempt == 0:
            return good[int(self.rng.integers(len(good)))]
        return grasps[min(attempt, len(grasps) - 1)]

    def put(self, where: Destination) -> Moves:
        """What is held."""
        name = self.held
        assert name is not None
        yaws = np.append(YAWS, self.yaw)
        spots = find_spots(
            self.scene, name, self.here, self.yaw, where.middle_2, where.reach_2, where.right, yaws
        )
        if not spots:
            return
        spot = spots[0]
        under = lower_side(self.scene.boxes(name).seen_from(self.here, np.eye(3)))
        hang, wide = -float(under[:, 2].min()), float(np.linalg.norm(under[:, :2], axis=1).max())
        goal = downward(spot.place_3 + 0.004 * UP, nearest(spot.yaw, self.yaw, 2 * np.pi))
        held_at = self.scene.place(name) - self.here

        def lost() -> bool:
            return bool(np.linalg.norm(self.scene.place(name) - self.here) > np.linalg.norm(held_at) + 0.06)

        yield from self.fly(goal, hang=max(hang, 0.012), wide=max(wide, 0.05), left_out=(name,), until=lost)
        yield from self.release()

    # ------------------------------------------------------------------ push

    def push(self, name: str, target_2: np.ndarray) -> Moves:
        """Along the table: the closed fingers press inside its rim, and tow it."""
        start = self.scene.place(name)
        way = target_2 - start[:2]
        way = way / np.linalg.norm(way)
        line_K2 = start[:2] + np.arange(0, 0.15, 0.002)[:, None] * way
        _, tops = self.scene.boxes(name).span_M2(line_K2)
        rim = int(tops.argmax())
        inside = max(0.0, 0.002 * rim - 0.025)
        low = float(tops[: max(1, rim)].min()) + 0.010
        yaw = nearest(float(np.arctan2(way[1], way[0])) + np.pi / 2, self.yaw, np.pi)
        self.gripper = CLOSED
        yield from self.fly(downward(np.array([*(start[:2] + inside * way), low]), yaw), near=0.004)

        def onward() -> Pose:
            here = self.here[:2]
            left = float((target_2 - self.scene.place(name)[:2]) @ way)
            step = min(0.05, left + 0.01)
            line = start[:2] + way * ((here - start[:2]) @ way)
            return downward(np.array([*(line + step * way), low - 0.012]), yaw)

        def enough() -> bool:
            """There, or slipped off."""
            now = self.scene.place(name)[:2]
            return bool((target_2 - now) @ way < 0.006 or (self.here[:2] - now) @ way > inside + 0.035)

        yield from self.slide(onward, near=0.0, until=enough, patience=60, fastest=0.5, limit=130)
        yield from self.slide(downward(self.here + 0.08 * UP, yaw), near=0.02)
