"""Policies with a fault, for LIBERO's evaluation: spawned workers import them by name.

    lawm eval "hang" --suite fault_policies:suite --policy-factory fault_policies:policy ...
    lawm eval "hang:/tmp/flag" ...      once: only while that file does not exist, which the fault makes

The fault strikes in one of the tasks, in the worker that plays it, in the middle of an episode."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from lawm_policy.sim import rendering
from lawm_policy.sim.protocol import Suite
from lawm_policy.sim.suites import libero_suite

SUITE, STEPS, CHUNK = "libero_object", 24, 8
VICTIM = "cream cheese"  # what the instruction of the task speaks of, in which faults strike
HEADROOM = 2**26  # bytes that a worker may still ask for once memory is short


def suite() -> Suite:
    """libero_object, over after STEPS."""
    whole = libero_suite(f"{SUITE}@lawm+lite")
    return replace(whole, limits=dict.fromkeys(whole.limits, STEPS))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(100_000)


def fill_memory() -> None:
    """As under a container's limit: asks for more until there is none."""
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + HEADROOM, resource.RLIM_INFINITY))
    held = []
    while True:
        held.append(np.ones(2**20))


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

    def act(seen: Any) -> np.ndarray:
        calls.number += 1
        chunk_NA = np.tile(np.r_[np.random.uniform(-0.2, 0.2, 2), -0.5, 0, 0, 0, -1], (CHUNK, 1))  # noqa: NPY002
        strikes = fault in FAULTS and VICTIM in seen["instruction"] and calls.number == 2
        if strikes and _first_time(flag):
            spoilt = FAULTS[fault]()
            return chunk_NA if spoilt is None else spoilt
        return chunk_NA

    return SimpleNamespace(
        cameras=("front", "wrist"),
        size=64,
        execute=CHUNK,
        robot={"embodiment": "panda", "command": "ee"},
        sha256="none",
        reset=lambda: setattr(calls, "number", 0),
        act=act,
    )


def _first_time(flag: str) -> bool:
    """Always, where there is no flag."""
    if flag and Path(flag).exists():
        return False
    if flag:
        Path(flag).touch()
    return True
