"""Policies with a fault, for LIBERO's evaluation: spawned workers import them by name.

    lawm eval "hang" --suite fault_policies:suite --policy-factory fault_policies:policy ...
    lawm eval "hang:/tmp/flag" ...      once: only while that file does not exist, which the fault makes

The fault strikes in one of the tasks, in the middle of an episode, in the worker that plays it, or with
--batch where all of them ask."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from lawm_policy.policies.ensembling import Ensemble
from lawm_policy.sim import rendering
from lawm_policy.sim.protocol import Suite
from lawm_policy.sim.suites import libero_suite

SUITE, STEPS, CHUNK = "libero_object", 24, 8
VICTIM = "cream cheese"  # what the instruction of the task speaks of, in which faults strike
FAR = 0.006  # metres sideways in the last chunk: success, so that steps tell what was played
WORDY = 3000  # letters in every instruction, so that a few records fill a small disk
HEADROOM = 2**32  # bytes that a worker may still ask for once memory is short: a task takes 3/2 * 2**30


def suite() -> Suite:
    """libero_object, over after STEPS or where the hand has gone FAR: after any fault has been seen."""
    whole = libero_suite(f"{SUITE}@lawm+lite")
    return replace(whole, limits=dict.fromkeys(whole.limits, STEPS), make=partial(_wandering, whole.make))


def _wandering(make: Callable[..., Any], **settings: Any) -> Any:
    env = make(**settings)
    reset, step, begun = env.reset, env.step, SimpleNamespace()

    def reset_too(**options: Any) -> tuple[Any, dict[str, Any]]:
        seen, info = reset(**options)
        begun.steps, begun.words = 0, info["instruction"] + " please" * (WORDY // len(" please"))
        return seen, info | {"instruction": begun.words}

    def step_too(command: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, reward, _, truncated, info = step(command)
        begun.steps += 1
        if begun.steps <= STEPS - CHUNK:
            begun.place_2 = seen["state"][:2].copy()
        far = bool(np.abs(seen["state"][:2] - begun.place_2).max() > FAR)
        return seen, reward, far, truncated, info | {"success": far, "instruction": begun.words}

    env.reset, env.step = reset_too, step_too
    return env


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(100_000)


def fill_memory() -> None:
    """As under a limit of the address space, which stays: asks for more until there is none. (A container's
    limit kills.)"""
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + HEADROOM, resource.RLIM_INFINITY))
    held = []
    while True:
        held.append(np.empty(2**23))


def lose_context() -> None:
    """What a driver's reset leaves of every renderer in this process."""
    for rig in list(rendering._OPEN):
        rig._renderer._gl_context.free()


def not_a_number() -> np.ndarray:
    return np.full((CHUNK, 7), np.nan)


def wrong_shape() -> np.ndarray:
    return np.zeros((CHUNK, 3))


def raising() -> None:
    raise RuntimeError("two\nlines")


FAULTS: dict[str, Callable[[], Any]] = {
    "kill": kill,
    "hang": hang,
    "memory": fill_memory,
    "context": lose_context,
    "nan": not_a_number,
    "shape": wrong_shape,
    "raise": raising,
}


def policy(run: str) -> SimpleNamespace:
    """Moves the hand down with a little chance of its own, until the fault `run` strikes."""
    fault, _, flag = run.partition(":")
    if fault == "no-context" and multiprocessing.parent_process() is not None and _first_time(flag):
        os.environ["MUJOCO_GL"] = rendering.NO_BACKEND
    calls = SimpleNamespace(number=0)

    def struck(seen_B: Sequence[Any]) -> Any:
        """What the fault says instead, or None."""
        if not any(VICTIM in seen["instruction"] for seen in seen_B):
            return None
        calls.number += 1
        return FAULTS[fault]() if fault in FAULTS and calls.number % 2 == 0 and _first_time(flag) else None

    def act(seen: Any) -> np.ndarray:
        spoilt = struck([seen])
        return _down(np.random.uniform(-1, 1, 2)) if spoilt is None else np.asarray(spoilt)  # noqa: NPY002

    def act_batch(seen_B: Sequence[Any]) -> list[np.ndarray]:  # whose draws nobody seeds: it has none
        spoilt = struck(seen_B)
        return [_down(np.sin(100 * s["state"][:2])) if spoilt is None else np.asarray(spoilt) for s in seen_B]

    return SimpleNamespace(
        cameras=("front", "wrist"),
        size=64,
        execute=CHUNK,
        robot={"embodiment": "panda", "command": "ee"},
        sha256="none",
        reset=lambda: setattr(calls, "number", 0),
        act=act,
        act_batch=act_batch,
        ensemble=Ensemble(0.0, 1, CHUNK),
    )


def _down(sideways_2: np.ndarray) -> np.ndarray:
    return np.tile(np.r_[0.2 * sideways_2, -0.5, 0, 0, 0, -1], (CHUNK, 1))


def _first_time(flag: str) -> bool:
    """Always, where there is no flag."""
    if flag and Path(flag).exists():
        return False
    if flag:
        Path(flag).touch()
    return True
