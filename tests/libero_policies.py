"""Policies for LIBERO's evaluation that need no training: spawned workers import them by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from lawm_policy.sim.suites import libero_suite


def reach_down(run):
    """Moves the hand down with a little chance of its own."""
    return _policy("ee", lambda state: np.r_[np.random.uniform(-0.2, 0.2, 2), -0.5, 0, 0, 0, -1])  # noqa: NPY002


def hold_still(run):
    """Joint commands: where the joints are."""
    return _policy("joint", lambda state: np.r_[state[8:15], -1])


def _policy(command, choose):
    return SimpleNamespace(
        cameras=("front", "wrist"),
        size=64,
        execute=8,
        robot={"embodiment": "panda", "command": command},
        sha256="none",
        reset=lambda: None,
        act=lambda seen: np.tile(choose(seen["state"]), (8, 1)),
    )


def short_suite():
    """libero_object, over after 24 steps."""
    suite = libero_suite("libero_object@lawm+lite")
    return replace(suite, limits=dict.fromkeys(suite.limits, 24))
