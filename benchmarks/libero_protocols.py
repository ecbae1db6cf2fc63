"""Why do two people's LIBERO numbers differ? One policy under the four published protocols, with its images
turned the wrong way, and with other action horizons; each against the way in which it learnt, in pairs.

    python benchmarks/libero_protocols.py --run RUN --suite libero_goal --out DIR

RUN is a fine-tuned policy that learnt from images as LIBERO turns them (`lawm collect libero_goal`). Under
each preset they are drawn as those that it learnt from (exact or lite).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import Target, answer, libero_made_with, write_result
from paired import controls, lacking, play

from lawm_policy.policies.loading import load_policy
from lawm_policy.sim.libero_protocol import PRESETS
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.types import UserError

HORIZONS = (4, 16, 24)  # commands of a chunk that are executed; the policy's own number stands in the base
BASE, LEARNT = "lawm", "as it learnt"


@dataclass(frozen=True)
class Args:
    """Success of one policy under other rules."""

    run: str
    """a fine-tuned run"""
    suite: str
    """libero_goal, or another"""
    out: Path
    """where result.json and page.md go; the evaluations lie below it"""
    episodes: int = 10
    """stored states a task"""
    tasks: str = "all"
    """which"""
    lacking: tuple[str, ...] = ()
    """runs of the same that see nothing or hear nothing, played beside"""
    workers: int = 2
    """processes"""
    quick: bool = False
    """two tasks, one state"""


@dataclass(frozen=True)
class Way:
    """One way to play. `turned`: half a turn between the images and what the policy learnt from."""

    name: str
    preset: str = BASE
    turned: bool = False
    execute: int | None = None

    @property
    def factory(self) -> str:
        """The policy sees what it learnt from, or that turned, whatever the preset does."""
        same = (PRESETS[self.preset].flip == PRESETS[BASE].flip) != self.turned
        return f"libero_protocols:{'as_it_comes' if same else 'turned_back'}"


def ways() -> list[Way]:
    presets = [Way(f"protocol {name}", preset=name) for name in PRESETS if name != BASE]
    horizons = [Way(f"{n} commands of a chunk executed", execute=n) for n in HORIZONS]
    return [Way(LEARNT), *presets, Way("images turned by half a turn", turned=True), *horizons]


def as_it_comes(run: str) -> Any:
    """The policy, told nothing about how images are turned."""
    policy = load_policy(run)
    policy.robot = {key: value for key, value in policy.robot.items() if key != "flip"}
    return policy


def turned_back(run: str) -> Any:
    """The policy, with its images turned by half a turn."""
    policy: Any = as_it_comes(run)
    act = policy.act

    def turned(observation: Any) -> np.ndarray:
        images = {name: image[::-1, ::-1] for name, image in observation["images"].items()}
        commands: np.ndarray = act({**observation, "images": images})
        return commands

    policy.act = turned
    return policy


def main(args: Args) -> None:
    started = time.monotonic()
    if args.quick:
        args = replace(args, tasks="0-1", episodes=1)
    card = load_policy(args.run).robot
    if (flip := card.get("flip")) != PRESETS[BASE].flip:
        raise UserError(
            f"expected a policy whose images are not turned (flip none), found {flip}: choose another"
        )
    visuals = card.get("visuals", "exact")
    rows: list[dict[str, Any]] = []
    base, without = args.out / "played" / "0", lacking(args.lacking)
    for number, way in enumerate(ways()):
        played = args.out / "played" / str(number)
        grid = EvaluateArgs(
            args.run,
            played,
            suite=f"{args.suite}@{way.preset}+{visuals}",
            tasks=args.tasks,
            episodes=args.episodes,
            execute=way.execute,
            workers=args.workers,
            policy_factory=way.factory,
        )
        row = play(grid, base if number else None, LEARNT) | controls(grid, without)
        rows.append({"way": way.name} | row)
    ended = sum(row["episodes"] for row in rows)
    lost = sum(row["no_episode"] for row in rows)
    write_result(
        args.out,
        question="Why do two people's LIBERO numbers differ?",
        seconds=time.monotonic() - started,
        seeds=[0],
        rows=rows,
        targets=[
            Target("starts that are no episode, of all, %", "<= 5", 100 * lost / max(lost + ended, 1)),
        ],
        notes=f"One policy on {args.suite}, {visuals} images, {args.episodes} stored states a task, the same "
        "for each way, in pairs. Presets see images turned as the policy learnt from, but where the row says "
        f"otherwise. {libero_made_with()}.",
    )


if __name__ == "__main__":
    answer(main, Args)
