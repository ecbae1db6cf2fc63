"""LIBERO as a Gymnasium environment: 20 Hz commands in, camera images and proprioception out.

It is LIBERO's own simulation (`ControlEnv`) with our step, our renderer and our reset: nothing is drawn
that nobody looks at, and the compiled model serves any number of episodes. In the states, and in the
pixels where visuals are "exact", an episode equals one of LIBERO's OffScreenRenderEnv bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from lawm_policy.sim.libero_assets import prepare
from lawm_policy.sim.libero_control import Arm, JointControl, ObservationClock, PoseControl, control_step
from lawm_policy.sim.libero_distractors import choose_distractors, with_distractors, with_room
from lawm_policy.sim.libero_paraphrase import paraphrase
from lawm_policy.sim.libero_perturb import Looks, seeded
from lawm_policy.sim.libero_premise import BrokenPremise, Diverged, Premise
from lawm_policy.sim.libero_protocol import LiberoProtocol, protocol_named, split_task
from lawm_policy.sim.libero_render import FilmRig, SceneRig, Sight, thin_robot
from lawm_policy.sim.libero_robot import CONTROL_HZ, STATE, panda_card
from lawm_policy.sim.libero_starts import Starts
from lawm_policy.sim.libero_states import Placer, Start
from lawm_policy.sim.libero_tasks import LiberoTask, libero_task, read_states
from lawm_policy.types import UserError

COMMANDS = ("ee", "joint")
_WARNING = mujoco.mjtWarning
DIVERGED = (_WARNING.mjWARN_BADQPOS, _WARNING.mjWARN_BADQVEL, _WARNING.mjWARN_BADQACC)
LOOK_AXES = ("camera", "light", "texture")
_PRISTINE = ("body_pos", "body_quat", "site_rgba", "geom_rgba")  # what a reset or an episode may change


class LiberoEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One task.

    `command="ee"`: LIBERO's own action, the hand's move in [-1, 1]^6 (OSC_POSE), and the gripper.
    `command="joint"`: seven absolute joint targets, to be reached at the step's end, and the gripper.
    The gripper is in [-1 open, +1 closed]. The state is LeRobot's eight numbers (position, axis-angle,
    fingers) and the seven joint positions.
    `render_now = False` makes observations black and cheap, for those who look only now and then;
    `remember = True` keeps what would have been seen, and `draw` makes images of it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012

    def __init__(
        self,
        task: str,
        embodiment: str = "panda",
        command: str = "ee",
        size: int | None = None,
        cameras: tuple[str, ...] | None = None,
        protocol: LiberoProtocol | str = "lawm",
        images: bool = True,
        render_mode: str | None = None,
    ):
        self.protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
        shown = shown_and_taken(self.protocol, embodiment, command, size, cameras, images)
        self.cameras, self.size, self.action_space, self.observation_space = shown
        self.task, self.command, self.render_mode = task, command, render_mode
        self.render_now, self.remember = True, False
        self.sight: Sight | None = None
        self.limit = self.protocol.limits[split_task(task)[0]]

        prepare()
        self.facts = libero_task(task)
        self.instruction = self.facts.instruction
        self._states_NS = read_states(self.facts.states)
        with unshared_randomness(self.protocol.scene_seed):
            self._sim = _simulation(self.facts, "distractors" in self.protocol.perturbations)
        self.model: mujoco.MjModel = self._sim.sim.model._model
        if self.protocol.visuals == "lite":
            thin_robot(self.model)
        self._looks = Looks(self.model, float(self._sim.workspace_offset[2]))
        self._pristine = {name: getattr(self.model, name).copy() for name in _PRISTINE}
        # A first reset of LIBERO's own finds each of these twice, and draws twice from numpy's generator.
        self._sim.object_property_initializers *= 2
        self._premise = Premise(self._sim)
        self._rig: SceneRig | None = None
        self._arm = Arm(self._sim.robots[0])
        self._control: PoseControl | JointControl = PoseControl(self._arm)
        self._clock = ObservationClock()
        if "distractors" in self.protocol.perturbations:
            self._blank()
            self._states_NS = with_room(self._states_NS, self.model, self.data.qpos)
        self.starts = Starts(task, self.protocol, self._sim.objects_dict, self._states_NS, self._placer)
        self.steps, self.success, self.init_state = 0, False, -1
        self._images: dict[str, np.ndarray] = {}
        self._state_15 = np.zeros(15)

    # ------------------------------------------------------------------ Gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options: `init_state`, a number or a flat state (time, qpos, qvel).

        The number is an index into the stored states, or where the protocol draws them the seed of one.
        Without it the seed is the number, modulo how many are stored.
        """
        super().reset(seed=seed)
        options = options or {}
        if options.get("task", self.task) != self.task:
            raise UserError(
                f"expected task {self.task}, found {options['task']}: make an environment of that task"
            )
        wanted = options.get("init_state")
        if wanted is None:
            drawn = seed if seed is not None else int(self.np_random.integers(2**31))
            wanted = drawn % len(self._states_NS) if self.protocol.factor is None else drawn
        self.init_state = -1
        start = self.starts.find(wanted)
        self._begin(start)
        self.steps, self.success = 0, False
        asked, self.render_now = self.render_now, False
        try:
            for k in range(self.protocol.settle_steps):
                self.render_now = asked and k == self.protocol.settle_steps - 1
                self._advance(np.zeros(6), self.protocol.settle_gripper)
        finally:
            self.render_now = asked
        if self.protocol.settle_steps == 0:
            self._look()
        if broken := self._premise.broken():
            number, self.init_state = self.init_state, -1
            raise BrokenPremise(f"{self.task}, initial state {number}: {broken}")
        if self.command == "joint":
            self._control = JointControl(self._arm)
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            names = ", ".join(self.robot_card()["action_names"])
            raise UserError(
                f"expected {self.action_space.shape} finite numbers ({names}), found shape {action.shape}: "
                "check the robot card"
            )
        if self.init_state == -1:
            raise UserError("expected reset before step, found no episode: call reset first")
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        action = np.clip(action, low, high)
        self._advance(action[:-1], float(action[-1]))
        if any(self.data.warning[kind].number for kind in DIVERGED):  # and MuJoCo has put all back
            self.init_state = -1
            raise Diverged(f"{self.task}: the simulation diverged after {self.steps} steps")
        self.steps += 1
        self.success = bool(self._sim._check_success())
        truncated = not self.success and self.steps >= self.limit
        return self._observation(), float(self.success), self.success, truncated, self._info()

    def render(self) -> Any:
        """The front camera's image of this moment, the right way up."""
        return self._rig_now().render(self._sim.sim.data._data, "front")[::-1]

    def draw(self, sights: Sequence[Sight]) -> dict[str, np.ndarray]:
        """camera -> (N, H, W, 3), the very images that were not drawn when these moments of the present
        episode passed."""
        now, data = Sight.of(self.model, self.data), mujoco.MjData(self.model)
        images: dict[str, list[np.ndarray]] = {camera: [] for camera in self.cameras}
        for sight in sights:
            sight.put(self.model, data)
            for camera in self.cameras:
                images[camera].append(self._image(camera, data))
        now.put(self.model, data)  # the model's colours
        return {camera: np.stack(drawn) for camera, drawn in images.items() if drawn}

    def close(self) -> None:
        if self._rig is not None:
            self._rig.close()
            self._rig = None

    # ------------------------------------------------------------------ what people read

    @property
    def data(self) -> mujoco.MjData:
        return self._sim.sim.data._data

    def robot_card(self) -> dict[str, Any]:
        """What a policy must know about this body: names, limits, rate, and what commands are relative to."""
        return panda_card(self.command, self.cameras, self.protocol.flip, self.protocol.visuals)

    def joints(self) -> np.ndarray:
        """(7,) positions of this moment."""
        return self.data.qpos[self._arm.qpos_at].copy()

    def flat_state(self) -> np.ndarray:
        """(1 + nq + nv,) as LIBERO stores states: what `init_state` takes."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def camera_rig(self, size: int) -> FilmRig:
        """A renderer of one's own, the right way up, to be closed by whoever asked."""
        return FilmRig(self.model, size, self.protocol.visuals, dict(self.protocol.cameras))

    # ------------------------------------------------------------------ inside

    def _placer(self) -> Placer:
        return Placer(
            self.task, self.instruction, self._sim, self._arm, self._premise, self._states_NS, self._blank
        )

    def _blank(self) -> None:
        """What OffScreenRenderEnv's reset does to the world, on the model that is there."""
        sim, env = self._sim.sim, self._sim
        self._looks.restore()
        for name, values in self._pristine.items():
            getattr(self.model, name)[:] = values
        for thing in (*env.objects_dict.values(), *env.fixtures_dict.values()):
            shown = thing.object_properties["vis_site_names"]
            shown.update({key: (site, False) for key, (site, _) in shown.items()})
        self._arm.robot.gripper.current_action = np.zeros(2)
        with unshared_randomness(self.protocol.scene_seed):
            sim.reset()
            sim.forward()  # LIBERO compiles the model anew, which ends in a forward pass
            sim.forward()  # ... and so does its renderer: each warm-starts the solver of the next
            env._reset_internal()

    def _begin(self, start: Start) -> None:
        """The same, and what its set_init_state does."""
        sim, env, grades = self._sim.sim, self._sim, self.protocol.perturbations
        self._blank()
        self.instruction = self.facts.instruction
        for axis, grade in grades.items():
            if axis in LOOK_AXES:
                self._looks.change(axis, grade, seeded(self.task, start.number, axis))
            elif axis == "paraphrase":
                rng = seeded(self.task, start.number, axis)
                self.instruction = paraphrase(self.instruction, grade, rng)
        sim.forward()
        env.visualize(vis_settings={name: False for name in env._visualizations})
        sim.set_state_from_flattened(start.state_S)
        sim.forward()
        env._check_success()
        env._post_process()
        self._premise.remember(start.slack)
        if "robot" in grades:  # else the first command would pull the arm back to where it usually starts
            self._arm.robot.controller.update_initial_joints(self.joints())
        self._control = PoseControl(self._arm)
        self._clock = ObservationClock()
        self._clock.forced()  # by reset
        self._clock.forced()  # by set_init_state
        self.init_state = start.number

    def _advance(self, command: np.ndarray, gripper: float) -> None:
        control_step(self._arm, self._control, command, gripper, self._clock, self._look)
        self._sim._post_process()

    def _look(self) -> None:
        """What LIBERO's sensors read at this moment."""
        data, arm = self.data, self._arm
        state = self._state_15
        state[:3] = data.site_xpos[arm.site]
        state[3:6] = axis_angle(data.xquat[arm.hand])
        state[6:8], state[8:] = data.qpos[arm.fingers_at], data.qpos[arm.qpos_at]
        self.sight = Sight.of(self.model, data) if self.remember else None
        if self.render_now and self.cameras:
            self._images = {camera: self._image(camera, data) for camera in self.cameras}

    def _image(self, camera: str, data: mujoco.MjData) -> np.ndarray:
        image = self._rig_now().render(data, camera)
        if self.protocol.flip == "rotate_180":
            image = image[::-1, ::-1]
        return shrink(image, self.size)

    def _rig_now(self) -> SceneRig:
        if self._rig is None:
            rules = self.protocol
            self._rig = SceneRig(self.model, rules.resolution, rules.visuals, dict(rules.cameras))
        return self._rig

    def _observation(self) -> dict[str, Any]:
        if self.render_now and self.cameras:
            images = dict(self._images)
        else:
            images = {camera: np.zeros((self.size, self.size, 3), np.uint8) for camera in self.cameras}
        return {"images": images, "state": self._state_15.astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self.instruction,
            "task": self.task,
            "success": self.success,
            "init_state": self.init_state,
            "joints": self._state_15[8:].copy(),
        }


def axis_angle(quat_wxyz: np.ndarray) -> np.ndarray:
    """(3,) rotation vector of MuJoCo's quaternion, with LeRobot's convention at the identity."""
    w = float(np.clip(quat_wxyz[0], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return quat_wxyz[1:] * (2.0 * np.arccos(w)) / sine


def shrink(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """Averages of whole blocks."""
    if image_HWC.shape[0] == size:
        return np.ascontiguousarray(image_HWC)
    n = image_HWC.shape[0] // size
    sums = np.full((size, size, 3), n * n // 2, np.uint32)  # whole planes: numpy is slow over short axes
    for row in range(n):
        for column in range(n):
            sums += image_HWC[row::n, column::n]
    return (sums // (n * n)).astype(np.uint8)


def shown_and_taken(
    rules: LiberoProtocol,
    embodiment: str = "panda",
    command: str = "ee",
    size: int | None = None,
    cameras: tuple[str, ...] | None = None,
    images: bool = True,
    render_mode: str | None = None,
) -> tuple[tuple[str, ...], int, spaces.Box, spaces.Dict]:
    """Cameras, size of images, action and observation space: known, and checked, with nothing compiled."""
    check_choice("command", command, COMMANDS)
    check_choice("embodiment", embodiment, ("panda",))
    cameras = tuple(rules.cameras) if cameras is None else tuple(cameras)
    for camera in cameras:
        check_choice("camera", camera, tuple(rules.cameras))
    size = rules.resolution if size is None else size
    if size > rules.resolution or rules.resolution % size:
        raise UserError(
            f"expected images of {rules.resolution} px or a whole fraction of it (protocol "
            f"{rules.name}), found {size}: choose another size or protocol"
        )
    cameras = cameras if images else ()
    bounds = np.array(panda_card(command, cameras, rules.flip)["limits"], np.float32)
    image = spaces.Box(0, 255, (size, size, 3), np.uint8)
    observed = {
        "images": spaces.Dict({camera: image for camera in cameras}),
        "state": spaces.Box(-np.inf, np.inf, (len(STATE),), np.float32),
    }
    return cameras, size, spaces.Box(bounds[:, 0], bounds[:, 1], dtype=np.float32), spaces.Dict(observed)


def check_choice(what: str, found: str, among: tuple[str, ...]) -> None:
    if found not in among:
        raise UserError(f"expected {what} among {', '.join(among)}, found {found!r}: choose one of these")


@contextmanager
def unshared_randomness(seed: int) -> Iterator[None]:
    """robosuite draws from numpy's global generator; here it draws from this seed and nobody notices."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _simulation(facts: LiberoTask, distractors: bool) -> Any:
    from libero.libero.envs.bddl_utils import robosuite_parse_problem
    from libero.libero.envs.env_wrapper import ControlEnv

    with TemporaryDirectory() as folder:
        problem = facts.problem
        if distractors:
            parsed = robosuite_parse_problem(str(problem))
            more = choose_distractors(facts.name, facts.instruction, parsed["objects"])
            table = next(r["target"] for r in parsed["regions"].values() if r["ranges"])
            problem = Path(folder) / problem.name
            problem.write_text(with_distractors(facts.problem.read_text(), table, more))
        return ControlEnv(
            bddl_file_name=str(problem),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            hard_reset=False,
            ignore_done=True,
        ).env
