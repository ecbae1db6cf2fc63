"""How many episodes of LIBERO an hour, on one core? Ours, exact and lite, beside LIBERO's own environment
used the ordinary way, with the same policy, the same episodes, in turn.

    python benchmarks/libero_speed.py --out benchmarks/results/libero_speed

Each side is a process of its own on one and the same core; one works while the others wait. The policy is
a network of `baku`'s size that looks at every eighth frame, two cameras at 128 px; what it commands was
recorded from an expert, and cut short in some episodes, so that successes and failures both occur.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from harness import Target, interval_of_median, write_result

EXECUTE, PIXELS, SETTLE, LIMIT = 8, 128, 5, 300
PROTOCOL = "lawm"
SIDES = ("LIBERO's own", "exact", "lite")
CUT = 4  # in one episode of so many the commands end halfway, and the episode runs to its limit


@dataclass(frozen=True)
class Args:
    """Episodes an hour, where the time goes, and whether memory stays flat."""

    out: Path
    """where result.json and page.md go"""
    quick: bool = False
    """one task, few episodes"""
    tasks: tuple[str, ...] = ("libero_object-0", "libero_spatial-0", "libero_goal-8")
    """played one after the other"""
    episodes: int = 12
    """a task"""
    memory: int = 200
    """episodes on one worker while its memory is watched"""


# ---------------------------------------------------------------------- in a process a side


class Policy:
    """Looks, thinks as long as a real policy does, and says what was recorded."""

    def __init__(self) -> None:
        import torch
        from act_speed import policy_of_size

        torch.set_num_threads(1)
        self._network = policy_of_size(PIXELS)

    def begin(self, commands_TA: np.ndarray) -> None:
        self._commands_TA, self._at, self.seconds, self.seen = commands_TA, 0, 0.0, hashlib.sha256()

    def act(self, front: np.ndarray, wrist: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        for image in (front, wrist):
            self.seen.update(np.ascontiguousarray(image))
        views = {"front": np.ascontiguousarray(front), "wrist": np.ascontiguousarray(wrist)}
        self._network.act({"images": views, "state": np.zeros(7, np.float32), "instruction": "do it"})
        chunk_NA = self._commands_TA[self._at : self._at + EXECUTE]
        still = np.tile([0, 0, 0, 0, 0, 0, -1.0], (EXECUTE - len(chunk_NA), 1))
        self._at += EXECUTE
        self.seconds += time.perf_counter() - began
        return np.concatenate([chunk_NA, still])


def serve(pipe: Connection, side: str, core: int) -> None:
    """One side's process: does what it is asked, one thing at a time."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    player: Any = (Ordinary if side == SIDES[0] else Ours)(side)
    pipe.send("ready")
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        began = time.perf_counter()
        found = getattr(player, what)(*arguments)
        pipe.send((time.perf_counter() - began, found))


class Ordinary:
    """OffScreenRenderEnv as LIBERO's own evaluation uses it: made once a task, drawn at every step."""

    def __init__(self, side: str) -> None:
        from lawm_policy.sim.libero_assets import prepare

        prepare()
        import libero.libero.envs  # noqa: F401  (seconds, once a process: nobody's episode)

        self.policy = Policy()
        self.env: Any = None

    def make(self, task: str) -> None:
        from libero.libero.envs import OffScreenRenderEnv

        from lawm_policy.sim.libero_tasks import libero_task, read_states

        if self.env is not None:
            self.env.close()
        facts = libero_task(task)
        self.env = OffScreenRenderEnv(
            bddl_file_name=str(facts.problem), camera_heights=PIXELS, camera_widths=PIXELS
        )
        self.states_NS = read_states(facts.states)

    def play(self, state: int, commands_TA: np.ndarray) -> dict[str, Any]:
        env: Any = self.env
        self.policy.begin(commands_TA)
        began = time.perf_counter()
        env.seed(0)
        env.reset()
        env.set_init_state(self.states_NS[state])
        for _ in range(SETTLE):
            seen, *_ = env.step(np.zeros(7))
        reset = time.perf_counter() - began
        steps, success = 0, False
        while steps < LIMIT and not success:
            chunk_NA = self.policy.act(seen["agentview_image"], seen["robot0_eye_in_hand_image"])
            for command in chunk_NA:
                seen, _, success, _ = env.step(command)
                steps += 1
                if success or steps == LIMIT:
                    break
        return _told(success, steps, env.sim.get_state().flatten(), self.policy, reset)

    def parts(self) -> dict[str, float]:
        """Milliseconds of a control step without images, and of one image."""
        env: Any = self.env
        sim = env.env.sim
        image = _milliseconds(lambda: sim.render(camera_name="agentview", width=PIXELS, height=PIXELS), 12)
        step = _milliseconds(lambda: env.step(np.zeros(7)), 12)
        return {"step": step - 2 * image, "image": image}


class Ours:
    def __init__(self, side: str) -> None:
        self.protocol = PROTOCOL + ("+lite" if side == "lite" else "")
        from lawm_policy.sim.libero_assets import prepare

        prepare()
        import libero.libero.envs  # noqa: F401

        self.policy = Policy()
        self.env: Any = None

    def make(self, task: str) -> None:
        from lawm_policy.sim.libero_env import LiberoEnv

        if self.env is not None:
            self.env.close()
        self.env = LiberoEnv(task, protocol=self.protocol)

    def play(self, state: int, commands_TA: np.ndarray) -> dict[str, Any]:
        env: Any = self.env
        self.policy.begin(commands_TA)
        began = time.perf_counter()
        env.render_now = True
        seen, _ = env.reset(options={"init_state": state})
        reset = time.perf_counter() - began
        steps, ended = 0, False
        while not ended:
            chunk_NA = self.policy.act(seen["images"]["front"], seen["images"]["wrist"])
            for k, command in enumerate(chunk_NA):
                env.render_now = k == EXECUTE - 1
                seen, _, done, truncated, _ = env.step(command)
                steps += 1
                if ended := done or truncated:
                    break
        return _told(env.success, steps, env.flat_state(), self.policy, reset)

    def parts(self) -> dict[str, float]:
        env: Any = self.env
        env.reset(options={"init_state": 0})
        env.render_now = False
        still = np.array([0, 0, 0, 0, 0, 0, -1.0])
        return {
            "step": _milliseconds(lambda: env.step(still), 40),
            "image": _milliseconds(lambda: env._image("front"), 12),
        }

    def record(self, tasks: tuple[str, ...], episodes: int) -> dict[tuple[str, int], np.ndarray]:
        """What an expert commands in each episode."""
        from lawm_policy.sim.libero_env import LiberoEnv
        from lawm_policy.sim.libero_experts import rollout

        found = {}
        for task in tasks:
            env = LiberoEnv(task, protocol=self.protocol, images=False)
            for state in range(episodes):
                commands_TA = rollout(env, state, seed=state).action_TA
                cut = len(commands_TA) // 2 if state % CUT == CUT - 1 else len(commands_TA)
                found[task, state] = np.asarray(commands_TA[:cut], dtype=np.float64)
            env.close()
        return found

    def memory(self, tasks: tuple[str, ...], episodes: int) -> list[float]:
        """Resident megabytes after each of many episodes, tasks in turn, on one environment of a suite."""
        from lawm_policy.sim.libero_env import LiberoSuiteEnv

        env = LiberoSuiteEnv(tasks[0].rpartition("-")[0], protocol=self.protocol, size=PIXELS)
        page, found = os.sysconf("SC_PAGE_SIZE"), []
        for episode in range(episodes):
            env.reset(options={"task": tasks[episode % len(tasks)], "init_state": episode % 50})
            for k in range(2 * EXECUTE):
                env.render_now = k % EXECUTE == EXECUTE - 1
                env.step(np.array([0, 0, -0.3, 0, 0, 0, -1.0]))
            found.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20)
        env.close()
        return found


def _told(success: Any, steps: int, state_S: np.ndarray, policy: Policy, reset: float) -> dict[str, Any]:
    return {
        "success": bool(success),
        "steps": steps,
        "state": hashlib.sha256(state_S.tobytes()).hexdigest(),
        "pixels": policy.seen.hexdigest(),
        "policy": policy.seconds,
        "reset": reset,
    }


def _milliseconds(work: Callable[[], object], times: int) -> float:
    work()
    step, image, reset = "ms a step", "ms an image", "of it reset"
    taken = [
        ("LIBERO's own", libero[step], libero[image], 2 * steps, libero[reset]),
        ("only frames that are seen", libero[step], libero[image], 2 * looks, libero[reset]),
        ("our reset, the model kept", libero[step], libero[image], 2 * looks, exact[reset]),
        ("our control step", exact[step], libero[image], 2 * looks, exact[reset]),
        ("our renderer", exact[step], exact[image], 2 * looks, exact[reset]),
        ("lite images", lite[step], lite[image], 2 * looks, lite[reset]),
    ]
    return [{"what": f"ladder: {name}", "s an episode": seconds(*numbers)} for name, *numbers in taken]


if __name__ == "__main__":
    main(tyro.cli(Args))
