"""Perturbed episodes of LIBERO, one axis at a time, in three grades, each episode its own by its number.

What only looks different (camera, light, texture) is written into the compiled model and undone before the
next episode. An episode's number says in which direction, the grade how far: grades of one episode form a
series. The wrist's camera stays where the hand has it.
"""

from __future__ import annotations

import zlib

import mujoco
import numpy as np

from lawm_policy.sim.libero_control import Arm
from lawm_policy.sim.libero_premise import BrokenPremise
from lawm_policy.sim.libero_protocol import AXES
from lawm_policy.sim.libero_render import ROBOT_PREFIXES

# What looks may change of a model; its headlight comes on top.
LOOKS = (
    "cam_pos",
    "cam_quat",
    "light_pos",
    "light_diffuse",
    "light_specular",
    "mat_rgba",
    "geom_matid",
)
ORBIT = {1: 5.0, 2: 10.0, 3: 17.0}  # degrees by which the front camera goes around and over the table
NEARER = {1: 0.04, 2: 0.08, 3: 0.15}  # of its distance
BRIGHTER = {1: 0.3, 2: 0.6, 3: 0.9}  # logarithm: so much darker, or half as much brighter
LAMP_TINT = {1: 0.15, 2: 0.3, 3: 0.5}  # of white that a lamp's colour takes away
LAMP_SHIFT = {1: 0.15, 2: 0.3, 3: 0.5}  # metres
PAINT = {1: 0.3, 2: 0.3, 3: 0.6}  # of white that a surface's colour takes away
EXCHANGE = {1: False, 2: True, 3: True}  # surfaces lend each other their materials
HAND = {1: 0.05, 2: 0.10, 3: 0.16}  # metres between the hand and where it usually starts
LOWEST = 0.08  # metres that the hand may start lower
LIMIT = 0.05  # radians short of a joint's limit


def seeded(task: str, number: int, axis: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(task.encode()), max(number, 0), 100 + AXES.index(axis)])


class Looks:
    """Camera, light and texture of one compiled model."""

    def __init__(self, model: mujoco.MjModel, level: float) -> None:
        self.model, self._level = model, level  # of the table or the floor
        self._before = {name: getattr(model, name).copy() for name in LOOKS}
        lamp = model.vis.headlight
        self._lamp = lamp.ambient.copy(), lamp.diffuse.copy(), lamp.specular.copy()
        self._surfaces = surface_geoms(model)

    def restore(self) -> None:
        for name, values in self._before.items():
            getattr(self.model, name)[:] = values
        lamp = self.model.vis.headlight
        lamp.ambient[:], lamp.diffuse[:], lamp.specular[:] = self._lamp

    def change(self, axis: str, grade: int, rng: np.random.Generator) -> None:
        {"camera": self._camera, "light": self._light, "texture": self._texture}[axis](grade, rng)

    def _camera(self, grade: int, rng: np.random.Generator) -> None:
        """Around the point of the table that it looks at."""
        model = self.model
        camera = model.camera("agentview").id
        turn_9 = np.zeros(9)
        mujoco.mju_quat2Mat(turn_9, model.cam_quat[camera])
        eye_3, ahead_3 = model.cam_pos[camera].copy(), -turn_9.reshape(3, 3)[:, 2]
        middle_3 = eye_3 + ahead_3 * (eye_3[2] - self._level) / -ahead_3[2]
        around = rng.choice((-1, 1)) * rng.uniform(0.6, 1.0)
        over = rng.choice((-1, 1)) * rng.uniform(0.3, 0.6)
        nearer = rng.uniform(-1, 1)
        spin, tilt = np.zeros(4), np.zeros(4)
        mujoco.mju_axisAngle2Quat(spin, np.array([0.0, 0, 1]), np.radians(ORBIT[grade] * around))
        mujoco.mju_axisAngle2Quat(tilt, turn_9.reshape(3, 3)[:, 0], np.radians(ORBIT[grade] * over))
        turn, arm_3 = np.zeros(4), np.zeros(3)
        mujoco.mju_mulQuat(turn, spin, tilt)
        mujoco.mju_rotVecQuat(arm_3, eye_3 - middle_3, turn)
        model.cam_pos[camera] = middle_3 + arm_3 * (1 + NEARER[grade] * nearer)
        found = np.zeros(4)
        mujoco.mju_mulQuat(found, turn, self._before["cam_quat"][camera])
        model.cam_quat[camera] = found

    def _light(self, grade: int, rng: np.random.Generator) -> None:
        model, lamp = self.model, self.model.vis.headlight
        bright = np.exp(BRIGHTER[grade] * rng.choice((-1.0, 0.5)) * rng.uniform(0.7, 1.0))
        colour_3 = 1 - LAMP_TINT[grade] * rng.permutation(np.array([0.0, rng.uniform(), 1.0]))
        colour_3 /= colour_3.mean()
        angle = rng.uniform(0, 2 * np.pi)
        model.light_pos[:, :2] += LAMP_SHIFT[grade] * np.array([np.cos(angle), np.sin(angle)])
        model.light_diffuse *= bright * colour_3
        model.light_specular *= bright * colour_3
        lamp.diffuse *= bright * colour_3
        lamp.ambient *= bright * colour_3

    def _texture(self, grade: int, rng: np.random.Generator) -> None:
        """Paints floor, wall and table, and from grade 2 on each wears another's texture."""
        model, surfaces = self.model, list(self._surfaces.values())
        materials = [int(self._before["geom_matid"][geoms[0]]) for geoms in surfaces]
        for material in materials:
            colour_3 = rng.permutation(np.array([0.0, rng.uniform(0.3, 1.0), 1.0]))
            model.mat_rgba[material, :3] *= 1 - PAINT[grade] * colour_3
        by = int(rng.integers(1, len(materials)))
        if EXCHANGE[grade]:  # of whole materials: renderers keep the textures of each for good
            for k, geoms in enumerate(surfaces):
                model.geom_matid[geoms] = materials[(k + by) % len(materials)]


def surface_geoms(model: mujoco.MjModel) -> dict[str, list[int]]:
    """What everything stands on and before: the geoms of floor, wall and table that have a material."""
    found: dict[str, list[int]] = {}
    for geom in range(model.ngeom):
        name, body = model.geom(geom).name, model.body(model.geom_bodyid[geom]).name
        if model.geom_matid[geom] < 0 or model.body_weldid[model.geom_bodyid[geom]] != 0:
            continue
        if name == "floor":
            found.setdefault("floor", []).append(geom)
        elif name.startswith("wall_") and name.endswith("_visual"):
            found.setdefault("wall", []).append(geom)
        elif "table" in body and "leg" not in name:
            found.setdefault("table", []).append(geom)
    assert len(found) > 1, "a scene without floor or wall"
    return found


def displaced_arm(arm: Arm, state_S: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """The state with another joint configuration, the hand HAND[grade] away and touching nothing."""
    model, data, qpos_at = arm.model, arm.data, 1 + np.array(arm.qpos_at)
    of_robot = [model.body(body).name.startswith(ROBOT_PREFIXES) for body in range(model.nbody)]
    mine = np.array(of_robot)[model.geom_bodyid]

    def look(q_7: np.ndarray) -> tuple[np.ndarray, set[tuple[int, int]]]:
        data.qpos[:] = state_S[1 : 1 + model.nq]
        data.qpos[arm.qpos_at] = q_7
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        pairs = data.contact.geom
        touching = {(int(a), int(b)) for a, b in pairs[mine[pairs].any(axis=1)]} if len(pairs) else set()
        return data.site_xpos[arm.site].copy(), touching

    start_7 = state_S[qpos_at]
    before_3, touching = look(start_7)
    low_7, high_7 = arm.limits_72[:, 0] + LIMIT, arm.limits_72[:, 1] - LIMIT
    for _ in range(200):
        way_7 = rng.standard_normal(7)
        way_7 /= np.linalg.norm(way_7)
        near, far = 0.0, 0.9
        if np.linalg.norm(look(start_7 + far * way_7)[0] - before_3) < HAND[grade]:
            continue
        for _ in range(20):
            half = (near + far) / 2
            beyond = np.linalg.norm(look(start_7 + half * way_7)[0] - before_3) > HAND[grade]
            near, far = (near, half) if beyond else (half, far)
        q_7 = start_7 + far * way_7
        hand_3, now = look(q_7)
        if np.all((low_7 < q_7) & (q_7 < high_7)) and hand_3[2] > before_3[2] - LOWEST and now <= touching:
            found_S = state_S.copy()
            found_S[qpos_at] = q_7
            return found_S
    raise BrokenPremise(f"no start for the arm {100 * HAND[grade]:.0f} cm away that touches nothing")
