"""What LIBERO's scripted experts can do with things: pick, place, push; with joints: see libero_doors.

Each skill is a motion of the hand that knows shapes and joints, and no task.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from lawm_policy.sim.libero_doors import Doors
from lawm_policy.sim.libero_grasps import (
    Grasp,
    Spot,
    find_grasps,
    find_spots,
    lower_side,
    nearest,
    rim_before,
)
from lawm_policy.sim.libero_hand import CLOSED, OPENED, STRAIGHT, UP, Moves, Pose, downward
from lawm_policy.sim.libero_leans import leaned_places
from lawm_policy.sim.libero_reach import Ghost
from lawm_policy.sim.libero_scene import Boxes
from lawm_policy.sim.libero_shelves import Opening, entries

EMPTY = 0.0025  # metres between the fingers when there is nothing
MISSED = 0.03  # metres too high, where something kept the hand from coming down
MOST_LEANS = 40  # that the arm is asked about
ENOUGH = 3  # grasps to choose from, where a thing goes in from the side
YAWS = STRAIGHT + np.radians(np.arange(-90, 91, 15))


@dataclass(frozen=True)
class Destination:
    """Where the origin of a thing shall be."""

    middle_2: np.ndarray
    reach_2: np.ndarray  # how far from the middle to look
    right: Callable[[np.ndarray], bool]  # whether an origin (3,) is
    side: Opening | None = None  # where it is closed from above


class Skills(Doors):
    """The skills of one episode."""

    # ------------------------------------------------------------------ pick and place

    def pick(self, name: str, attempt: int = 0, where: Destination | None = None) -> Moves:
        """Ends with the thing in the air, or without it (`held` says); held so that it can go `where`."""
        self.held = None
        height = self.scene.place(name)[2]
        grasp = yield from self._seize(name, attempt, where)
        if grasp is None:
            return
        yield from self.slide(
            Pose(self.here + 0.06 * UP, self.turn), near=0.02, turned=0.5, until=lambda: self.opening < EMPTY
        )
        if self.opening > EMPTY and self.scene.place(name)[2] > height + 0.015:
            self.held = name

    def _seize(
        self, name: str, attempt: int, where: Destination | None
    ) -> Generator[None, None, Grasp | None]:
        """Ends with the fingers closed around it, as far as one can see."""
        middle = self.env.data.xipos[self.scene.sim.obj_body_id[name]][:2]
        yaw_now = nearest(self.yaw, STRAIGHT, np.pi)
        roofed = where is not None and where.side is not None
        kinds = (30, 0.04) if roofed else (12, 0.018)  # from all over a thing, or the best
        grasps = find_grasps(self.scene, self.scene.boxes(name), middle, yaw_now, *kinds)
        if where is not None and where.side is not None:
            grasps = self._that_go_in(name, grasps, where, where.side)
        if not grasps:
            return None
        grasp = self._choose(grasps, attempt)
        start = self.scene.place(name)
        yaw = nearest(grasp.yaw, self.yaw, np.pi)
        if self.gripper == CLOSED and self.opening > EMPTY:
            yield from self.fingers(OPENED)
        self.gripper = OPENED

        def there() -> Pose:
            """The thing may give way a little, no more."""
            moved = self.scene.place(name) - start
            return downward(
                grasp.place_3 + moved * min(1.0, 0.015 / max(float(np.linalg.norm(moved)), 1e-9)), yaw
            )

        yield from self.fly(there, near=0.004)
        if self.here[2] > grasp.place_3[2] + MISSED:
            return None  # something kept the hand from coming down
        yield from self.fingers(CLOSED)
        return grasp

    def _choose(self, grasps: list[Grasp], attempt: int) -> Grasp:
        good = [grasp for grasp in grasps if grasp.cost <= grasps[0].cost + self.style.whim]
        if attempt == 0:
            return good[int(self.rng.integers(len(good)))]
        return grasps[min(attempt, len(grasps) - 1)]

    def _that_go_in(self, name: str, grasps: list[Grasp], where: Destination, side: Opening) -> list[Grasp]:
        """Grasps by which a thing fits through an opening, the way in counted."""
        found: list[Grasp] = []
        boxes, place = self.scene.boxes(name), self.scene.place(name)
        for grasp in grasps:
            turn = downward(grasp.place_3, grasp.yaw).turn_33
            seen, origin = boxes.seen_from(grasp.place_3, turn), turn.T @ (place - grasp.place_3)
            ways = entries(
                seen,
                origin,
                turn,
                side,
                where.right,
                self._furniture(side, name),
                self.scene.table,
                coarse=True,
            )
            if (way := next(ways, None)) is not None:
                found.append(replace(grasp, cost=grasp.cost + way.cost))
            if len(found) == ENOUGH:
                break
        return sorted(found, key=lambda grasp: grasp.cost)

    def _furniture(self, side: Opening, name: str) -> Boxes:
        return self.scene.others(name).near(side.middle_3[:2] - 0.4, side.middle_3[:2] + 0.4)

    def slip(self, where: Destination, side: Opening) -> Moves:
        """What is held, in from the side."""
        name = self.held
        assert name is not None
        place, turn = self.here, self.turn
        thing, origin = (
            self.scene.boxes(name).seen_from(place, turn),
            turn.T @ (self.scene.place(name) - place),
        )
        ghost = Ghost(self.env, self.scene, name)
        obstacles = self._furniture(side, name)
        for way in entries(thing, origin, turn, side, where.right, obstacles, self.scene.table):
            before = way.before(side.inward_3)
            if all(ghost.reach(pose) and ghost.room() > 0 for pose in (way.pose, before)):
                break
        else:
            return
        hang, wide = self._size_of(name, way.pose)
        far = float(np.linalg.norm(origin)) + 0.06

        def lost() -> bool:
            return bool(np.linalg.norm(self.scene.place(name) - self.here) > far)

        yield from self.fly(before, hang=hang, wide=wide, near=0.012, left_out=(name,), until=lost)
        yield from self.slide(before, near=0.03, turned=0.3, until=lost)
        yield from self.slide(way.pose, near=0.008, turned=0.1, fastest=0.7, limit=70, until=lost)
        yield from self.fingers(OPENED)
        self.held = None
        yield from self.slide(way.before(side.inward_3), near=0.025, turned=0.5)
        yield from self.slide(Pose(self.here + 0.07 * UP, self.turn), near=0.025, turned=0.5)

    def put(self, where: Destination) -> Moves:
        """What is held."""
        if where.side is not None:
            yield from self.slip(where, where.side)
            return
        name = self.held
        assert name is not None
        far = float(np.linalg.norm(self.scene.place(name) - self.here)) + 0.06

        def lost() -> bool:
            return bool(np.linalg.norm(self.scene.place(name) - self.here) > far)

        tried: float | None = None
        for _ in range(2):
            spot = self._spot(name, where, tried)
            if spot is None:
                break
            under = lower_side(self.scene.boxes(name).seen_from(self.here, np.eye(3)))
            hang, wide = self._size_of(name, Pose(self.here, self.turn))
            goal = downward(spot.place_3 + 0.004 * UP, nearest(spot.yaw, self.yaw, 2 * np.pi))
            heights = self.scene.map_around(spot.place_3[:2], wide + 0.06, name)
            rim_K = rim_before(heights, under, goal.place_3, spot.yaw - self.yaw, self.here[:2])
            yield from self.fly(goal, hang=hang, wide=wide, left_out=(name,), until=lost, rim_K=rim_K)
            if lost() or self.here[2] < goal.place_3[2] + MISSED:
                break
            tried = spot.yaw
        if tried is None and spot is None:
            if (leaned := self._leaned(name, where)) is None:
                return
            hang, wide = self._size_of(name, leaned)
            yield from self.fly(leaned, hang=hang, wide=wide, left_out=(name,), until=lost)
        yield from self.release()

    def _leaned(self, name: str, where: Destination) -> Pose | None:
        """For what is too tall to stand there: where to let go of it so that it lies down."""
        ghost, now = Ghost(self.env, self.scene, name), Pose(self.here, self.turn)
        ways = leaned_places(self.scene, name, now, where.middle_2, where.reach_2, where.right)
        for pose in islice(ways, MOST_LEANS):
            goal = Pose(pose.place_3 + 0.004 * UP, pose.turn_33)
            before = Pose(goal.place_3 + 0.08 * UP, goal.turn_33)
            if all(ghost.reach(one) and ghost.room() > 0 for one in (goal, before)):
                return goal
        return None

    def _size_of(self, name: str, pose: Pose) -> tuple[float, float]:
        """How far what is held reaches below and beside the hand, once that is turned so."""
        seen = self.scene.boxes(name).seen_from(self.here, self.turn).corners_M3() @ pose.turn_33.T
        return max(0.012, -float(seen[:, 2].min())), max(
            0.05, float(np.linalg.norm(seen[:, :2], axis=1).max())
        )

    def _spot(self, name: str, where: Destination, tried: float | None) -> Spot | None:
        """The best place to let go, at another yaw than one that was tried."""
        yaws = np.append(YAWS, self.yaw)
        spots = find_spots(
            self.scene, name, self.here, self.yaw, where.middle_2, where.reach_2, where.right, yaws, 60
        )
        others = [spot for spot in spots if tried is None or abs(spot.yaw - tried) > 0.4]
        return others[0] if others else None

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
