"""Drawers, doors and knobs: what LIBERO's scripted experts do to a joint.

What can be gripped is gripped and carried along the joint's line or arc; what has a side to press on is
pressed by the closed fingers. Of the ways to hold the hand, the first is taken that leaves it room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mujoco
import numpy as np

from lawm_policy.sim.libero_grasps import find_grasps, nearest
from lawm_policy.sim.libero_hand import CLOSED, OPENED, STRAIGHT, UP, Hand, Moves, Pose, downward, turned_by
from lawm_policy.sim.libero_reach import SHUT, WIDE, Ghost
from lawm_policy.sim.libero_scene import Boxes

AJAR = 0.5  # radians that a door is pulled before it is pressed on from behind
TILTS, ROLLS = np.radians([75, 65, 55, 45, 30]), np.radians([0, 28, -28, 56, -56])
BACKS = (0.001, 0.004, 0.008)  # metres that the fingertips stay short of a bar's middle
ROOM, TIGHT = 0.005, 0.001  # metres beside the hand: enough, and if need be
BEHIND = 0.040  # metres from a door's face to the hand before it presses, and ...
TOUCHING = 0.012  # ... while it does
BELOW = (0.022, 0.034)  # metres of the fingers below a door's upper edge


@dataclass(frozen=True)
class Joint:
    """A drawer's, a door's or a knob's."""

    index: int
    body: int
    wanted: float  # where to bring it, a little further than the goal asks
    sense: float  # +1 or -1: the way there
    reached: Callable[[], bool]


class Doors(Hand):
    """Skills on joints."""

    def _value(self, joint: Joint) -> float:
        return float(self.env.data.qpos[self.env.model.jnt_qposadr[joint.index]])

    def _left(self, joint: Joint) -> float:
        """Signed, in the joint's own unit."""
        return joint.wanted - self._value(joint)

    def _slides(self, joint: Joint) -> bool:
        return bool(self.env.model.jnt_type[joint.index] == int(mujoco.mjtJoint.mjJNT_SLIDE))

    def _way(self, joint: Joint, place_3: np.ndarray | None = None) -> np.ndarray:
        """(3,) which way a joint has to go; on an arc that depends on the place."""
        axis = self.env.data.xaxis[joint.index].copy()
        if not self._slides(joint):
            assert place_3 is not None
            axis = np.cross(axis, place_3 - self.env.data.xanchor[joint.index])
        return axis / np.linalg.norm(axis) * joint.sense

    def _carried(self, joint: Joint, pose: Pose, amount: float) -> Pose:
        """Where a pose comes to that goes with the joint."""
        axis, anchor = self.env.data.xaxis[joint.index], self.env.data.xanchor[joint.index]
        if self._slides(joint):
            return Pose(pose.place_3 + amount * axis, pose.turn_33)
        turn = turned_by(amount * axis)
        return Pose(anchor + turn @ (pose.place_3 - anchor), turn @ pose.turn_33)

    def _bar(self, joint: Joint, outward: np.ndarray) -> Boxes:
        """The part of a drawer or door that sticks out most."""
        boxes = self.scene.body_boxes(joint.body)
        reach = boxes.places_N3 @ outward + np.einsum(
            "ni,ni->n", np.abs(np.einsum("nij,i->nj", boxes.turns_N33, outward)), boxes.halves_N3
        )
        return boxes.only(int(reach.argmax()))

    # ------------------------------------------------------------------ gripped

    def open_drawer(self, joint: Joint) -> Moves:
        yield from self._pull(joint, self._left(joint), joint.reached)

    def _pull(self, joint: Joint, amount: float, until: Callable[[], bool]) -> Moves:
        """The fingers around the bar of its handle, and back."""
        pose = self._grip(joint, amount)
        if pose is None:
            return
        pointing = pose.turn_33[:, 2]
        self.gripper = OPENED
        before = Pose(pose.place_3 - 0.09 * pointing, pose.turn_33)
        yield from self.fly(before, near=0.015)
        yield from self.slide(pose, near=0.002, fastest=0.8)
        yield from self.fingers(CLOSED)
        start, value = Pose(self.here, pose.turn_33), self._value(joint)
        far = amount + np.sign(amount) * (0.02 if self._slides(joint) else 0.12)
        longest = abs(far) if self._slides(joint) else 0.3

        def back() -> Pose:
            gone = self._value(joint) - value
            return self._carried(joint, start, gone + np.clip(far - gone, -longest, longest))

        yield from self.slide(back, near=0.0, turned=0.0, until=until, patience=8, limit=80)
        yield from self.fingers(OPENED)
        away = self.here - 0.08 * self.turn[:, 2] + 0.03 * self._way(joint, self.here)
        yield from self.slide(Pose(away, self.turn), near=0.02)

    def _grip(self, joint: Joint, amount: float) -> Pose | None:
        """The hand around the handle, where it has room and can go on from."""
        ghost = Ghost(self.env, self.scene)
        ghost.fingers(WIDE)
        best, most = None, TIGHT
        middle = self.scene.body_boxes(joint.body).places_N3.mean(axis=0)
        outward = self._way(joint, middle)
        for pose in self._around(self._bar(joint, outward), outward):
            before = Pose(pose.place_3 - 0.09 * pose.turn_33[:, 2], pose.turn_33)
            if not ghost.reach(self._carried(joint, pose, amount)) or not ghost.reach(before):
                continue
            room = ghost.room()
            if room < TIGHT or not ghost.reach(pose):
                continue
            room = min(room, ghost.room())
            if room > most:
                best, most = pose, room + 0.001  # a later one must be clearly better
            if room >= ROOM:
                break
        return best

    def _around(self, bar: Boxes, outward: np.ndarray) -> Iterator[Pose]:
        """Ways to have a bar between the fingers; what is more usual comes first."""
        along = bar.turns_N33[0][:, int(bar.halves_N3[0].argmax())]
        ways = [(tilt, roll, back) for roll in ROLLS for tilt in TILTS for back in BACKS]
        ways.sort(key=lambda way: abs(way[0] - TILTS[0]) + abs(way[1]) + 10 * way[2])
        for tilt, roll, back in ways:
            pointing = -np.sin(tilt) * outward + np.array([0, 0, -np.cos(tilt)])
            axis = np.cross(along, pointing)
            axis = turned_by(roll * pointing) @ (axis / np.linalg.norm(axis))
            if axis @ self.turn[:, 0] < 0:
                axis = -axis
            turn = np.column_stack([axis, np.cross(pointing, axis), pointing])
            yield Pose(bar.places_N3[0] - back * pointing, turn)

    # ------------------------------------------------------------------ pressed

    def swing(self, joint: Joint) -> Moves:
        """A door: pressed along its arc, at first pulled where there is nothing to press on."""
        if (found := self._behind(joint)) is None:
            value, ajar = self._value(joint), joint.sense * AJAR
            yield from self._pull(joint, ajar, lambda: abs(self._value(joint) - value) > AJAR)
            found = self._behind(joint)
        if found is None:
            return
        share, below, turn = found
        self.gripper = CLOSED
        yield from self.fly(Pose(self._beside(joint, share, below, BEHIND), turn), near=0.015)

        def onward() -> Pose:
            left = float(np.clip(self._left(joint), -0.25, 0.25))
            here = Pose(self._beside(joint, share, below, TOUCHING), turn)
            return Pose(self._carried(joint, here, left + 0.1 * joint.sense).place_3, turn)

        yield from self.slide(onward, near=0.0, turned=0.0, until=joint.reached, patience=25, limit=110)
        away = self.here - 0.04 * self._way(joint, self.here) + 0.08 * UP
        yield from self.slide(Pose(away, turn), near=0.025)

    def _behind(self, joint: Joint) -> tuple[float, float, np.ndarray] | None:
        """Where to press: the share of the door's width, how far below its upper edge, the hand's turn."""
        ghost = Ghost(self.env, self.scene)
        amount = self._left(joint)
        for below in BELOW:
            for share in (0.85, 0.7, 0.55):
                for yaw in np.radians([0, 30, -30, 60, -60, 90]):
                    turn = downward(np.zeros(3), nearest(STRAIGHT + yaw, self.yaw, np.pi)).turn_33
                    before = Pose(self._beside(joint, share, below, BEHIND), turn)
                    pressing = Pose(self._beside(joint, share, below, TOUCHING), turn)
                    after = Pose(self._carried(joint, pressing, amount).place_3, turn)
                    ghost.fingers(SHUT)
                    ghost.joint(joint.index, self._value(joint))
                    if not ghost.reach(before) or ghost.room() < ROOM:
                        continue
                    ghost.joint(joint.index, joint.wanted)
                    if ghost.reach(after) and ghost.room(joint.body) > TIGHT:
                        return share, below, turn
        return None

    def _beside(self, joint: Joint, share: float, below: float, away: float) -> np.ndarray:
        """(3,) a place near the upper edge of an upright door, on the side that it is pressed from."""
        boxes = self.scene.body_boxes(joint.body)
        panel = boxes.only(int(np.prod(boxes.halves_N3, axis=1).argmax()))
        middle, turn, half = panel.places_N3[0], panel.turns_N33[0], panel.halves_N3[0]
        up, thin = int(np.abs(turn[2]).argmax()), int(half.argmin())
        wide = 3 - up - thin
        outward = turn[:, wide] * np.sign(turn[:, wide] @ (middle - self.env.data.xanchor[joint.index]))
        normal = turn[:, thin] * np.sign(turn[:, thin] @ self._way(joint, middle))
        place = middle + (2 * share - 1) * half[wide] * outward - (half[thin] + away) * normal
        place[2] = middle[2] + half[up] - below
        return place

    def close_drawer(self, joint: Joint) -> Moves:
        """Pushed at its handle by the closed fingers."""
        inward = self._way(joint)
        bar = self._bar(joint, -inward)
        tilt = np.radians(20)
        pointing = np.sin(tilt) * inward + np.array([0, 0, -np.cos(tilt)])
        axis = np.cross(pointing, np.array([0.0, 0.0, 1.0]))  # level, so that the wrist leans away
        axis = axis / np.linalg.norm(axis)
        across = np.cross(pointing, axis)
        if across @ inward < 0:
            axis, across = -axis, -across
        turn = np.column_stack([axis, across, pointing])
        place = bar.places_N3[0]
        self.gripper = CLOSED
        yield from self.fly(Pose(place - 0.06 * inward, turn), near=0.015)

        def onward() -> Pose:
            left = abs(joint.wanted - self._value(joint))
            now = self._bar(joint, -inward).places_N3[0]
            return Pose(now + (left + 0.03) * inward, turn)

        yield from self.slide(onward, near=0.0, turned=0.0, until=joint.reached, limit=80)
        yield from self.slide(Pose(self.here - 0.06 * inward + [0, 0, 0.05], turn), near=0.025)

    def turn_knob(self, joint: Joint) -> Moves:
        """The fingers on both sides of it, and round."""
        boxes = self.scene.body_boxes(joint.body)
        axle = self.env.data.xanchor[joint.index].copy()
        sense = float(np.sign(self.env.data.xaxis[joint.index][2]))
        grasps = find_grasps(self.scene, boxes, axle[:2], nearest(self.yaw, STRAIGHT, np.pi))
        if not grasps:
            return
        grasp, value = grasps[0], self._value(joint)
        angle = sense * (joint.wanted - value)
        yaw = nearest(grasp.yaw, STRAIGHT - angle / 2, np.pi)
        self.gripper = OPENED
        yield from self.fly(downward(grasp.place_3, yaw))
        yield from self.fingers(CLOSED)
        arm, height = self.here[:2] - axle[:2], self.here[2]

        def round_it() -> Pose:
            gone = sense * (self._value(joint) - value)
            left = np.clip(angle - gone, -0.5, 0.5) + 0.15 * np.sign(angle)
            c, s = np.cos(gone), np.sin(gone)
            place = axle[:2] + np.array([c * arm[0] - s * arm[1], s * arm[0] + c * arm[1]])
            return downward(np.array([*place, height]), yaw + gone + left)

        yield from self.slide(round_it, near=0.0, turned=0.0, until=joint.reached, limit=50)
        yield from self.release()
