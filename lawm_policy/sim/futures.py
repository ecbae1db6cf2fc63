"""Pairs of futures of one state: the same first image, two instructions, two films.

They ask what no held-out loss can: whether the z that is said for an instruction means that instruction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lawm_policy.sim.experts_tabletop import Expert, Rollout, Style, rollout
from lawm_policy.sim.tabletop_env import TabletopEnv, find_task
from lawm_policy.sim.tabletop_tasks import select_tasks
from lawm_policy.types import Clip

LEAD_STEPS = 20  # the state is at most this many commands (1 s) after a reset


def two_futures(
    env: TabletopEnv, seed: int, tasks: Sequence[str], steps: int, stride: int = 1
) -> tuple[Rollout, Rollout]:
    """From one state, within a second of the reset of `seed`, under two different instructions, each at least
    `steps` commands long; a picture at every `stride`-th."""
    rng = np.random.default_rng([seed, 5])
    lead, *two = rng.permutation(np.array(tasks))[:3].tolist()
    env.reset(seed=seed, options={"task": lead})
    asked = find_task(lead)
    expert = Expert(env, rng, Style.sample(rng))
    env.render_now = False
    for _ in zip(range(int(rng.integers(LEAD_STEPS + 1))), expert.perform(asked), strict=False):
        env.step(expert.action())
        expert.observe()
    env.render_now = True
    state = env.save_state()
    a, b = (rollout(env, task, seed, state=state, frame_stride=stride) for task in two)
    if min(len(a.action_TA), len(b.action_TA)) < steps:  # one was over at once: another scene
        return two_futures(env, seed + 100_000, tasks, steps, stride)
    return a, b


def paired_clips(
    env: TabletopEnv, seeds: Sequence[int], chunk: int, stride: int, tasks: str = "train"
) -> tuple[Clip, Clip]:
    """Clips A and B, row by row from the same state. `stride` commands pass between two frames."""
    names = select_tasks(tasks)
    pairs = [two_futures(env, seed, names, chunk * stride + 1, stride) for seed in seeds]
    a, b = (_clip([pair[i] for pair in pairs], env.cameras, chunk + 1) for i in (0, 1))
    return a, b


def _clip(rollouts: Sequence[Rollout], cameras: Sequence[str], length: int) -> Clip:
    frames = [np.stack([r.frames[camera][:length] for camera in cameras], axis=1) for r in rollouts]
    frames_BTVCHW = torch.from_numpy(np.stack(frames)).permute(0, 1, 2, 5, 3, 4).contiguous()
    count = len(rollouts)
    return Clip(
        frames_BTVCHW,
        torch.ones(count, len(cameras), dtype=torch.bool),
        tuple(r.text for r in rollouts),
        torch.zeros(count, dtype=torch.int64),
    )
