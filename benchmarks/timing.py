"""How long a step of training takes: the real loop, on random data."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
import torch

from lawm_policy.data.normalize import Normalization
from lawm_policy.policies.latent_policy import LatentPolicy, LatentPolicyConfig
from lawm_policy.recipe import Recipe
from lawm_policy.sim.libero_robot import panda_card
from lawm_policy.training import TrainConfig, fit
from lawm_policy.types import Clip, Demo

WARM = 2  # the first steps load kernels
TEXT = "put the red block in the bowl"


def seconds_a_step(module: torch.nn.Module, batch: Any, train: TrainConfig) -> np.ndarray:
    """Of each step (forward, backward, AdamW, EMA) but the first."""
    ends: list[float] = []

    def step(model: torch.nn.Module, data: Any) -> dict[str, torch.Tensor]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        found: dict[str, torch.Tensor] = model(data)
        return found

    with tempfile.TemporaryDirectory() as folder:
        fit(module, lambda _: batch, train, folder, step_fn=step, metadata={"kind": "speed"})
    return np.diff(ends)[WARM:]


def random_clip(batch: int, recipe: Recipe) -> Clip:
    shape = recipe.policy.cfg
    generator = torch.Generator().manual_seed(0)
    frames_shape = (batch, shape.chunk + 1, len(shape.cameras), 3, shape.size, shape.size)
    frames = torch.randint(0, 255, frames_shape, generator=generator, dtype=torch.uint8)
    mask = torch.ones(batch, len(shape.cameras), dtype=torch.bool)
    return Clip(frames, mask, (TEXT,) * batch, torch.zeros(batch).long())


def random_demo(batch: int, policy: LatentPolicy) -> Demo:
    shape, commands = policy.cfg.policy, policy.cfg.controller.commands_per_latent
    states, actions = len(policy.robot["state_names"]), len(policy.robot["action_names"])
    generator = torch.Generator().manual_seed(0)
    frames_shape = (batch, len(shape.cameras), 3, shape.size, shape.size)
    return Demo(
        frames_BVCHW=torch.randint(0, 255, frames_shape, generator=generator, dtype=torch.uint8),
        view_mask_BV=torch.ones(batch, len(shape.cameras), dtype=torch.bool),
        state_BP=torch.randn(batch, states, generator=generator),
        actions_BKRA=torch.randn(batch, shape.chunk, commands, actions, generator=generator),
        action_mask_BKR=torch.ones(batch, shape.chunk, commands, dtype=torch.bool),
        text=(TEXT,) * batch,
    )


def panda_policy(cfg: LatentPolicyConfig) -> LatentPolicy:
    """An untrained policy for LIBERO's robot."""
    card = panda_card("ee", cfg.policy.cameras, "none")
    states, actions = len(card["state_names"]), len(card["action_names"])
    zero_P, one_P, zero_A, one_A = (0.0,) * states, (1.0,) * states, (0.0,) * actions, (1.0,) * actions
    units = Normalization(zero_P, one_P, zero_P, one_P, zero_A, one_A, zero_A, one_A, (None,) * actions)
    return LatentPolicy(cfg, units, card)
