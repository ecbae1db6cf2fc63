"""The tabletop as a Gymnasium environment: 20 Hz commands in, camera images and proprioception out."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lawm_policy.sim.engine import mujoco
from lawm_policy.sim.kinematics import Kinematics, load_chain
from lawm_policy.sim.rendering import CameraRig
from lawm_policy.sim.tabletop_layout import Layout, distractor_places, sample_layout
from lawm_policy.sim.tabletop_scene import (
    BLOCK_HALF,
    BLOCKS,
    BOWLS,
    CAMERAS,
    COLOURS,
    FINGER_STROKE,
    SUBSTEPS,
    TIMESTEP,
    compile_scene,
    look_quaternion,
)
from lawm_policy.sim.tabletop_tasks import HOLD_STEPS, TASKS, Task, World
from lawm_policy.types import UserError

COMMANDS = ("joint", "ee")
CONTROL_HZ = 20
EE_STRIDE = np.array([0.02, 0.02, 0.02, 0.15])  # of the commanded pose in one step, at full scale
POSE_LIMITS = np.array([[-0.20, 0.20], [-0.26, 0.26], [0.012, 0.26], [-2.2, 2.2]])
GRIPPER_STRIDE = 0.009  # metres a finger's target moves in one step: closing takes several frames
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


class TabletopEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One scene holds every task's objects. The seed fixes the scene; the task never changes it.

    `command="joint"`: absolute joint targets and a gripper in [-1 open, +1 closed].
    `command="ee"`: the commanded pose moves by x y z yaw, each in [-1, 1] of `EE_STRIDE`, and the gripper.
    `render_now = False` makes observations black and cheap, for those who look only now and then.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012

    def __init__(
        self,
        task: str | None = None,
        embodiment: str = "arm6",
        command: str = "joint",
        size: int = 64,
        cameras: tuple[str, ...] = CAMERAS,
        distractors: int = 0,
        images: bool = True,
        render_mode: str | None = None,
    ):
        if command not in COMMANDS:
            raise UserError(
                f"expected command among {', '.join(COMMANDS)}, found {command!r}: choose one of these"
            )
        if unknown := set(cameras) - set(CAMERAS):
            raise UserError(
                f"expected cameras among {', '.join(CAMERAS)}, found {sorted(unknown)}: choose some of these"
            )
        self.task: Task | None = None if task is None else find_task(task)
        self._default_task = self.task
        self.embodiment, self.command, self.size = embodiment, command, size
        self.cameras = tuple(cameras) if images else ()
        self.distractors, self.render_mode = distractors, render_mode
        self.render_now = True

        self.kinematics = Kinematics(load_chain(embodiment))
        self._n = n = len(self.kinematics.chain.joints)
        self.model = copy.copy(compile_scene(embodiment, distractors))
        self.data = mujoco.MjData(self.model)
        self._rig: CameraRig | None = None
        self._joint_at = [self.model.joint(name).qposadr[0] for name in self.kinematics.chain.joint_names]
        self._finger_at = [self.model.joint(name).qposadr[0] for name in ("left", "right")]
        self._drawer_at = self.model.joint("drawer").qposadr[0]
        self._block_at = {name: self.model.joint(f"{name}_block").qposadr[0] for name in BLOCKS}
        self._block_speed_at = {name: self.model.joint(f"{name}_block").dofadr[0] for name in BLOCKS}
        self._block_body = {name: self.model.body(f"{name}_block").id for name in BLOCKS}
        self._mocap = {
            name: self.model.body(name).mocapid[0]
            for name in (*(f"{bowl}_bowl" for bowl in BOWLS), "pad", "drawer")
        }
        self._mocap_movers = [self.model.body(f"distractor{k}").mocapid[0] for k in range(distractors)]
        self._pinch = self.model.site("pinch").id
        self._colour_of_geom = self._find_coloured_geoms()

        limits = self.kinematics.chain.limits_A2 if command == "joint" else np.array([[-1.0, 1.0]] * 4)
        bounds = np.concatenate([limits, [[-1.0, 1.0]]]).astype(np.float32)
        self.action_box = self.action_space = spaces.Box(bounds[:, 0], bounds[:, 1], dtype=np.float32)
        image = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict({camera: image for camera in self.cameras}),
                "state": spaces.Box(-np.inf, np.inf, (n + 6,), np.float32),
            }
        )
        self.instruction, self.steps, self._held = "", 0, 0
        self._distractors_N6 = np.zeros((distractors, 6))
        self.commanded_q = np.array(self.kinematics.chain.rest)
        self.commanded_pose = self.kinematics.pose(self.commanded_q)

    # ------------------------------------------------------------------ Gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options: `task` (a name), `paraphrase` (its index; None draws one), `state` (from `save_state`)."""
        super().reset(seed=seed)
        options = options or {}
        scene_seed = int(self.np_random.integers(2**31))
        words = np.random.default_rng([scene_seed, 1])  # apart from the scene: no task changes what is seen
        chosen = options.get("task")
        task = find_task(chosen) if chosen else self._default_task or TASKS[str(words.choice(list(TASKS)))]
        if options.get("state") is not None:
            self._load(options["state"])
        else:
            self._place(sample_layout(np.random.default_rng([scene_seed, 0]), self.distractors))
        self._ask(task, options.get("paraphrase"), words)
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float32)
        if action.shape != self.action_box.shape or not np.isfinite(action).all():
            raise UserError(
                f"expected {self.action_box.shape} finite numbers ({', '.join(self.action_names)}), "
                f"found shape {action.shape}: check the robot card"
            )
        action = np.clip(action, self.action_box.low, self.action_box.high).astype(np.float64)
        self._command(action)
        self._advance(action[-1])
        self.steps += 1
        assert self.task is not None, "step before reset"
        self._held = self._held + 1 if self.task.done(self.world()) else 0
        success = self._held >= HOLD_STEPS
        truncated = not success and self.steps >= self.task.step_limit
        return self._observation(), float(success), success, truncated, self._info()

    def render(self) -> Any:
        """The front camera's image."""
        return self._camera_rig().render(self.data, "front")

    def close(self) -> None:
        if self._rig is not None:
            self._rig.close()
            self._rig = None

    # ------------------------------------------------------------------ what people read

    @property
    def action_names(self) -> tuple[str, ...]:
        pose = ("dx", "dy", "dz", "dyaw")
        return (*(self.kinematics.chain.joint_names if self.command == "joint" else pose), "gripper")

    @property
    def state_names(self) -> tuple[str, ...]:
        return (
            *self.kinematics.chain.joint_names,
            "opening",
            "eef_x",
            "eef_y",
            "eef_z",
            "eef_sin_yaw",
            "eef_cos_yaw",
        )

    def robot_card(self) -> dict[str, Any]:
        """What a policy must know about this body: names, limits, rate, and what commands are relative to."""
        joint = self.command == "joint"
        return {
            "embodiment": self.embodiment,
            "command": self.command,
            "rate": CONTROL_HZ,
            "action_names": list(self.action_names),
            "state_names": list(self.state_names),
            # index into the state of the value an absolute command is measured from; null: as it stands
            "relative_to": [*(range(self._n) if joint else [None] * 4), None],
            "limits": [
                [float(low), float(high)]
                for low, high in zip(self.action_box.low, self.action_box.high, strict=True)
            ],
            "gripper": {"open": -1.0, "closed": 1.0},
            "cameras": list(self.cameras),
        }

    def state(self) -> np.ndarray:
        """(P,) float32: joints, opening in [0, 1], tool position, sine and cosine of its yaw."""
        rotation = self.data.site_xmat[self._pinch]
        yaw_sc = np.array([-rotation[1], rotation[4]])
        yaw_sc /= max(float(np.linalg.norm(yaw_sc)), 1e-9)
        values = [self.data.qpos[self._joint_at], [self._opening()], self.data.site_xpos[self._pinch], yaw_sc]
        return np.concatenate(values).astype(np.float32)

    def world(self) -> World:
        """The simulator's truth, for goals and experts."""
        data, rotation = self.data, self.data.site_xmat[self._pinch]
        return World(
            blocks={name: data.qpos[at : at + 3].copy() for name, at in self._block_at.items()},
            yaws={name: _yaw_of(data.qpos[at + 3 : at + 7]) for name, at in self._block_at.items()},
            speeds={
                name: float(np.linalg.norm(data.qvel[at : at + 3]))
                for name, at in self._block_speed_at.items()
            },
            bowls={bowl: data.mocap_pos[self._mocap[f"{bowl}_bowl"]].copy() for bowl in BOWLS},
            pad=data.mocap_pos[self._mocap["pad"]].copy(),
            drawer_place=data.mocap_pos[self._mocap["drawer"]].copy(),
            drawer=float(data.qpos[self._drawer_at]),
            opening=self._opening(),
            gripper=data.site_xpos[self._pinch].copy(),
            yaw=float(np.arctan2(-rotation[1], rotation[4])),
        )

    def gripper_command(self) -> float:
        """The gripper's present target, in [-1 open, +1 closed]."""
        return float(np.clip(1 - 2 * self.data.ctrl[-1] / FINGER_STROKE, -1, 1))

    def render_images(self) -> dict[str, np.ndarray]:
        """(H, W, 3) uint8 of every camera, now."""
        if not self.cameras:
            return {}
        rig = self._camera_rig()
        return {camera: rig.render(self.data, camera) for camera in self.cameras}

    def camera_rig(self, size: int) -> CameraRig:
        """A renderer of one's own, to be closed by whoever asked."""
        return CameraRig(self.model, size)

    # ------------------------------------------------------------------ saving and continuing

    def save_state(self) -> dict[str, np.ndarray]:
        """Everything that decides what happens next and what it looks like, except the task."""
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        return {
            "physics": physics,
            "commanded_q": self.commanded_q.copy(),
            "commanded_pose": self.commanded_pose.copy(),
            "colours": self.model.geom_rgba.copy(),
            "camera": np.concatenate([self.model.camera("front").pos, self.model.camera("front").quat]),
            "light": np.concatenate([self.model.light("sun").diffuse, self.model.light("sun").dir]),
            "distractors": self._distractors_N6.copy(),
        }

    def restore(
        self, state: dict[str, np.ndarray], task: str | None = None, paraphrase: int | None = 0
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Continue from a saved state, under another instruction if `task` is given; steps count anew."""
        self._load(state)
        chosen = find_task(task) if task is not None else self.task
        if chosen is None:
            raise UserError("expected a task to continue under, found none: pass restore(state, task=NAME)")
        self._ask(chosen, paraphrase, self.np_random)
        return self._observation(), self._info()

    # ------------------------------------------------------------------ inside

    def _ask(self, task: Task, paraphrase: int | None, rng: np.random.Generator) -> None:
        index = int(rng.integers(len(task.paraphrases))) if paraphrase is None else paraphrase
        if not 0 <= index < len(task.paraphrases):
            raise UserError(
                f"expected a paraphrase of {task.name} in 0..{len(task.paraphrases) - 1}, found {index}"
            )
        self.task, self.instruction = task, task.paraphrases[index]
        self.steps = self._held = 0

    def _place(self, layout: Layout) -> None:
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        for name, mocap in self._mocap.items():
            data.mocap_pos[mocap] = [*layout.places[name], 0.0]
        for name, at in self._block_at.items():
            yaw = layout.yaws[f"{name}_block"]
            place = layout.places[f"{name}_block"]
            data.qpos[at : at + 7] = [*place, BLOCK_HALF, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        data.qpos[self._drawer_at] = layout.drawer
        self.commanded_q, _ = self.kinematics.inverse(layout.start_pose, np.array(self.kinematics.chain.rest))
        self.commanded_pose = self.kinematics.pose(self.commanded_q)
        data.qpos[self._joint_at] = self.commanded_q
        data.qpos[self._finger_at] = FINGER_STROKE
        data.ctrl[:] = [*self.commanded_q, FINGER_STROKE]
        for name, geoms in self._colour_of_geom.items():
            model.geom_rgba[geoms, :3] = layout.colours[name]
        model.camera("front").pos = layout.camera_position
        model.camera("front").quat = look_quaternion(layout.camera_position, layout.camera_target)
        model.light("sun").diffuse = 0.42 * layout.light
        model.light("sun").dir = layout.light_direction / np.linalg.norm(layout.light_direction)
        self._distractors_N6 = layout.distractors
        self._move_distractors()
        mujoco.mj_forward(model, data)

    def _load(self, state: dict[str, np.ndarray]) -> None:
        expected = mujoco.mj_stateSize(self.model, _PHYSICS)
        if state["physics"].shape != (expected,):
            raise UserError(
                f"expected {expected} numbers ({self.embodiment}, {self.distractors} distractors), "
                f"found {state['physics'].size}: restore it in an environment like the one that saved it"
            )
        mujoco.mj_setState(self.model, self.data, state["physics"], _PHYSICS)
        self.commanded_q, self.commanded_pose = state["commanded_q"].copy(), state["commanded_pose"].copy()
        self.model.geom_rgba[:] = state["colours"]
        self.model.camera("front").pos, self.model.camera("front").quat = (
            state["camera"][:3],
            state["camera"][3:],
        )
        self.model.light("sun").diffuse, self.model.light("sun").dir = state["light"][:3], state["light"][3:]
        self._distractors_N6 = state["distractors"].copy()
        mujoco.mj_forward(self.model, self.data)
        # mj_forward warm-starts the next step; the saved warm start keeps the continuation bit for bit.
        mujoco.mj_setState(self.model, self.data, state["physics"], _PHYSICS)

    def _command(self, action: np.ndarray) -> None:
        if self.command == "joint":
            self.commanded_q = action[:-1]
            self.commanded_pose = self.kinematics.pose(self.commanded_q)
            return
        pose = np.clip(self.commanded_pose + action[:-1] * EE_STRIDE, POSE_LIMITS[:, 0], POSE_LIMITS[:, 1])
        self.commanded_q, _ = self.kinematics.inverse(pose, self.commanded_q)
        self.commanded_pose = pose

    def _advance(self, gripper: float) -> None:
        """One control step: targets move linearly over the substeps, fingers no faster than they may."""
        model, data = self.model, self.data
        start = data.ctrl.copy()
        wanted = FINGER_STROKE * (1 - gripper) / 2
        finger = start[-1] + np.clip(wanted - start[-1], -GRIPPER_STRIDE, GRIPPER_STRIDE)
        end = np.array([*self.commanded_q, finger])
        for k in range(1, SUBSTEPS + 1):
            data.ctrl[:] = start + (end - start) * (k / SUBSTEPS)
            mujoco.mj_step(model, data)
        self._move_distractors()
        # Positions of sites and bodies of the state just reached, without touching the solver's warm start.
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)

    def _move_distractors(self) -> None:
        if self._mocap_movers:
            places = distractor_places(self._distractors_N6, self.data.time)
            self.data.mocap_pos[self._mocap_movers] = places

    def _opening(self) -> float:
        return float(np.clip(self.data.qpos[self._finger_at].sum() / (2 * FINGER_STROKE), 0.0, 1.0))

    def _camera_rig(self) -> CameraRig:
        if self._rig is None:
            self._rig = self.camera_rig(self.size)
        return self._rig

    def _observation(self) -> dict[str, Any]:
        if self.render_now and self.cameras:
            images = self.render_images()
        else:
            images = {camera: np.zeros((self.size, self.size, 3), np.uint8) for camera in self.cameras}
        return {"images": images, "state": self.state()}

    def _info(self) -> dict[str, Any]:
        assert self.task is not None
        return {"instruction": self.instruction, "task": self.task.name, "success": self._held >= HOLD_STEPS}

    def _find_coloured_geoms(self) -> dict[str, list[int]]:
        """Geoms of each jittered colour, told by the colour they were built with."""
        built = np.round(self.model.geom_rgba[:, :3], 3)
        return {
            name: [int(i) for i in np.flatnonzero((np.abs(built - np.round(rgb, 3)) < 1e-4).all(axis=1))]
            for name, rgb in COLOURS.items()
        }


def find_task(name: str) -> Task:
    if name not in TASKS:
        raise UserError(f"expected a task among {', '.join(TASKS)}, found {name!r}: choose one of these")
    return TASKS[name]


def _yaw_of(quaternion: np.ndarray) -> float:
    w, x, y, z = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


assert abs(CONTROL_HZ * TIMESTEP * SUBSTEPS - 1) < 1e-9
