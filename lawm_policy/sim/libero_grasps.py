"""Where to take a thing, and where to let go of it: chosen by its shape and by the hand's room beside it.

The hand comes from above. Its own lower side, fingers open, is let down over the height map of the scene
(LIBERO's things are made of boxes, so this is exact): a grasp that would land on a neighbour is no grasp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lawm_policy.sim.libero_hand import RIM
from lawm_policy.sim.libero_scene import Boxes, HeightMap, Scene

# The hand seen from the point between its fingertips: u is the fingers' axis, v across, h up.
OPEN = 0.039  # from the middle to a finger's inner face
FINGER_V, TIP = 0.012, 0.010  # half width, and how far the tips reach below
_FINGER = ((0.0, 0.016, -TIP), (0.016, 0.020, 0.0), (0.020, 0.026, 0.020))  # thicker further up
PALM, PALM_U, PALM_V = 0.031, 0.104, 0.0325
PAD_V, PAD_LOW, PAD_HIGH = 0.007, -0.004, 0.011
ROOM = 0.008  # metres kept free beside the hand
WIDEST = 0.072


def _rectangle(u: tuple[float, float], v: tuple[float, float], height: float, step: float) -> np.ndarray:
    us = np.linspace(*u, max(2, round((u[1] - u[0]) / step) + 1))
    vs = np.linspace(*v, max(2, round((v[1] - v[0]) / step) + 1))
    grid = np.stack(np.meshgrid(us, vs, indexing="ij"), -1).reshape(-1, 2)
    return np.column_stack([grid, np.full(len(grid), height)])


def hand_under(opening: float = OPEN, room: float = ROOM) -> np.ndarray:
    """(M, 3) the lower side of the hand, its inner finger faces `opening` off the middle."""
    parts = [_rectangle((-PALM_U - room, PALM_U + room), (-PALM_V - room, PALM_V + room), PALM, 0.008)]
    for inner, outer, height in _FINGER:
        for side in (-1.0, 1.0):
            u = (side * (opening + inner), side * (opening + outer))
            parts.append(_rectangle(u, (-FINGER_V, FINGER_V), height, 0.004))
    return np.concatenate(parts)


_HAND = hand_under()


@dataclass(frozen=True)
class Grasp:
    place_3: np.ndarray  # of the point between the fingertips
    yaw: float  # of the fingers' axis
    width: float  # of what is between them
    cost: float


def find_grasps(
    scene: Scene,
    boxes: Boxes,
    middle_2: np.ndarray,
    yaw_now: float,
    count: int = 12,
    apart: float = 0.018,
) -> list[Grasp]:
    """Of what consists of `boxes` and has its weight in `middle_2`. The best first; they differ in place
    or yaw, by `apart` in metres."""
    points = boxes.surface_M3(0.004)
    low, high = points.min(0), points.max(0)
    reach = float(np.linalg.norm(high[:2] - low[:2])) / 2 + 0.14
    heights = scene.map_around((low[:2] + high[:2]) / 2, reach)
    found: list[Grasp] = []
    for yaw in np.linspace(0, np.pi, 18, endpoint=False):
        found += _grasps_at(points, heights, float(yaw), middle_2, float(low[2]))
    for k, grasp in enumerate(found):
        turn = abs(nearest(grasp.yaw, yaw_now, np.pi) - yaw_now)
        found[k] = Grasp(
            grasp.place_3,
            nearest(grasp.yaw, yaw_now, np.pi),
            grasp.width,
            grasp.cost + 0.006 * turn + 2.0 * scene.strain(grasp.place_3),
        )
    found.sort(key=lambda grasp: grasp.cost)
    chosen: list[Grasp] = []
    for grasp in found:
        if all(
            np.linalg.norm(grasp.place_3 - other.place_3) + 0.05 * abs(grasp.yaw - other.yaw) > apart
            for other in chosen
        ):
            chosen.append(grasp)
        if len(chosen) == count:
            break
    return chosen


def _grasps_at(
    points_M3: np.ndarray, heights: HeightMap, yaw: float, middle_2: np.ndarray, bottom: float
) -> list[Grasp]:
    axis_u = np.array([np.cos(yaw), np.sin(yaw)])
    axis_v = np.array([-np.sin(yaw), np.cos(yaw)])
    u, v, z = points_M3[:, :2] @ axis_u, points_M3[:, :2] @ axis_v, points_M3[:, 2]
    step = max(0.006, float(max(np.ptp(u), np.ptp(v))) / 24)
    us = np.arange(u.min() - 0.02, u.max() + 0.021, step)
    vs = np.arange(v.min(), v.max() + 0.001, step)
    vs += (v.min() + v.max()) / 2 - vs[len(vs) // 2]  # one line through the middle
    us += (u.min() + u.max()) / 2 - us[len(us) // 2]
    grid = np.stack(np.meshgrid(us, vs, indexing="ij"), -1).reshape(-1, 2)
    places = grid[:, :1] * axis_u + grid[:, 1:] * axis_v
    lowest = heights.lowest(_HAND, places, np.full(len(grid), yaw))
    # Near the top of what is there: a hand that hangs above it all has nothing between its fingers.
    hopeful = np.flatnonzero(lowest + 0.003 + PAD_LOW < points_M3[:, 2].max())
    found = []
    for (at_u, at_v), place, free in zip(grid[hopeful], places[hopeful], lowest[hopeful], strict=True):
        height = max(float(free) + 0.002, bottom + 0.008, heights.floor + 0.012)
        slab = np.abs(v - at_v) < PAD_V
        slab &= (z > height + PAD_LOW) & (z < height + PAD_HIGH) & (np.abs(u - at_u) < OPEN)
        if slab.sum() < 8:
            continue
        inner = u[slab]
        side = v[slab] > at_v
        if not 2 < side.sum() < len(side) - 2:
            continue
        width = float(np.ptp(inner))
        if width > WIDEST:
            continue
        off = abs((inner.max() + inner.min()) / 2 - at_u)
        one, two = inner[side], inner[~side]
        slant = abs(one.max() - two.max()) + abs(one.min() - two.min())
        hold = z[slab]
        depth = float(hold.max() - hold.min())
        away = float(np.linalg.norm(place - middle_2))
        cost = 0.6 * off + 0.25 * away + 1.2 * slant + 2.0 * max(0.0, 0.014 - depth)
        cost += 0.15 * max(0.0, height - bottom - 0.10) + 0.5 * max(0.0, width - 0.062)
        found.append(Grasp(np.array([*place, height]), yaw, width, float(cost)))
    return found


# ---------------------------------------------------------------------- letting go


@dataclass(frozen=True)
class Spot:
    """Where the hand lets go: its place and yaw, and where the thing's origin will be."""

    place_3: np.ndarray
    yaw: float
    origin_3: np.ndarray
    cost: float


def find_spots(
    scene: Scene,
    held: str,
    hand_3: np.ndarray,
    yaw_now: float,
    middle_2: np.ndarray,
    reach_2: np.ndarray,
    right: Callable[[np.ndarray], bool],
    yaws_K: np.ndarray,
    count: int = 6,
) -> list[Spot]:
    """Places for the origin of what is held, within `reach_2` of `middle_2`, where `right` says that the
    goal is reached once it has been let down until something touches; the best first."""
    boxes = scene.boxes(held)
    under = lower_side(boxes.seen_from(hand_3, np.eye(3)).turned(-yaw_now))
    with_hand = np.concatenate([under, hand_under(0.0)])
    origin = scene.place(held) - hand_3  # as the hand is turned now
    steps = [np.arange(-n, n + 1) for n in np.minimum(6, np.floor(reach_2 / 0.01)).astype(int)]
    offsets = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 2) * 0.01
    size = float(np.linalg.norm(with_hand[:, :2], axis=1).max() + np.linalg.norm(origin[:2]))
    heights = scene.map_around(middle_2, float(max(np.abs(offsets).max(), 0)) + size + 0.01, held)
    found: list[Spot] = []
    for yaw in yaws_K:
        turn = yaw - yaw_now
        c, s = np.cos(turn), np.sin(turn)
        moved = np.array([c * origin[0] - s * origin[1], s * origin[0] + c * origin[1]])
        places = middle_2 + offsets - moved
        yaws = np.full(len(places), yaw)
        rests = heights.lowest(under, places, yaws)
        lows = heights.lowest(with_hand, places, yaws)
        for place, offset, rest, low in zip(places, offsets, rests, lows, strict=True):
            there = np.array([*(place + moved), rest + origin[2]])
            if right(there):
                slack = np.mean([right(there + shift) for shift in _AROUND_K3])
                cost = (
                    rest
                    + 0.5 * (low - rest)
                    + 0.2 * np.linalg.norm(offset)
                    + 0.012 * abs(turn)
                    + 0.08 * (1 - slack)
                )
                cost += 2.0 * scene.strain(np.array([*place, low]))
                found.append(Spot(np.array([*place, low]), float(yaw), there, float(cost)))
    found.sort(key=lambda spot: spot.cost)
    return sorted(
        (_with_room(spot, heights, under) for spot in found[:count]),
        key=lambda spot: spot.cost,
    )


def _with_room(spot: Spot, heights: HeightMap, under_M3: np.ndarray) -> Spot:
    """What a little to the side stands higher, costs: the hand may miss, and things turn in it."""
    places = spot.place_3[:2] + 0.5 * _AROUND_K3[:, :2]
    rises = heights.lowest(under_M3, places, np.full(len(places), spot.yaw)) - (
        heights.lowest(under_M3, spot.place_3[None, :2], np.array([spot.yaw]))
    )
    return replace(spot, cost=spot.cost + float(np.mean(np.clip(rises, 0, 0.04))))


def rim_before(
    heights: HeightMap, under_M3: np.ndarray, place_3: np.ndarray, yaw: float, from_2: np.ndarray
) -> np.ndarray:
    """(K,) how low the hand may be at each RIM metres before a place, on the way from another."""
    way = from_2 - place_3[:2]
    away = RIM * np.arange(1, 9)[:, None]
    places = place_3[:2] + away * way / max(float(np.linalg.norm(way)), 1e-6)
    lows = heights.lowest(under_M3, places, np.full(len(places), yaw)) + 0.006
    return np.append(place_3[2], lows)


_ANGLES = np.linspace(0, 2 * np.pi, 8, endpoint=False)
_AROUND_K3 = 0.012 * np.column_stack([np.cos(_ANGLES), np.sin(_ANGLES), np.zeros(8)])


def lower_side(boxes: Boxes, step: float = 0.005) -> np.ndarray:
    """(M, 3) what of the boxes is seen from below."""
    corners = boxes.corners_M3()
    low, high = corners.min(0)[:2], corners.max(0)[:2]
    xs, ys = (np.arange(a, b + step, step) for a, b in zip(low, high, strict=True))
    places = np.stack(np.meshgrid(xs, ys, indexing="ij"), -1).reshape(-1, 2)
    lowest, _ = boxes.span_M2(places)
    seen = lowest < 5
    return np.column_stack([places[seen], lowest[seen]])


def nearest(angle: float, reference: float, period: float) -> float:
    """The same angle, modulo the period, nearest to the reference."""
    return float(reference + (angle - reference + period / 2) % period - period / 2)
