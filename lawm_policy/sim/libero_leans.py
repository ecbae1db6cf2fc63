"""Letting go of what is too tall to stand where it belongs: leaned over, with the hand, so that it lies down.

The hand and what it holds are points over the height map, as in libero_grasps; whether the arm can lean
that way is asked of libero_reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from lawm_policy.sim.libero_hand import UP, Pose, turned_by
from lawm_policy.sim.libero_scene import Scene
from lawm_policy.sim.libero_shelves import hand_boxes

LEANS = np.radians([50, 65, 80])
TOWARDS = np.radians(np.arange(0, 360, 45))  # the level line about which it leans
TURNS = np.radians(np.arange(-180, 180, 30))  # about the vertical, before it leans
SPACING = 0.02  # metres between places
DROP = 0.06  # metres that it may fall


def leaned_places(
    scene: Scene,
    held: str,
    hand: Pose,
    middle_2: np.ndarray,
    reach_2: np.ndarray,
    right: Callable[[np.ndarray], bool],
) -> Iterator[Pose]:
    """Poses of the hand in which `held` touches what is under it and its origin is `right`, best first."""
    thing = scene.boxes(held).seen_from(hand.place_3, hand.turn_33).surface_M3(0.01)
    points = np.concatenate([thing, hand_boxes().surface_M3(0.02)])
    origin = hand.turn_33.T @ (scene.place(held) - hand.place_3)
    steps = [np.arange(-n, n + 1) for n in np.floor(reach_2 / SPACING).astype(int)]
    offsets = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 2) * SPACING
    size = float(np.abs(offsets).max() + np.linalg.norm(points, axis=1).max() + np.linalg.norm(origin))
    heights = scene.map_around(middle_2, size, held)
    found: list[tuple[float, Pose]] = []
    for lean, towards, turn in product(LEANS, TOWARDS, TURNS):
        level = np.array([np.cos(towards), np.sin(towards), 0.0])
        whole = turned_by(lean * level) @ turned_by(turn * UP) @ hand.turn_33
        seen, there = points @ whole.T, whole @ origin
        places, still = middle_2 + offsets - there[:2], np.zeros(len(offsets))
        rests = heights.lowest(seen[: len(thing)], places, still)
        good = [
            k for k, rest in enumerate(rests) if right(np.array([*(middle_2 + offsets[k]), rest + there[2]]))
        ]
        if not good:
            continue
        lows = heights.lowest(seen, places[good], still[good])
        for k, low in zip(good, lows, strict=True):
            drop = float(low - rests[k])
            if drop < DROP:
                cost = drop + 0.03 * lean + 0.01 * abs(turn) + 0.2 * float(np.linalg.norm(offsets[k]))
                found.append((cost, Pose(np.array([*places[k], low]), whole)))
    for _, pose in sorted(found, key=lambda one: one[0]):
        yield pose
