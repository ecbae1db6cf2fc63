"""A policy small enough to run in milliseconds, untrained, and what it is shown."""

from __future__ import annotations

import numpy as np
import tiny
import torch

from lawm_policy.controller import ControllerConfig
from lawm_policy.data.normalize import Normalization
from lawm_policy.policies.latent_policy import LatentPolicy, LatentPolicyConfig

NAMES = ["a", "b", "gripper"]
ROBOT = {"state_names": NAMES, "action_names": NAMES, "relative_to": [0, 1, None]}
CONTROLLER = ControllerConfig(width=32, features=4)
CONFIG = LatentPolicyConfig(policy=tiny.POLICY, controller=CONTROLLER)
R = CONTROLLER.commands_per_latent


def build(cfg: LatentPolicyConfig = CONFIG) -> LatentPolicy:
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    state = generator.normal(size=(64, 3)).astype(np.float32)
    actions = generator.normal(2.0, 0.5, size=(64, 4, 3)).astype(np.float32)
    return LatentPolicy(
        cfg, Normalization.fit(state, actions, np.ones((64, 4), bool), [0, 1, None]), ROBOT
    ).eval()


def observation(seed: int = 0, instruction: str = "go down") -> dict:  # type: ignore[type-arg]
    generator = np.random.default_rng(seed)
    views = {name: generator.integers(0, 255, (32, 32, 3), np.uint8) for name in ("front", "wrist")}
    return {"images": views, "state": generator.normal(size=3).astype(np.float32), "instruction": instruction}
