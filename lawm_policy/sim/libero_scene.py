"""The shapes of a LIBERO scene: every collision geometry is a box, so heights can be asked for exactly.

What lies highest under a place, what hangs lowest of a thing, and how low a thing can be let down before
it touches something: these three decide grasps, places and the height of flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import mujoco
import numpy as np

CELL = 0.004  # metres of a height map's cell
NOWHERE = -10.0
ARM, WRIST_BACK, WRIST_UP = 0.717, 0.079, 0.215  # the Panda's: shoulder to wrist, and wrist to fingertips


@dataclass(frozen=True)
class Boxes:
    """N boxes in the world: `places_N3`, `turns_N33` (columns are the axes), `halves_N3`."""

    places_N3: np.ndarray
    turns_N33: np.ndarray
    halves_N3: np.ndarray

    def __len__(self) -> int:
        return len(self.places_N3)

    def where(self, kept_N: np.ndarray) -> Boxes:
        return Boxes(self.places_N3[kept_N], self.turns_N33[kept_N], self.halves_N3[kept_N])

    def only(self, k: int) -> Boxes:
        return self.where(np.array([k]))

    def inside_M(self, points_M3: np.ndarray, room: float = 0.0) -> np.ndarray:
        """Which points lie in a box, or within `room` of its faces."""
        found_M = np.zeros(len(points_M3), bool)
        low, high = points_M3.min(axis=0) - room, points_M3.max(axis=0) + room
        reach = np.einsum("nij,nj->ni", np.abs(self.turns_N33), self.halves_N3)
        near = self.where(((self.places_N3 + reach > low) & (self.places_N3 - reach < high)).all(axis=1))
        for place, turn, half in zip(near.places_N3, near.turns_N33, near.halves_N3, strict=True):
            found_M |= (np.abs((points_M3 - place) @ turn) < half + room).all(axis=1)
        return found_M

    def corners_M3(self) -> np.ndarray:
        signs = np.array(list(product((-1.0, 1.0), repeat=3)))
        local = self.halves_N3[:, None] * signs
        return (self.places_N3[:, None] + np.einsum("nij,nkj->nki", self.turns_N33, local)).reshape(-1, 3)

    def seen_from(self, place_3: np.ndarray, turn_33: np.ndarray) -> Boxes:
        """In a frame of one's own."""
        return Boxes(
            (self.places_N3 - place_3) @ turn_33,
            np.einsum("ji,njk->nik", turn_33, self.turns_N33),
            self.halves_N3,
        )

    def turned(self, angle: float) -> Boxes:
        """About the vertical through the origin."""
        turn_33 = np.array(
            [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]]
        )
        return Boxes(self.places_N3 @ turn_33.T, turn_33 @ self.turns_N33, self.halves_N3)

    def near(self, low_2: np.ndarray, high_2: np.ndarray) -> Boxes:
        """Those that may reach into a rectangle."""
        reach = np.einsum("nij,nj->ni", np.abs(self.turns_N33), self.halves_N3)[:, :2]
        kept = ((self.places_N3[:, :2] + reach > low_2) & (self.places_N3[:, :2] - reach < high_2)).all(1)
        return self.where(kept)

    def span_M2(self, places_M2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest point of the boxes on each vertical line; (+10, -10) where there is none."""
        low_M, high_M = np.full(len(places_M2), -NOWHERE), np.full(len(places_M2), NOWHERE)
        for place, turn, half in zip(self.places_N3, self.turns_N33, self.halves_N3, strict=True):
            reach = np.abs(turn[:2]) @ half
            hit = np.flatnonzero((np.abs(places_M2 - place[:2]) <= reach).all(1))
            if not len(hit):
                continue
            away = np.column_stack([places_M2[hit] - place[:2], np.zeros(len(hit))]) @ turn
            slope = turn[2]  # of the vertical line, in the box's frame
            with np.errstate(divide="ignore", invalid="ignore"):
                one, two = (-half - away) / slope, (half - away) / slope
            inside = np.abs(away) <= half
            flat = np.abs(slope) < 1e-9
            enter = np.where(flat, np.where(inside, -np.inf, np.inf), np.minimum(one, two)).max(1)
            leave = np.where(flat, np.where(inside, np.inf, -np.inf), np.maximum(one, two)).min(1)
            met = leave >= enter
            hit, enter, leave = hit[met], enter[met], leave[met]
            low_M[hit] = np.minimum(low_M[hit], place[2] + enter)
            high_M[hit] = np.maximum(high_M[hit], place[2] + leave)
        return low_M, high_M

    def surface_M3(self, spacing: float = 0.004) -> np.ndarray:
        """Points all over the boxes' faces."""
        found = []
        for place, turn, half in zip(self.places_N3, self.turns_N33, self.halves_N3, strict=True):
            counts = np.maximum(2, np.ceil(2 * half / spacing).astype(int) + 1)
            axes = [np.linspace(-h, h, n) for h, n in zip(half, counts, strict=True)]
            for normal in range(3):
                others = [axes[k] if k != normal else half[k] * np.array([-1.0, 1.0]) for k in range(3)]
                grid = np.stack(np.meshgrid(*others, indexing="ij"), -1).reshape(-1, 3)
                found.append(place + grid @ turn.T)
        return np.concatenate(found)


def together(several: list[Boxes]) -> Boxes:
    return Boxes(
        np.concatenate([boxes.places_N3 for boxes in several]).reshape(-1, 3),
        np.concatenate([boxes.turns_N33 for boxes in several]).reshape(-1, 3, 3),
        np.concatenate([boxes.halves_N3 for boxes in several]).reshape(-1, 3),
    )


@dataclass(frozen=True)
class HeightMap:
    """The highest point on each cell of a rectangle, `floor` where there is nothing."""

    low_2: np.ndarray
    tops_XY: np.ndarray
    floor: float

    @staticmethod
    def of(boxes: Boxes, low_2: np.ndarray, high_2: np.ndarray, floor: float) -> HeightMap:
        nx, ny = (np.ceil((high_2 - low_2) / CELL).astype(int) + 1).tolist()
        xs, ys = low_2[0] + CELL * np.arange(nx), low_2[1] + CELL * np.arange(ny)
        places = np.stack(np.meshgrid(xs, ys, indexing="ij"), -1).reshape(-1, 2)
        _, high = boxes.near(low_2, high_2).span_M2(places)
        return HeightMap(low_2, np.maximum(high, floor).reshape(nx, ny), floor)

    def at(self, places_M2: np.ndarray) -> np.ndarray:
        """(...,) heights; the floor's outside."""
        nx, ny = self.tops_XY.shape
        x = ((places_M2[..., 0] - self.low_2[0]) / CELL + 0.5).astype(np.int32)
        y = ((places_M2[..., 1] - self.low_2[1]) / CELL + 0.5).astype(np.int32)
        inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
        found = self.tops_XY.ravel().take(x * ny + y, mode="clip")
        return np.where(inside, found, self.floor)

    def lowest(self, under_M3: np.ndarray, places_K2: np.ndarray, yaws_K: np.ndarray) -> np.ndarray:
        """(K,) how low a thing can be let down at each place and yaw. `under_M3`: its lower side, seen from
        its own origin, whose height is answered."""
        c, s = np.cos(yaws_K)[:, None], np.sin(yaws_K)[:, None]
        x = places_K2[:, :1] + c * under_M3[:, 0] - s * under_M3[:, 1]
        y = places_K2[:, 1:] + s * under_M3[:, 0] + c * under_M3[:, 1]
        return (self.at(np.stack([x, y], -1)) - under_M3[:, 2]).max(axis=1)


class Scene:
    """Everything in a simulation but the robot and the room, by name."""

    def __init__(self, sim: Any) -> None:
        self.sim = sim
        self.model: mujoco.MjModel = sim.sim.model._model
        self.data: mujoco.MjData = sim.sim.data._data
        self.movable = tuple(sim.objects_dict)
        names = {body: name for name, body in sim.obj_body_id.items()}
        self._geoms: dict[str, list[int]] = {name: [] for name in sim.obj_body_id}
        for geom in range(self.model.ngeom):
            body = int(self.model.geom_bodyid[geom])
            while body and body not in names:
                body = int(self.model.body_parentid[body])
            if body and (self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]):
                self._geoms[names[body]].append(geom)
        things = [name for name in self.movable if self._geoms[name]]
        self.table = min(float(self.boxes(name).corners_M3()[:, 2].min()) for name in things)

        self._shoulder = self.model.body("robot0_link2").id

    def ceiling(self, place_2: np.ndarray) -> float:
        """How high the hand can be there, pointing down, before the arm is straight."""
        shoulder = self.data.xpos[self._shoulder]
        out = max(float(np.linalg.norm(place_2 - shoulder[:2])) - WRIST_BACK, 0.0)
        return float(shoulder[2] - WRIST_UP + np.sqrt(max(ARM**2 - out**2, 0.0)))

    def strain(self, place_3: np.ndarray) -> float:
        """How far, about, a place is out of the arm's comfortable reach."""
        shoulder = self.data.xpos[self._shoulder]
        out = float(np.linalg.norm(place_3[:2] - shoulder[:2])) - WRIST_BACK
        length = float(np.hypot(out, place_3[2] + WRIST_UP - shoulder[2]))
        return max(0.0, length - ARM + 0.03)

    def geoms(self, name: str) -> list[int]:
        """What of a thing may be touched."""
        return self._geoms[name]

    def boxes(self, *names: str) -> Boxes:
        return self._bounds([geom for name in names for geom in self._geoms[name]])

    def body_boxes(self, body: int) -> Boxes:
        """Of one body alone: a drawer, a door."""
        geoms = [g for group in self._geoms.values() for g in group if self.model.geom_bodyid[g] == body]
        return self._bounds(geoms)

    def _bounds(self, geoms: list[int]) -> Boxes:
        """Exact for boxes, which nearly all of LIBERO's geometries are; else around the geometry."""
        turns_N33 = self.data.geom_xmat[geoms].reshape(-1, 3, 3).copy()
        bounds_N6 = self.model.geom_aabb[geoms]
        places_N3 = self.data.geom_xpos[geoms] + np.einsum("nij,nj->ni", turns_N33, bounds_N6[:, :3])
        return Boxes(places_N3, turns_N33, bounds_N6[:, 3:].copy())

    def others(self, *left_out: str) -> Boxes:
        return self.boxes(*(name for name in self._geoms if name not in left_out))

    def place(self, name: str) -> np.ndarray:
        """(3,) where a thing's origin is."""
        return self.data.xpos[self.sim.obj_body_id[name]].copy()

    def turn(self, name: str) -> np.ndarray:
        return self.data.xmat[self.sim.obj_body_id[name]].reshape(3, 3).copy()

    def map_around(self, place_2: np.ndarray, reach: float, *left_out: str) -> HeightMap:
        low, high = place_2 - reach, place_2 + reach
        return HeightMap.of(self.others(*left_out), low, high, self.table)
