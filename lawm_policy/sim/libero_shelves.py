"""Into a compartment from its side: where a roof keeps the hand from coming from above.

The hand leans towards the opening, slides in along a straight line and leaves by the same one. Hand and
thing are points here, and the furniture boxes; the arm's own reach is asked elsewhere (libero_reach).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from lawm_policy.sim.libero_hand import UP, Pose, turned_by
from lawm_policy.sim.libero_scene import Boxes, Scene

AIR = 0.007  # metres kept between points and furniture
ABOVE = 0.009  # metres between a thing's lowest point and the floor where it is let go of
CLEAR = 0.025  # metres before the opening where the way in begins
OPEN_FOR = 0.3  # metres that must be free before an opening
LEANS = np.radians([0, 15, 30, 45, 60, 75])
TURNS = np.radians(np.arange(-180, 180, 15))
DEPTHS = (0.02, 0.035, 0.05, 0.07, 0.09)
ASIDES = (0.0, 0.03, -0.03, 0.06, -0.06)
# The hand seen from between its fingertips (see libero_grasps): low and high corners.
_HAND = np.array(
    [
        [[-0.101, -0.019, -0.123], [0.101, 0.019, -0.031]],
        [[-0.101, -0.032, -0.106], [0.101, 0.032, -0.088]],
        [[-0.050, -0.0105, -0.0445], [0.050, 0.0105, 0.0092]],
        [[-0.045, -0.045, -0.20], [0.045, 0.045, -0.12]],
        [[-0.056, -0.136, -0.285], [0.056, 0.045, -0.152]],
    ]
)


@dataclass(frozen=True)
class Opening:
    """A roofed region, and the side that it is open to."""

    middle_3: np.ndarray
    half_3: np.ndarray
    inward_3: np.ndarray
    floor: float
    shuts: bool = False  # a door may close behind what is put in

    @property
    def depth(self) -> float:
        """Half of it."""
        return float(np.abs(self.inward_3) @ self.half_3)


@dataclass(frozen=True)
class Entry:
    """Where the hand lets go, and how far back the way in begins."""

    pose: Pose
    back: float
    cost: float

    def before(self, inward_3: np.ndarray) -> Pose:
        return Pose(self.pose.place_3 - self.back * inward_3, self.pose.turn_33)


def find_opening(
    scene: Scene, middle_3: np.ndarray, half_3: np.ndarray, turn_33: np.ndarray
) -> Opening | None:
    """None where nothing is in the way from above, or no side is open."""
    fixed = scene.others(*scene.movable)
    over = fixed.where(fixed.corners_M3()[:, 2].reshape(-1, 8).min(axis=1) > middle_3[2])
    if over.span_M2(middle_3[None, :2])[1][0] < middle_3[2]:
        return None
    under = fixed.where(fixed.corners_M3()[:, 2].reshape(-1, 8).max(axis=1) < middle_3[2])
    floor = max(float(under.span_M2(middle_3[None, :2])[1][0]), scene.table)
    along = np.arange(0.0, OPEN_FOR, 0.005)
    level = [axis for axis in turn_33.T if abs(axis[2]) < 0.5]
    for axis, sign in product(level, (1.0, -1.0)):
        way = sign * axis
        aside = np.cross(UP, way)
        starts = [
            middle_3 + a * 0.5 * (np.abs(aside) @ half_3) * aside + b * 0.5 * half_3[2] * UP
            for a, b in product((-1, 0, 1), (-1, 0, 1))
        ]
        line = np.concatenate([start - along[:, None] * way for start in starts])
        if not fixed.inside_M(line).any():
            return Opening(middle_3, half_3, way, floor)
    return None


def entries(
    thing: Boxes,
    origin_3: np.ndarray,
    turn_33: np.ndarray,
    side: Opening,
    right: Callable[[np.ndarray], bool],
    obstacles: Boxes,
    table: float,
    coarse: bool = False,
) -> Iterator[Entry]:
    """Ways in, the cheapest first. `thing` and its origin are seen from the hand, whose turn is such that
    the thing stands as it stood."""
    points = np.concatenate([_some(thing.surface_M3(0.012), 150), _some(thing.corners_M3(), 80)])
    count = len(points)
    points = np.concatenate([points, hand_boxes().surface_M3(0.025)])
    aside_3 = np.cross(UP, side.inward_3)
    front = float((side.middle_3 - side.depth * side.inward_3) @ side.inward_3)
    ways = [(depth, aside) for depth, aside in product(DEPTHS, ASIDES[:1] if coarse else ASIDES)]
    found: list[tuple[float, Pose]] = []
    for lean, turn in product(LEANS, TURNS[::2] if coarse else TURNS):
        whole = turned_by(-lean * aside_3) @ turned_by(turn * UP) @ turn_33
        seen = points @ whole.T
        hands, costs = [], []
        first = float((seen[:count] @ side.inward_3).min())
        for depth, aside in ways:
            origin = side.middle_3 + aside * aside_3 + (depth - side.depth) * side.inward_3
            hand = origin - whole @ origin_3
            hand[2] = side.floor + ABOVE - float(seen[:count, 2].min())
            origin = hand + whole @ origin_3
            if right(origin) and right(origin - 0.006 * side.inward_3):
                hands.append(hand)
                outside = max(0.0, front - first - float(hand @ side.inward_3))
                inside = 0.6 * outside if side.shuts else -0.3 * depth
                costs.append(0.03 * lean + 0.012 * abs(turn) + 0.2 * abs(aside) + inside)
        if not hands or float(seen[count:, 2].min()) + hands[0][2] < table + AIR:
            continue
        placed_KM3 = np.array(hands)[:, None] + seen
        free_K = ~obstacles.inside_M(placed_KM3.reshape(-1, 3), AIR).reshape(len(hands), -1).any(axis=1)
        found += [(costs[k], Pose(hands[k], whole)) for k in np.flatnonzero(free_K).tolist()]
    for cost, pose in sorted(found, key=lambda one: one[0]):
        placed = points @ pose.turn_33.T + pose.place_3
        back = max(0.06, float((placed @ side.inward_3).max()) - front + CLEAR)
        steps = np.linspace(back, 0, int(back / 0.025) + 2)[:-1]
        way = np.concatenate([placed - step * side.inward_3 for step in steps])
        if not obstacles.inside_M(way, AIR).any():
            yield Entry(pose, back, cost)


def _some(points_M3: np.ndarray, most: int) -> np.ndarray:
    """Evenly left out."""
    return points_M3[:: 1 + len(points_M3) // most]


def hand_boxes() -> Boxes:
    low, high = _HAND[:, 0], _HAND[:, 1]
    return Boxes((low + high) / 2, np.tile(np.eye(3), (len(_HAND), 1, 1)), (high - low) / 2)
