"""The geometry behind LIBERO's initial states: what things are there, how big they are, what carries them.

Measured on the collision shapes of the compiled model; LIBERO's own figures (one radius of 2.5 cm for
nearly everything) say little.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from lawm_policy.sim.libero_render import ROBOT_PREFIXES

KINDS = ("table", "site", "object")  # stands on the table, on or in a part of a fixture, on another thing
PARKED = 30.0  # metres away, where nobody looks
BOX = "box"  # what region names call the cookies
STEP = 0.004  # metres by which a thing is let down
TOUCHING = 0.0005  # metres


@dataclass(frozen=True)
class Thing:
    """A movable object: where its numbers are in the state, and how the problem places it."""

    name: str
    kin: str  # bowl, mug, plate: what an instruction may confuse it with
    root: int  # body
    geoms: tuple[int, ...]  # that collide
    at: int  # in qpos
    v_at: int  # in qvel
    kind: str  # of KINDS
    where: str  # region or thing
    centre_2: np.ndarray
    half_2: np.ndarray  # what a draw spans to either side
    height: float  # where LIBERO lets go of it
    quats_N4: np.ndarray  # orientations of the stored states
    refs: tuple[str, ...] = ()  # what its region's name refers to
    narrow: bool = False  # the goal is told from where it stands: it keeps to its region
    extra: bool = False  # a distractor


def things_of(sim: Any, model: mujoco.MjModel, stored_NS: np.ndarray, extra: str) -> tuple[Thing, ...]:
    regions = sim.parsed_problem["regions"]
    where = {said[1]: said[2] for said in sim.parsed_problem["initial_state"] if len(said) == 3}
    goals = [
        name
        for said in sim.parsed_problem["goal_state"]
        for name in said[1:]
        if name in regions and regions[name]["ranges"]
    ]
    kin = {name: _kin(name) for name in sim.objects_dict}
    found = []
    for name, body in sim.objects_dict.items():
        joint = model.joint(body.joints[-1])
        root = int(model.body_rootid[sim.obj_body_id[name]])
        at, place = int(joint.qposadr[0]), where[name]
        seen_N3 = stored_NS[:, 1 + at : 4 + at]
        if place in sim.objects_dict:
            kind, centre_2, half_2 = "object", np.zeros(2), np.zeros(2)
        elif len(regions[place]["ranges"]):
            kind = "table"
            low_2, high_2 = np.reshape(regions[place]["ranges"][0], (2, 2))
            centre_2 = (low_2 + high_2) / 2 + np.array(sim.workspace_offset)[:2]
            covered_2 = np.abs(seen_N3[:, :2] - centre_2).max(axis=0)
            half_2 = (high_2 - low_2) / 2
            half_2 = half_2 if name.startswith(extra) else np.maximum(half_2, covered_2)
        else:
            kind = "site"
            low_2, high_2 = seen_N3[:, :2].min(axis=0), seen_N3[:, :2].max(axis=0)
            centre_2, half_2 = (low_2 + high_2) / 2, (high_2 - low_2) / 2
        found.append(
            Thing(
                name=name,
                kin=kin[name],
                root=root,
                geoms=tuple(np.flatnonzero((model.body_rootid[model.geom_bodyid] == root) & _solid(model))),
                at=at,
                v_at=int(joint.dofadr[0]),
                kind=kind,
                where=place,
                centre_2=centre_2,
                half_2=half_2,
                height=float(seen_N3[:, 2].mean()),
                quats_N4=stored_NS[:, 4 + at : 8 + at],
                refs=_references(place, kin) if kind == "table" else (),
                narrow=any(name.rstrip("_0123456789") in goal for goal in goals),
                extra=name.startswith(extra),
            )
        )
    return tuple(found)


def _kin(name: str) -> str:
    return name.rstrip("_0123456789").split("_")[-1]


def _references(region: str, kin: dict[str, str]) -> tuple[str, ...]:
    """The things that "next_to_plate_region" and "between_plate_ramekin_region" mean."""
    told = re.search(r"(?:next_to|between)_(.+?)(?:_region)?$", region)
    words = {"cookies" if word == BOX else word for word in told[1].split("_")} if told else set()
    return tuple(name for name, own in kin.items() if own in words)


def _solid(model: mujoco.MjModel) -> np.ndarray:
    return (model.geom_contype | model.geom_conaffinity) > 0


class Shapes:
    """Boxes, distances and supports in one world. `put_down` and its like write to `data.qpos`."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, sim: Any) -> None:
        self.model, self.data, self.sim = model, data, sim
        mujoco.mj_forward(model, data)
        self.base_2 = data.xpos[model.body("robot0_base").id][:2].copy()
        named = {int(model.body_rootid[sim.obj_body_id[n]]) for n in (*sim.objects_dict, *sim.fixtures_dict)}
        roots = model.body_rootid[model.geom_bodyid]
        names = [model.body(body).name for body in model.geom_bodyid]
        still = [
            int(geom)
            for geom in np.flatnonzero(_solid(model))
            if int(roots[geom]) not in named and not names[geom].startswith(ROBOT_PREFIXES)
        ]
        self._carriers = frozenset(still)
        self._tops = [self._geom_box(geom) for geom in still]
        self.level = float(sim.workspace_offset[2])
        camera = model.camera("agentview").id
        self._eye_3 = data.cam_xpos[camera].copy()
        self._view_33 = data.cam_xmat[camera].reshape(3, 3).copy()
        self._zoom = 1 / np.tan(np.radians(model.cam_fovy[camera]) / 2)
        middle_2 = self._region_middle()
        self.level = self.support(middle_2)
        self._opened = self._openings()

    # ------------------------------------------------------------------ putting

    def put_down(self, thing: Thing, place_2: np.ndarray, quat: np.ndarray, gap: float) -> None:
        """Upon the table or the floor, by its lowest point."""
        depth = self.depth(thing, quat)
        self._place(thing, np.r_[place_2, self.support(place_2) + depth + gap], quat)

    def let_down(self, thing: Thing, place_2: np.ndarray, height: float, quat: np.ndarray) -> bool:
        """From a height until it would touch. False where it touches already."""
        height_now = height
        self._place(thing, np.r_[place_2, height_now], quat)
        if self._gap(thing) < TOUCHING:
            return False
        while self._gap(thing) >= TOUCHING:
            height_now -= STEP
            if height_now < height - 0.5:
                return False
            self._place(thing, np.r_[place_2, height_now], quat)
        self._place(thing, np.r_[place_2, height_now + STEP], quat)
        return True

    def park(self, thing: Thing, k: int) -> None:
        """On the floor, far behind the robot, one beside the other."""
        quat = thing.quats_N4[0]
        depth = self.depth(thing, quat)
        self._place(thing, np.array([-PARKED, k * 0.5 - PARKED, depth]), quat)

    def parked(self, thing: Thing) -> bool:
        return bool(self.data.qpos[thing.at] < -PARKED / 2)

    def depth(self, thing: Thing, quat: np.ndarray) -> float:
        """How far it reaches below its origin when it is turned like this."""
        kept = self.data.qpos[thing.at : thing.at + 7].copy()
        self._place(thing, np.array([-PARKED, 0.0, PARKED]), quat)
        depth = PARKED - float(self.box(thing)[0][2])
        self._place(thing, kept[:3], kept[3:])
        return depth

    def _place(self, thing: Thing, place_3: np.ndarray, quat: np.ndarray) -> None:
        self.data.qpos[thing.at : thing.at + 3] = place_3
        self.data.qpos[thing.at + 3 : thing.at + 7] = quat
        mujoco.mj_kinematics(self.model, self.data)

    # ------------------------------------------------------------------ measuring

    def box(self, thing: Thing) -> tuple[np.ndarray, np.ndarray]:
        """Its lowest and highest coordinates."""
        boxes = np.array([self._geom_box(geom) for geom in thing.geoms])
        return boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)

    def _geom_box(self, geom: int) -> tuple[np.ndarray, np.ndarray]:
        model, kinds = self.model, mujoco.mjtGeom
        middle_3, turn_33 = self.data.geom_xpos[geom], self.data.geom_xmat[geom].reshape(3, 3)
        size, kind = model.geom_size[geom], model.geom_type[geom]
        if kind == kinds.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
            points_V3 = model.mesh_vert[first : first + count] @ turn_33.T
            return middle_3 + points_V3.min(axis=0), middle_3 + points_V3.max(axis=0)
        if kind == kinds.mjGEOM_PLANE:
            return np.array([-np.inf, -np.inf, -np.inf]), np.array([np.inf, np.inf, middle_3[2]])
        up_3 = np.abs(turn_33[:, 2])
        if kind == kinds.mjGEOM_BOX:
            half_3 = np.abs(turn_33) @ size
        elif kind == kinds.mjGEOM_SPHERE:
            half_3 = np.full(3, size[0])
        elif kind == kinds.mjGEOM_CAPSULE:
            half_3 = size[0] + up_3 * size[1]
        elif kind == kinds.mjGEOM_CYLINDER:
            half_3 = size[0] * np.sqrt(np.maximum(0, 1 - up_3**2)) + up_3 * size[1]
        elif kind == kinds.mjGEOM_ELLIPSOID:
            half_3 = np.linalg.norm(turn_33 * size, axis=1)
        else:
            raise AssertionError(f"no box of geom type {kind}")
        return middle_3 - half_3, middle_3 + half_3

    def support(self, place_2: np.ndarray) -> float:
        """The height of what would carry a thing there: table, floor."""
        tops = [
            high[2] for low, high in self._tops if np.all(low[:2] <= place_2) and np.all(place_2 <= high[:2])
        ]
        return float(max(tops, default=-np.inf))

    def from_base(self, place_3: np.ndarray) -> float:
        return float(np.linalg.norm(place_3[:2] - self.base_2))

    def from_sight(self, place_3: np.ndarray) -> float:
        """0 in the middle of the front image, 1 at its edge."""
        x, y, z = (place_3 - self._eye_3) @ self._view_33
        return float("inf") if z >= 0 else float(max(abs(x), abs(y)) * self._zoom / -z)

    def sees(self, thing: Thing) -> bool:
        """Whether nothing stands between its middle and the front camera."""
        low_3, high_3 = self.box(thing)
        met = np.zeros(1, np.int32)
        way_3 = (low_3 + high_3) / 2 - self._eye_3
        mujoco.mj_ray(self.model, self.data, self._eye_3, way_3, None, 1, -1, met)
        return bool(met[0] >= 0 and self.model.body_rootid[self.model.geom_bodyid[met[0]]] == thing.root)

    def neighbours(self, thing: Thing, within: float, opened: bool = False) -> dict[int, float]:
        """Distance of what lies within `within`, by root body, without what carries everything."""
        if not opened:
            return self._near(thing, within)
        found: dict[int, float] = {}
        for joints in self._opened:
            kept = self.data.qpos[[at for at, _ in joints]].copy()
            for at, value in joints:
                self.data.qpos[at] = value
            for other, gap in self._near(thing, within).items():
                found[other] = min(gap, found.get(other, np.inf))
            self.data.qpos[[at for at, _ in joints]] = kept
        mujoco.mj_kinematics(self.model, self.data)
        return found

    def _near(self, thing: Thing, within: float, all_of_it: bool = False) -> dict[int, float]:
        model, data, geoms = self.model, self.data, list(thing.geoms)
        bodies = sorted({int(model.geom_bodyid[geom]) for geom in geoms})
        before = model.geom_margin[geoms].copy(), model.body_margin[bodies].copy()
        model.geom_margin[geoms], model.body_margin[bodies] = within, within
        try:
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_collision(model, data)
        finally:
            model.geom_margin[geoms], model.body_margin[bodies] = before
        # A contact within a margin tells that two are near, and wrongly how near: that is measured.
        pairs = zip(data.contact.geom.tolist(), data.contact.dist.tolist(), strict=True)
        near = {(a, b): gap for (a, b), gap in pairs}
        found: dict[int, float] = {}
        mine, plane = set(geoms), mujoco.mjtGeom.mjGEOM_PLANE
        for (a, b), gap in near.items():
            other = b if a in mine else a
            if (a in mine) == (b in mine) or (other in self._carriers and not all_of_it):
                continue
            if model.geom_type[other] != plane:
                gap = mujoco.mj_geomDistance(model, data, a, b, within, None)
            if gap < within:
                root = int(model.body_rootid[model.geom_bodyid[other]])
                found[root] = min(gap, found.get(root, np.inf))
        return found

    def _gap(self, thing: Thing) -> float:
        return min(self._near(thing, 0.01, all_of_it=True).values(), default=np.inf)

    # ------------------------------------------------------------------ what the task is about

    def places_of_interest(self) -> list[np.ndarray]:
        """Where the task's things, parts and goals are, seen from above."""
        sim, data = self.sim, self.data
        mujoco.mj_kinematics(self.model, data)
        said = [name for sentence in sim.parsed_problem["goal_state"] for name in sentence[1:]]
        found = []
        for name in dict.fromkeys((*sim.obj_of_interest, *said)):
            if name in sim.obj_body_id:
                found.append(data.xpos[sim.obj_body_id[name]][:2].copy())
            else:
                found.append(data.site_xpos[self.model.site(name).id][:2].copy())
        return found

    def _openings(self) -> list[list[tuple[int, float]]]:
        """Joints of what the goal speaks of, and where they are when it is open."""
        found = []
        for said in self.sim.parsed_problem["goal_state"]:
            for name in said[1:]:
                part = self.sim.get_object(name)
                spans = getattr(part, "object_properties", {}).get("articulation", {})
                joints = getattr(part, "joints", None)
                if joints and spans.get("default_open_ranges"):  # a knob has none
                    wide = max(spans["default_open_ranges"], key=abs)
                    found.append([(int(self.model.joint(j).qposadr[0]), float(wide)) for j in joints])
        return found

    def _region_middle(self) -> np.ndarray:
        regions = self.sim.parsed_problem["regions"].values()
        first = next(region["ranges"][0] for region in regions if len(region["ranges"]))
        return np.mean(np.reshape(first, (2, 2)), axis=0) + np.array(self.sim.workspace_offset)[:2]
