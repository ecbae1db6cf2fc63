"""How long does one decision take? `act()` on two 128 px views, beside a plain ResNet-18 (through layer 2) on
the same views, in turn, in one run.

    python benchmarks/act_speed.py --out benchmarks/results/act_speed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Target, answer, interval_of_median, write_result
from torch import Tensor, nn

from lawm_policy.data.normalize import Normalization
from lawm_policy.policies.baku import BakuConfig
from lawm_policy.policies.latent_policy import LatentPolicy, LatentPolicyConfig
from lawm_policy.types import Observation


@dataclass(frozen=True)
class Args:
    """Median milliseconds of one decision."""

    out: Path
    """where result.json and page.md go"""
    quick: bool = False
    """fewer repetitions"""
    threads: int = 2
    """CPU threads"""


class Residual(nn.Module):
    """ResNet-18's basic block, at full width: the yardstick, written plainly."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out))
        self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x)) + self.skip(x)).relu()


def resnet18_through_layer2() -> nn.Module:
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Residual(64, 64, 1), Residual(64, 64, 1), Residual(64, 128, 2), Residual(128, 128, 1)]
    return nn.Sequential(*stem, *blocks).eval()


def policy_of_size(size: int) -> LatentPolicy:
    names = [f"joint_{i}" for i in range(6)] + ["gripper"]
    relative_to = [0, 1, 2, 3, 4, 5, None]
    robot = {"state_names": names, "action_names": names, "relative_to": relative_to}
    moments = np.random.default_rng(0).normal(size=(256, 1, 7)).astype(np.float32)
    exists = np.ones((256, 1), bool)
    normalization = Normalization.fit(moments[:, 0], moments, exists, relative_to)
    cfg = LatentPolicyConfig()
    return LatentPolicy(replace(cfg, policy=BakuConfig(size=size)), normalization, robot).eval()


def milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    generator = np.random.default_rng(0)
    policy, yardstick = policy_of_size(128), resnet18_through_layer2()
    views = {name: generator.integers(0, 255, (128, 128, 3), np.uint8) for name in policy.cameras}
    observation: Observation = {
        "images": views,
        "state": np.zeros(7, np.float32),
        "instruction": "put the red block away",
    }
    batch = torch.from_numpy(np.stack(list(views.values()))).permute(0, 3, 1, 2)

    def see() -> Tensor:
        with torch.no_grad():
            return yardstick(batch.float() / 255)

    times: dict[str, list[float]] = {"act": [], "resnet18_layer2": []}
    for i in range(20 if args.quick else 220):
        pair = {"act": milliseconds(lambda: policy.act(observation)), "resnet18_layer2": milliseconds(see)}
        if i >= 10:  # the first ones load kernels
            for name, value in pair.items():
                times[name].append(value)
    rows: list[dict[str, Any]] = [
        {"what": name, "median_ms": float(np.median(v)), "interval": interval_of_median(v), "n": len(v)}
        for name, v in times.items()
    ]
    parameters = sum(p.numel() for p in policy.parameters())
    rows.append({"what": "parameters of the policy", "count": parameters})
    write_result(
        args.out,
        question="How long does one decision take?",
        seconds=time.monotonic() - started,
        seeds=[0],
        rows=rows,
        targets=[
            Target(
                "act(), median ms, two 128 px views, 2 threads",
                "<= 12",
                rows[0]["median_ms"],
                rows[0]["interval"],
            ),
            Target("parameters of the policy", "<= 10000000", parameters),
        ],
        notes=f"{args.threads} threads; the two were timed in turn, so that the machine's drift meets both.",
    )


if __name__ == "__main__":
    answer(main, Args)
