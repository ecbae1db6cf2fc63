"""How fast is the tabletop on one core? Control steps without images, and images, beside the same scene drawn
with MuJoCo's usual effects (shadows, four samples a pixel).

    python benchmarks/tabletop_speed.py --out benchmarks/results/tabletop_speed

Rates are per second of CPU time of the process, which other work on the machine disturbs least. Each back-end
has a process of its own, because MuJoCo chooses once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Target, answer, interval_of_median, write_result

BACKENDS = ("egl", "osmesa")
SEED = 7


@dataclass(frozen=True)
class Args:
    """Control steps and images a second."""

    out: Path
    """where result.json and page.md go"""
    quick: bool = False
    """fewer repetitions"""


def main(args: Args) -> None:
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    for backend in BACKENDS:
        run = subprocess.run(
            [sys.executable, __file__, "--measure", "3" if args.quick else "9"],
            env=os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend},
            capture_output=True,
            text=True,
        )
        if run.returncode:
            reason = run.stderr.strip().splitlines()[-1]
            rows.append({"what": "back-end that does not work here", "back-end": backend, "note": reason})
            continue
        rows += [row | {"back-end": backend} for row in json.loads(run.stdout)]

    def slowest(what: str) -> tuple[float | None, tuple[float, float] | None]:
        found = [row for row in rows if row["what"] == what]
        row = min(found, key=lambda row: row["per CPU second"], default=None)
        return (row["per CPU second"], tuple(row["95% interval"])) if row else (None, None)

    write_result(
        args.out,
        question="How fast is the tabletop on one core?",
        seconds=time.monotonic() - started,
        seeds=[SEED],
        rows=rows,
        targets=[
            Target(
                "control steps a CPU second, without images",
                ">= 300",
                *slowest("control steps, joint commands"),
            ),
            Target("images a CPU second at 64 px, slower back-end", ">= 500", *slowest("images at 64 px")),
        ],
        notes="Medians over repetitions of one expert's episode, per second of CPU time. Images are both "
        "cameras' in turn. The yardstick draws the same scene with shadows and four samples a pixel.",
    )


# ---------------------------------------------------------------------- in a process of its own


def measure(repetitions: int) -> list[dict[str, Any]]:
    from lawm_policy.sim.experts_tabletop import rollout
    from lawm_policy.sim.rendering import CameraRig
    from lawm_policy.sim.tabletop_env import TabletopEnv
    from lawm_policy.sim.tabletop_scene import CAMERAS, compile_scene

    rows = []
    for command, name in (("joint", "joint commands"), ("ee", "pose commands")):
        env = TabletopEnv(command=command, images=False)
        demo = rollout(env, "place_red_yellow", SEED)

        def replay(env: TabletopEnv = env, actions: np.ndarray = demo.action_TA) -> int:
            env.reset(seed=SEED, options={"task": "place_red_yellow"})
            for action in actions:
                env.step(action)
            return len(actions)

        rows.append({"what": f"control steps, {name}", **_rate(replay, repetitions)})
    rows.append(
        {
            "what": "control steps by the expert, his thinking included",
            **_rate(lambda: len(rollout(env, "place_red_yellow", SEED).action_TA), repetitions),
        }
    )
    for size in (64, 128):
        plain, usual = (
            CameraRig(env.model, size),
            CameraRig(compile_scene("arm6", 0, True), size, effects=True),
        )
        for rig, name in ((plain, f"images at {size} px"), (usual, f"images at {size} px, usual effects")):

            def draw(rig: CameraRig = rig) -> int:
                for camera in CAMERAS * 10:
                    rig.render(env.data, camera)
                return 20

            rows.append({"what": name, **_rate(draw, repetitions)})
            rig.close()
    seeing = TabletopEnv()
    rows.append(
        {
            "what": "control steps by the expert, each with two images at 64 px",
            **_rate(lambda: len(rollout(seeing, "place_red_yellow", SEED).action_TA), repetitions),
        }
    )
    seeing.close()
    return rows


def _rate(work: Callable[[], int], repetitions: int) -> dict[str, Any]:
    work()  # buffers are made, code is warm
    per_cpu, per_wall = [], []
    for _ in range(repetitions):
        cpu, wall = time.process_time(), time.perf_counter()
        count = work()
        per_cpu.append(count / (time.process_time() - cpu))
        per_wall.append(count / (time.perf_counter() - wall))
    return {
        "per CPU second": float(np.median(per_cpu)),
        "95% interval": interval_of_median(per_cpu),
        "per second by the clock": float(np.median(per_wall)),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        answer(main, Args)
