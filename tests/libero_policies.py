"""Policies for LIBERO's evaluation that need no training: spawned workers import them by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fake_suite import Witness

from lawm_policy.sim.suites import libero_suite


class _Hand(Witness):
    cameras, size, execute, sha256, command = ("front", "wrist"), 64, 8, "none", "ee"

    @property
    def robot(self):
        return {"embodiment": "panda", "command": self.command}

    def act(self, observation):
        self.saw(observation)
        return np.tile(self.choose(observation["state"]), (8, 1))


class ReachDown(_Hand):
    """Moves the hand down with a little chance of its own."""

    def choose(self, state):
        return np.r_[np.random.uniform(-0.2, 0.2, 2), -0.5, 0, 0, 0, -1]  # noqa: NPY002


class HoldStill(_Hand):
    """Joint commands: where the joints are."""

    command = "joint"

    def choose(self, state):
        return np.r_[state[8:15], -1]


def short_suite():
    """libero_object, over after 24 steps."""
    suite = libero_suite("libero_object@lawm+lite")
    return replace(suite, limits=dict.fromkeys(suite.limits, 24))
