"""LIBERO's images: `exact`, the pixels of its own OffScreenRenderEnv; `lite`, the same scene for less.

Lite leaves out reflections (floors and tables are drawn twice for them) and multisampling, and thins the
robot's visual meshes, 168 of 190 thousand faces, which at these sizes cover a few hundred pixels.
Physics never sees any of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from lawm_policy.sim.rendering import CameraRig

ROBOT_PREFIXES = ("robot0_", "gripper0_", "mount0_")
VISUAL_GROUP = 1
CELL = 0.012  # metres: a mesh's vertices within one cell become one
# All that a picture is drawn from, beside what an episode leaves alone: of the data, and of the model.
_PLACES = (
    *("xpos", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
_COLOURS = ("geom_rgba", "site_rgba")


@dataclass(frozen=True)
class Sight:
    """A moment, to be drawn later: what cameras see of it, in some ten kilobytes."""

    places: dict[str, np.ndarray]
    colours: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: mujoco.MjModel, data: mujoco.MjData) -> Sight:
        return cls(
            {name: getattr(data, name).copy() for name in _PLACES},
            {name: getattr(model, name).copy() for name in _COLOURS},
        )

    def put(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        for owner, values in ((data, self.places), (model, self.colours)):
            for name, value in values.items():
                getattr(owner, name)[:] = value


class SceneRig:
    """Renders our camera names from one LIBERO model. Images come upside down, as robosuite gives them."""

    def __init__(self, model: mujoco.MjModel, size: int, visuals: str, cameras: dict[str, str]) -> None:
        self._cameras = cameras
        option = mujoco.MjvOption()
        option.geomgroup[0], option.geomgroup[VISUAL_GROUP] = 0, 1  # collision shapes are not drawn
        screen, quality = model.vis.global_, model.vis.quality
        before = screen.offwidth, screen.offheight, quality.offsamples
        screen.offwidth = screen.offheight = size  # no more to clear and to resolve than is read
        if visuals == "lite":
            quality.offsamples = 0
        off = (mujoco.mjtRndFlag.mjRND_REFLECTION,) if visuals == "lite" else ()
        try:
            self._rig = CameraRig(model, size, effects=True, off=off, option=option)
        finally:
            screen.offwidth, screen.offheight, quality.offsamples = before

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self._rig.render(data, self._cameras[camera])[::-1]

    def close(self) -> None:
        self._rig.close()


class FilmRig(SceneRig):
    """The same for people: the right way up."""

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        return super().render(data, camera)[::-1]


def thin_robot(model: mujoco.MjModel) -> None:
    """Fewer faces on the robot's visual meshes, in place. Before any renderer of the model is made."""
    drawn = {
        int(model.geom_dataid[geom])
        for geom in range(model.ngeom)
        if model.geom_group[geom] == VISUAL_GROUP
        and model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
        and model.body(model.geom_bodyid[geom]).name.startswith(ROBOT_PREFIXES)
    }
    collide = {int(mesh) for mesh in model.geom_dataid[(model.geom_contype | model.geom_conaffinity) > 0]}
    for mesh in drawn - collide:
        _thin(model, mesh)


def _thin(model: mujoco.MjModel, mesh: int) -> None:
    """Vertices in one cell of a grid become the one nearest their mean; faces that collapse go."""
    first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices_V3 = model.mesh_vert[first : first + count]
    start, faces = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    face_F3 = model.mesh_face[start : start + faces]
    _, cell_V = np.unique(np.floor(vertices_V3 / CELL), axis=0, return_inverse=True)
    cell_V = cell_V.reshape(-1)
    size_C = np.bincount(cell_V)
    mean_C3 = np.stack([np.bincount(cell_V, vertices_V3[:, k]) / size_C for k in range(3)], axis=1)
    distance_V = np.linalg.norm(vertices_V3 - mean_C3[cell_V], axis=1)
    order = np.lexsort((distance_V, cell_V))
    chosen_C = order[np.r_[0, np.cumsum(size_C)[:-1]]]
    new_F3 = chosen_C[cell_V[face_F3]]
    kept = (new_F3[:, 0] != new_F3[:, 1]) & (new_F3[:, 1] != new_F3[:, 2]) & (new_F3[:, 2] != new_F3[:, 0])
    _, unlike = np.unique(np.sort(new_F3, axis=1), axis=0, return_index=True)  # one of coinciding faces
    kept &= np.isin(np.arange(len(kept)), unlike)
    if not kept.any():
        return
    n = int(kept.sum())
    for rows in (model.mesh_facenormal, model.mesh_facetexcoord):
        mine = rows[start : start + faces]
        mine[:n] = mine[kept]
    face_F3[:n] = new_F3[kept]
    model.mesh_facenum[mesh] = n
