"""What the arm could do: the robot put elsewhere in a copy of the world, before anything moves.

The arm's joints are solved for, within their limits; MuJoCo's own collision test says how much room is left.
"""

from __future__ import annotations

import copy

import mujoco
import numpy as np

from lawm_policy.sim.libero_env import LiberoEnv
from lawm_policy.sim.libero_hand import Pose, rotation_between
from lawm_policy.sim.libero_scene import Scene

SEEN = 0.012  # metres within which other things are looked for
WIDE, SHUT = 0.04, 0.0  # how far each finger is from the middle
STEPS, DAMPING = 60, 0.03
NEAR, TURNED = 0.008, 0.08


class Ghost:
    """The robot in a copy of the world as it is now, with what it holds."""

    def __init__(self, env: LiberoEnv, scene: Scene, held: str | None = None):
        self.model = copy.copy(env.model)
        self.data = mujoco.MjData(self.model)
        self.data.qpos[:] = env.data.qpos
        self._start_7 = env.joints()
        self._arm = env._arm
        bodies = self.model.geom_bodyid
        # The arm's first links stay where they are clear of everything.
        mine = (self.model.body_rootid[bodies] == self.model.body_rootid[self._arm.hand]) & (
            bodies >= self.model.body("robot0_link3").id
        )
        if held is not None:
            mine[scene.geoms(held)] = True
        self._mine = mine
        self.model.geom_margin[mine] = SEEN
        self._held: tuple[int, np.ndarray, np.ndarray] | None = None
        if held is not None:
            site = self._arm.site
            turn = env.data.site_xmat[site].reshape(3, 3)
            joint = self.model.body_jntadr[scene.sim.obj_body_id[held]]
            self._held = (
                int(self.model.jnt_qposadr[joint]),
                turn.T @ (scene.place(held) - env.data.site_xpos[site]),
                turn.T @ scene.turn(held),
            )

    def fingers(self, apart: float) -> None:
        self.data.qpos[self._arm.fingers_at] = [apart, -apart]

    def joint(self, index: int, value: float) -> None:
        """Another joint of the scene: a door elsewhere."""
        self.data.qpos[self.model.jnt_qposadr[index]] = value

    def reach(self, pose: Pose) -> bool:
        """Bring the hand there, from where it really is; False where the arm cannot."""
        model, data, arm = self.model, self.data, self._arm
        data.qpos[arm.qpos_at] = self._start_7
        low, high = arm.limits_72.T
        jacobians = np.zeros((2, 3, model.nv))
        near = False
        for _ in range(STEPS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            away = pose.place_3 - data.site_xpos[arm.site]
            turn = data.site_xmat[arm.site].reshape(3, 3)
            spin = rotation_between(turn, pose.turn_33)
            near = bool(np.linalg.norm(away) < NEAR and np.linalg.norm(spin) < TURNED)
            if np.linalg.norm(away) < 0.001 and np.linalg.norm(spin) < 0.01:
                break
            away *= min(1.0, 0.08 / max(float(np.linalg.norm(away)), 1e-9))
            spin *= min(1.0, 0.4 / max(float(np.linalg.norm(spin)), 1e-9))
            mujoco.mj_jacSite(model, data, jacobians[0], jacobians[1], arm.site)
            jacobian_67 = np.concatenate(jacobians)[:, arm.qvel_at]
            square = jacobian_67 @ jacobian_67.T + DAMPING**2 * np.eye(6)
            move = jacobian_67.T @ np.linalg.solve(square, np.concatenate([away, spin]))
            data.qpos[arm.qpos_at] = np.clip(data.qpos[arm.qpos_at] + move, low + 0.05, high - 0.05)
        if self._held is not None:
            at, place, turned = self._held
            turn = data.site_xmat[arm.site].reshape(3, 3)
            data.qpos[at : at + 3] = data.site_xpos[arm.site] + turn @ place
            mujoco.mju_mat2Quat(data.qpos[at + 3 : at + 7], (turn @ turned).ravel())
        return near

    def room(self, *left_out: int) -> float:
        """Metres between the hand, or what it holds, and everything else but some bodies; at most SEEN,
        negative where they overlap."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_collision(self.model, self.data)
        contact = self.data.contact
        pairs_N2 = np.asarray(contact.geom).reshape(-1, 2)
        mine = self._mine[pairs_N2]
        others = np.where(mine[:, 0], pairs_N2[:, 1], pairs_N2[:, 0])
        counted = (mine[:, 0] != mine[:, 1]) & ~np.isin(self.model.geom_bodyid[others], left_out)
        return float(np.min(contact.dist[counted], initial=SEEN))
