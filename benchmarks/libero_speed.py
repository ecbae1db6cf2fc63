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
from harness import Target, answer, judge_again, libero_made_with, write_result

from lawm_policy.sim import libero_assets
from lawm_policy.sim.libero_control import SUBSTEPS
from lawm_policy.sim.libero_protocol import task_names

EXECUTE, PIXELS, SETTLE, LIMIT = 8, 128, 5, 300
PROTOCOL = "lawm"
SIDES = ("LIBERO's own", "exact", "lite")
RAW = "raw.json"
TURN, KEPT = 5, 2  # while memory is watched: episodes before the next of four tasks, and models that stay
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
    table: bool = False
    """measure nothing: judge again what raw.json in OUT holds"""


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
            self.seen.update(image.tobytes())
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


class Player:
    """What both ways of playing begin with."""

    def __init__(self, side: str) -> None:
        self.protocol = PROTOCOL + ("+lite" if side == "lite" else "")
        libero_assets.prepare()
        import libero.libero.envs  # noqa: F401  (seconds, once a process: nobody's episode)

        self.policy = Policy()
        self.env: Any = None


class Ordinary(Player):
    """OffScreenRenderEnv as LIBERO's own evaluation uses it: made once a task, drawn at every step."""

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
        """Milliseconds of a control step without images, of MuJoCo's part in it, and of one image."""
        self.env.set_init_state(self.states_NS[0])
        both = _milliseconds(lambda: self.env.step(np.zeros(7)), 16)
        for name in ("agentview_image", "robot0_eye_in_hand_image"):
            self.env.env.modify_observable(name, "enabled", False)
        step = _milliseconds(lambda: self.env.step(np.zeros(7)), 16)
        sim = self.env.sim
        return {
            "step": step,
            "physics": physics(sim.model._model, sim.data._data),
            "image": (both - step) / 2,
        }


class Ours(Player):
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
            "physics": physics(env.data.model, env.data),
            "image": _milliseconds(lambda: [self.env._image(camera) for camera in self.env.cameras], 16) / 2,
        }

    def record(self, tasks: tuple[str, ...], episodes: int) -> dict[tuple[str, int], np.ndarray]:
        """What an expert commands in each episode."""
        from lawm_policy.sim.libero_env import LiberoEnv
        from lawm_policy.sim.libero_experts import rollout

        found = {}
        for task in tasks:
            env = LiberoEnv(task, protocol=self.protocol, images=False)
            for state in range(episodes):
                commands_TA = rollout(env, state, init_state=state).executed_TA
                cut = len(commands_TA) // 2 if state % CUT == CUT - 1 else len(commands_TA)
                found[task, state] = np.asarray(commands_TA[:cut], dtype=np.float64)
            env.close()
        return found

    def memory(self, suite: str, episodes: int) -> list[float]:
        """Resident megabytes after each of many episodes on one environment of a suite. More tasks take
        turns than compiled models stay."""
        from lawm_policy.sim.libero_suite import LiberoSuiteEnv

        tasks = task_names(suite)[: 2 * KEPT]
        env = LiberoSuiteEnv(suite, protocol=self.protocol, kept=KEPT, size=PIXELS)
        page, found = os.sysconf("SC_PAGE_SIZE"), []
        for episode in range(episodes):
            task = tasks[episode // TURN % len(tasks)]
            env.reset(options={"task": task, "init_state": episode % 50})
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


def physics(model: Any, data: Any) -> float:
    """Milliseconds of MuJoCo alone in a control step: as many substeps from here, nobody controlling."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    here_S = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, here_S, kind)

    def step() -> None:
        mujoco.mj_setState(model, data, here_S, kind)
        mujoco.mj_step(model, data, SUBSTEPS)

    return _milliseconds(step, 40)


def _milliseconds(work: Callable[[], object], times: int) -> float:
    work()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - began))
    return float(np.median(found))


# ---------------------------------------------------------------------- the comparison


class Side:
    """The parent's end of one side."""

    def __init__(self, name: str, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, core), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def do(self, what: str, *arguments: Any) -> tuple[float, Any]:
        """Seconds it took, by its own clock, and what it found."""
        self._pipe.send((what, arguments))
        seconds, found = self._pipe.recv()
        return seconds, found

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def main(args: Args) -> None:
    started = time.monotonic()
    if args.table:
        raw, result = (json.loads((args.out / name).read_text()) for name in (RAW, "result.json"))
        judge_again(args.out, result, *judge(**raw))
        return
    libero_assets.check_ready()
    tasks, episodes = (args.tasks[:1], 2) if args.quick else (args.tasks, args.episodes)
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    recorder = Side(SIDES[-1], core)  # a process apart: it makes, and so warms, the same environments
    commands = recorder.do("record", tasks, episodes)[1]
    recorder.close()
    sides = [Side(name, core) for name in SIDES]
    made: dict[str, list[float]] = {name: [] for name in SIDES}
    played: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for task in tasks:
        for side in sides:
            made[side.name].append(side.do("make", task)[0])
        for state in range(episodes):
            for k in range(len(sides)):  # who is first changes
                side = sides[(k + state) % len(sides)]
                seconds, found = side.do("play", state, commands[task, state])
                played[side.name].append({"task": task, "state": state, "seconds": seconds, **found})
        for side in sides:
            parts[side.name].append(side.do("parts")[1])
    suite = tasks[0].rpartition("-")[0]
    megabytes = sides[-1].do("memory", suite, 20 if args.quick else args.memory)[1]
    for side in sides:
        side.close()
    args.out.mkdir(parents=True, exist_ok=True)
    raw = {"made": made, "played": played, "parts": parts, "megabytes": [round(m, 1) for m in megabytes]}
    (args.out / RAW).write_text(json.dumps(raw, indent=0) + "\n")
    rows, targets = judge(made, played, parts, megabytes)
    write_result(
        args.out,
        question="How many episodes of LIBERO an hour, on one core?",
        seconds=time.monotonic() - started,
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=f"{len(tasks)} tasks ({', '.join(tasks)}), {episodes} stored states each, chunks of {EXECUTE} "
        f"executed, two cameras at {PIXELS} px, limit {LIMIT}. Making the environment counts, once a task. "
        "A ratio's interval is that of whole times with the episodes drawn anew, in pairs. Where an "
        "episode's time "
        "goes: policy and reset as timed in it, the rest from the measured parts. Memory is watched while "
        f"{2 * KEPT} tasks take turns and {KEPT} compiled models stay. `ladder` takes one change after the "
        "other from LIBERO's way to ours, computed from the measured parts for an episode of mean length. "
        f"{libero_made_with()}.",
    )


def judge(
    made: dict[str, list[float]],
    played: dict[str, list[dict[str, Any]]],
    parts: dict[str, list[dict[str, float]]],
    megabytes: list[float],
) -> tuple[list[dict[str, Any]], list[Target]]:
    rows: list[dict[str, Any]] = []
    for name in SIDES:
        episodes = played[name]
        total = sum(made[name]) + sum(e["seconds"] for e in episodes)
        rows.append(
            {
                "what": name,
                "episodes an hour": 3600 * len(episodes) / total,
                "s an episode": float(np.mean([e["seconds"] for e in episodes])),
                "of it policy": float(np.mean([e["policy"] for e in episodes])),
                "of it reset": float(np.mean([e["reset"] for e in episodes])),
                **_steps_and_images(name, episodes, parts[name]),
                "s to make": float(np.mean(made[name])),
                "successes": sum(e["success"] for e in episodes),
            }
        )
    targets = []
    equal = {"exact": ("success", "steps", "state", "pixels"), "lite": ("success", "steps", "state")}
    for row, goal in ((rows[1], ">= 5"), (rows[2], ">= 9")):
        name = row["what"]
        pairs = list(zip(played[SIDES[0]], played[name], strict=True))
        value = row["episodes an hour"] / rows[0]["episodes an hour"]
        interval = interval_of_ratio(pairs, sum(made[SIDES[0]]), sum(made[name]))
        targets.append(Target(f"{name}: episodes an hour, times LIBERO's own", goal, value, interval))
        unequal = sum(any(a[key] != b[key] for key in equal[name]) for a, b in pairs)
        what = f"{name}: episodes of {len(pairs)} not bit-equal in {', '.join(equal[name])}"
        targets.append(Target(what, "<= 0", unequal))
    early, late = megabytes[len(megabytes) // 10 : len(megabytes) // 5], megabytes[-(len(megabytes) // 10) :]
    growth = float(np.median(late) - np.median(early))
    targets.append(Target(f"memory's growth over {len(megabytes)} episodes, MB", "<= 20", growth))
    steps = float(np.mean([e["steps"] for e in played[SIDES[0]]]))
    return rows + _ladder(rows[0], rows[1], rows[2], steps), targets


def interval_of_ratio(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], made: float, ours: float
) -> tuple[float, float]:
    """Of the ratio of whole times, with the episodes drawn anew in pairs: bootstrap, 95%."""
    seconds_N2 = np.array([(a["seconds"], b["seconds"]) for a, b in pairs])
    drawn_BN = np.random.default_rng(0).integers(len(pairs), size=(4000, len(pairs)))
    sums_B2 = seconds_N2[drawn_BN].sum(1) + np.array([made, ours])
    low, high = np.percentile(sums_B2[:, 0] / sums_B2[:, 1], [2.5, 97.5])
    return float(low), float(high)


def _steps_and_images(
    name: str, episodes: list[dict[str, Any]], parts: list[dict[str, float]]
) -> dict[str, float]:
    """Milliseconds of the parts, and the seconds that they are of an episode."""
    step, physical, image = (float(np.mean([p[key] for p in parts])) for key in ("step", "physics", "image"))
    steps = float(np.mean([e["steps"] for e in episodes]))
    looks = steps if name == SIDES[0] else float(np.mean([np.ceil(e["steps"] / EXECUTE) for e in episodes]))
    return {
        "of it physics": steps * physical / 1e3,
        "of it controller": steps * (step - physical) / 1e3,
        "of it images": 2 * looks * image / 1e3,
        "ms a step": step,
        "ms an image": image,
    }


def _ladder(
    libero: dict[str, float], exact: dict[str, float], lite: dict[str, float], steps: float
) -> list[dict[str, Any]]:
    """Seconds an episode after each change, from the parts."""
    looks = float(np.ceil(steps / EXECUTE))

    def seconds(step: float, image: float, frames: float, reset: float) -> float:
        return (steps * step + frames * image) / 1e3 + reset + libero["of it policy"]

    step, image, reset = "ms a step", "ms an image", "of it reset"
    changes = [
        ("LIBERO's own", libero[step], libero[image], 2 * steps, libero[reset]),
        ("only frames that are seen", libero[step], libero[image], 2 * looks, libero[reset]),
        ("our reset, the model kept", libero[step], libero[image], 2 * looks, exact[reset]),
        ("our control step", exact[step], libero[image], 2 * looks, exact[reset]),
        ("our renderer", exact[step], exact[image], 2 * looks, exact[reset]),
        ("lite images", lite[step], lite[image], 2 * looks, lite[reset]),
    ]
    return [{"what": f"ladder: {name}", "s an episode": seconds(*numbers)} for name, *numbers in changes]


if __name__ == "__main__":
    answer(main, Args)
