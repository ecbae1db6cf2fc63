"""LIBERO's control step, 25 substeps of 2 ms, bit for bit as robosuite does it and in a third of the time.

robosuite computes the whole dynamics three times a substep (before the controller, in it, and in the
step), keeps sensors up to date that nobody reads, and looks names up as it goes. Here positions and
velocities are computed once. Only the constraint solver runs three times, because each run warm-starts
the next and so shows in the last bits. Tests hold the states against LIBERO's own environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np

from lawm_policy.sim.libero_robot import JOINT_KP

SUBSTEPS = 25


class ObservationClock:
    """When robosuite's sensors look: once in a control step, where depends on the updates since the reset.

    After `reset` and `set_init_state` that is in the last substep but one. Kept in its own floating-point
    arithmetic, because a whole observation hangs on the last bit of a sum of 2 ms.
    """

    PERIOD = 1.0 / 20

    def __init__(self) -> None:
        self._elapsed, self._sampled = 0.0, False

    def forced(self) -> None:
        self._elapsed += 0.002
        self._sampled = True

    def tick(self) -> bool:
        """True where the sensors look after this substep."""
        self._elapsed += 0.002
        due = not self._sampled and self._elapsed <= self.PERIOD
        self._sampled |= due
        if self._elapsed >= self.PERIOD:
            assert self._sampled
            self._elapsed %= self.PERIOD
            self._sampled = False
        return due


class Arm:
    """The Panda in robosuite's simulation: indices, limits and the fingers, shared by both controllers."""

    def __init__(self, robot: Any) -> None:
        self.model: mujoco.MjModel = robot.sim.model._model
        self.data: mujoco.MjData = robot.sim.data._data
        self.robot = robot
        self.qpos_at, self.qvel_at = robot._ref_joint_pos_indexes, robot._ref_joint_vel_indexes
        self.fingers_at = robot._ref_gripper_joint_pos_indexes
        self.fingers_v_at = robot._ref_gripper_joint_vel_indexes
        self.site: int = robot.eef_site_id
        self.hand: int = self.model.body(robot.robot_model.eef_name).id
        self.limits_72 = self.model.jnt_range[robot._ref_joint_indexes].copy()
        self.torque_low, self.torque_high = robot.torque_limits
        self._motors_at = robot._ref_joint_actuator_indexes
        self._finger_motors_at = robot._ref_joint_gripper_actuator_indexes
        span = self.model.actuator_ctrlrange[self._finger_motors_at]
        self._middle, self._half = 0.5 * (span[:, 1] + span[:, 0]), 0.5 * (span[:, 1] - span[:, 0])
        self._jacp, self._jacr = (np.zeros((3, self.model.nv)) for _ in range(2))
        self._mass = np.zeros((self.model.nv, self.model.nv))

    def mass_77(self) -> np.ndarray:
        mujoco.mj_fullM(self.model, self._mass, self.data.qM)
        return self._mass[self.qvel_at, :][:, self.qvel_at]

    def jacobians(self) -> tuple[np.ndarray, np.ndarray]:
        mujoco.mj_jacSite(self.model, self.data, self._jacp, self._jacr, self.site)
        return self._jacp, self._jacr

    def drive(self, torques: np.ndarray, gripper: float) -> None:
        # The fingers' target moves a hundredth of its range a substep, towards the sign of the command.
        fingers = self.robot.gripper
        move = np.array([-1.0, 1.0]) * fingers.speed * np.sign(gripper)
        fingers.current_action = np.clip(fingers.current_action + move, -1.0, 1.0)
        self.data.ctrl[self._finger_motors_at] = self._middle + self._half * fingers.current_action
        self.data.ctrl[self._motors_at] = np.clip(torques, self.torque_low, self.torque_high)


class PoseControl:
    """robosuite's OSC_POSE: six numbers in [-1, 1] move the hand's goal by up to 5 cm and 0.5 rad.

    Its first substep after a reset acts on what it saw when it was made, before the initial state was set.
    """

    def __init__(self, arm: Arm) -> None:
        self.arm, self.settings = arm, arm.robot.controller
        made = self.settings
        self.goal_pos, self.goal_ori = np.array(made.initial_ee_pos), np.array(made.initial_ee_ori_mat)
        self._pos, self._ori = np.array(made.ee_pos), np.array(made.ee_ori_mat)
        self._velocity, self._turning = np.array(made.ee_pos_vel), np.array(made.ee_ori_vel)
        self._q, self._speed = np.array(made.joint_pos), np.array(made.joint_vel)
        self._J_pos, self._J_ori, self._mass_77 = made.J_pos, made.J_ori, made.mass_matrix
        self._fresh = True

    def observe(self) -> None:
        if self._fresh:
            self._fresh = False
            return
        arm, data = self.arm, self.arm.data
        mujoco.mj_fwdConstraint(arm.model, data)  # robosuite's controller asks for a second forward pass
        jacp, jacr = arm.jacobians()
        self._pos, self._ori = data.site_xpos[arm.site].copy(), data.site_xmat[arm.site].reshape(3, 3).copy()
        self._velocity, self._turning = np.dot(jacp, data.qvel), np.dot(jacr, data.qvel)
        self._q, self._speed = data.qpos[arm.qpos_at], data.qvel[arm.qvel_at]
        self._J_pos, self._J_ori = np.array(jacp[:, arm.qvel_at]), np.array(jacr[:, arm.qvel_at])
        self._mass_77 = arm.mass_77()

    def aim(self, command: np.ndarray) -> None:
        from robosuite.utils.control_utils import set_goal_orientation

        delta = self.settings.scale_action(command)
        if delta[3:].any():
            self.goal_ori = set_goal_orientation(delta[3:], self._ori)
        self.goal_pos = self._pos + delta[:3]

    def torques(self, _: int) -> np.ndarray:
        from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

        settings = self.settings
        J_full = np.vstack([self._J_pos, self._J_ori])
        turn = orientation_error(self.goal_ori, self._ori)
        force = (self.goal_pos - self._pos) * settings.kp[:3] + -self._velocity * settings.kd[:3]
        torque = turn * settings.kp[3:] + -self._turning * settings.kd[3:]
        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(
            self._mass_77, J_full, self._J_pos, self._J_ori
        )
        wrench = np.concatenate([np.dot(lambda_pos, force), np.dot(lambda_ori, torque)])
        found = np.dot(J_full.T, wrench) + self.arm.data.qfrc_bias[self.arm.qvel_at]
        found += nullspace_torques(self._mass_77, nullspace, settings.initial_joint, self._q, self._speed)
        return found


class JointControl:
    """Absolute joint targets, reached at the end of the control step along a straight line."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.goal = self._start = arm.data.qpos[arm.qpos_at].copy()

    def observe(self) -> None:
        pass

    def aim(self, command: np.ndarray) -> None:
        self._start, self.goal = self.goal, command

    def torques(self, substep: int) -> np.ndarray:
        arm, data = self.arm, self.arm.data
        wanted = self._start + (self.goal - self._start) * ((substep + 1) / SUBSTEPS)
        speed = (self.goal - self._start) * 20
        error, speed_error = wanted - data.qpos[arm.qpos_at], speed - data.qvel[arm.qvel_at]
        push = JOINT_KP * error + 2 * np.sqrt(JOINT_KP) * speed_error
        return np.dot(arm.mass_77(), push) + data.qfrc_bias[arm.qvel_at]


def control_step(
    arm: Arm,
    control: PoseControl | JointControl,
    command: np.ndarray,
    gripper: float,
    clock: ObservationClock,
    look: Callable[[], None],
) -> None:
    """One command. `look` is called at the moment at which LIBERO's sensors see the world."""
    model, data = arm.model, arm.data
    for substep in range(SUBSTEPS):
        mujoco.mj_forward(model, data)
        control.observe()
        if substep == 0:
            control.aim(command)
        arm.drive(control.torques(substep), gripper)
        mujoco.mj_checkPos(model, data)
        mujoco.mj_checkVel(model, data)
        mujoco.mj_step2(model, data)  # positions and velocities are as they were: only the command is new
        if clock.tick():
            look()
