"""Kinematic chains read from YAML: joints, limits, gains; forward and inverse kinematics.

A tool pose is four numbers, `x y z yaw`, with the gripper pointing down: what a table needs, and what
arms of five joints or more can all reach. `yaw` turns the axis along which the fingers open; at zero
that is the world's y axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

from lawm_policy.sim.engine import mujoco
from lawm_policy.types import UserError

EMBODIMENTS = ("arm5", "arm6", "arm7", "hand")
PINCH = 0.10  # metres from the gripper's base to the point between its fingertips


@dataclass(frozen=True)
class Joint:
    name: str
    axis: tuple[float, ...]
    offset: tuple[float, ...]
    limits: tuple[float, float]
    kp: float
    kv: float
    mass: float
    radius: float
    type: str = "hinge"


@dataclass(frozen=True)
class Chain:
    """One kinematics YAML."""

    name: str
    base: tuple[float, ...]
    joints: tuple[Joint, ...]
    tool: tuple[float, ...]
    rest: tuple[float, ...]
    floating: bool = False

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    @property
    def limits_A2(self) -> np.ndarray:
        return np.array([joint.limits for joint in self.joints])


@cache
def load_chain(name: str) -> Chain:
    """The chain called `name` among the YAML files beside this module."""
    if name not in EMBODIMENTS:
        raise UserError(
            f"expected an embodiment among {', '.join(EMBODIMENTS)}, found {name!r}: choose one of these"
        )
    raw: dict[str, Any] = yaml.safe_load((resources.files(__package__) / f"{name}.yaml").read_text())
    joints = tuple(Joint(**_tuples(joint)) for joint in raw.pop("joints"))
    chain = Chain(joints=joints, **_tuples(raw))
    assert len(chain.rest) == len(joints), f"{name}.yaml: one rest angle a joint"
    return chain


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def chain_xml(chain: Chain, gripper_xml: str = "") -> str:
    """Nested MJCF bodies: the chain, `gripper_xml` on its flange, a site `pinch` between the fingertips."""
    radii = [joint.radius for joint in chain.joints]
    ends = [joint.offset for joint in chain.joints[1:]] + [chain.tool]
    flip = ' quat="0 0 1 0"' if chain.floating else ""  # a floating gripper hangs from its joints
    inner = (
        f'<body name="gripper" pos="{_numbers(chain.tool)}"{flip} gravcomp="1">'
        f'{gripper_xml}<site name="pinch" pos="0 0 {PINCH}" size="0.004" rgba="0 0 0 0"/></body>'
    )
    for joint, radius, end in reversed(list(zip(chain.joints, radii, ends, strict=True))):
        shape = ""
        if radius:
            shape = (
                f'<geom class="link" type="capsule" size="{radius}" fromto="0 0 0 {_numbers(end)}"/>'
                f'<geom class="joint" type="sphere" size="{radius * 1.18:.4f}"/>'
            )
        inner = (
            f'<body name="{joint.name}" pos="{_numbers(joint.offset)}" gravcomp="1">'
            f'<joint name="{joint.name}" type="{joint.type}" axis="{_numbers(joint.axis)}" '
            f'range="{_numbers(joint.limits)}" armature="0.01"/>'
            f'<inertial pos="{_numbers(np.array(end) / 2)}" mass="{joint.mass}" '
            f'diaginertia="{" ".join(["%.6f" % (joint.mass * 0.01)] * 3)}"/>{shape}{inner}</body>'
        )
    return f'<body name="base" pos="{_numbers(chain.base)}">{inner}</body>'


def down_rotation(yaw: float) -> np.ndarray:
    """(3, 3) frame of the pinch site that points down, its fingers opening along (-sin yaw, cos yaw)."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[-c, -s, 0.0], [-s, c, 0.0], [0.0, 0.0, -1.0]])


class Kinematics:
    """Forward and inverse kinematics of one chain, by MuJoCo's Jacobians on a model of the chain alone."""

    def __init__(self, chain: Chain):
        self.chain = chain
        self._model = mujoco.MjModel.from_xml_string(
            '<mujoco><compiler angle="radian"/>'
            '<default><default class="link"/><default class="joint"/></default>'
            f"<worldbody>{chain_xml(chain)}</worldbody></mujoco>"
        )
        self._data = mujoco.MjData(self._model)
        self._site = self._model.site("pinch").id
        self._low, self._high = chain.limits_A2[:, 0], chain.limits_A2[:, 1]
        self._rest = np.array(chain.rest)
        # Slides move metres, hinges radians: a hinge may turn faster than a slide may slide.
        self._stride = np.array([0.1 if joint.type == "slide" else 0.35 for joint in chain.joints])

    def forward(self, q_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3) of the pinch point."""
        self._data.qpos[:] = q_A
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def pose(self, q_A: np.ndarray) -> np.ndarray:
        """(4,) x y z yaw."""
        position, rotation = self.forward(q_A)
        return np.array([*position, np.arctan2(-rotation[0, 1], rotation[1, 1])])

    def inverse(
        self, pose_4: np.ndarray, q_A: np.ndarray, iterations: int = 40, tolerance: float = 1e-4
    ) -> tuple[np.ndarray, float]:
        """Joints that bring the pinch point to `x y z yaw`, starting from `q_A`, and the error that remains
        (metres plus 0.1 x radians). Damped least squares; a redundant chain also drifts to its rest pose."""
        goal = down_rotation(pose_4[3])
        q = np.clip(np.asarray(q_A, dtype=np.float64), self._low, self._high)
        jacobian_position, jacobian_rotation = np.zeros((2, 3, self._model.nv))
        residual = np.inf
        for _ in range(iterations):
            position, rotation = self.forward(q)
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jacSite(self._model, self._data, jacobian_position, jacobian_rotation, self._site)
            twist = 0.5 * sum(np.cross(rotation[:, k], goal[:, k]) for k in range(3))
            error = np.concatenate([pose_4[:3] - position, 0.1 * twist])
            residual = float(np.linalg.norm(error[:3]) + np.linalg.norm(error[3:]))
            if residual < tolerance:
                break
            jacobian = np.concatenate([jacobian_position, 0.1 * jacobian_rotation])
            inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-6 * np.eye(6))
            step = inverse @ error
            step += (np.eye(len(q)) - inverse @ jacobian) @ (0.1 * (self._rest - q))
            step *= min(1.0, float(np.min(self._stride / np.maximum(np.abs(step), 1e-9))))
            q = np.clip(q + step, self._low, self._high)
        return q, residual


def _numbers(values: object) -> str:
    return " ".join(f"{value:.6g}" for value in np.asarray(values, dtype=float))
