"""What the LIBERO study compares, and on which suites with how many demonstrations: what its pilot chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Arm, rate
from libero_units import FULL, QUICK, LiberoStudy
from units import StudyArgs

from lawm_policy.types import UserError

PILOT_NS, QUICK_NS = (1, 3, 5, 10), (1,)
BAND = (25.0, 60.0)  # percent, of scratch
SEEDS, CONTROLS = 5, 3  # draws of what is compared, and of the policies beside it that lack something
LONGER = 3.0  # times the steps: half of the time that the recipe takes in all
POOLED = tuple(dict.fromkeys(part.suite for part in FULL.pool))  # what is pretrained on


@dataclass(frozen=True)
class Args(StudyArgs):
    """Success on LIBERO with few demonstrations, with and without label-free videos."""

    out: Path = Path("benchmarks/results/libero_study")
    work: Path = Path("runs/libero_study")
    recipe: str = "inverse-kl"
    """which pretraining is tried"""
    judge: str = ""
    """suites and demonstrations, as libero_goal:3,libero_object:1, in place of what the pilot chose"""


def arms(recipe: str) -> tuple[Arm, ...]:
    beside: dict[str, Any] = {"settings_of": "scratch", "seeds": CONTROLS}
    blind = beside | {"overrides": (("policy.sees", "false"),)}
    return (
        Arm("scratch", "no pretraining", seeds=SEEDS),
        Arm(recipe, "frames and captions first", recipe, seeds=SEEDS),
        Arm(
            "supervised",
            "the same episodes with their commands: what there is to win, at least",
            "supervised",
            seeds=SEEDS,
        ),
        Arm("blind", "no images", **blind),
        Arm(blind_twin(recipe), f"{recipe}, no images", recipe, **blind | {"settings_of": recipe}),
        Arm("no-language", "no instruction", overrides=(("policy.hears", "false"),), **beside),
        Arm("scratch-longer", "no pretraining, three times the steps", longer=LONGER, **beside),
    )


def blind_twin(recipe: str) -> str:
    return f"{recipe}-blind"


def of_fifty(recipe: str) -> tuple[str, ...]:
    """Who learns from fifty demonstrations a task, in this order."""
    return (recipe, blind_twin(recipe), "no-language", "scratch")


def arms_of(recipe: str, suite: str, cases: Mapping[str, int]) -> tuple[Arm, ...]:
    """What more steps are worth to scratch is asked on the first suite."""
    first = suite == next(iter(cases))
    return tuple(arm for arm in arms(recipe) if first or arm.longer == 1)


def judged(study: LiberoStudy, args: Args) -> dict[str, int] | None:
    """Suite -> demonstrations a task. None while the pilot is not done."""
    if args.judge:
        return asked_for(args.judge)
    found = pilot(study)
    if any(np.isnan(r) for r in found.values()):
        return None
    middle = sum(BAND) / 2
    best = {
        suite: min((n for s, n in found if s == suite), key=lambda n: abs(found[suite, n] - middle))
        for suite in study.sizes.suites
    }
    nearest = sorted(best, key=lambda suite: abs(found[suite, best[suite]] - middle))
    return {suite: best[suite] for suite in nearest[:2]}


def pilot(study: LiberoStudy) -> dict[tuple[str, int], float]:
    """Suite and demonstrations -> success of scratch on validation states, in percent; many demonstrations
    first. Where scratch is lost with some, it is not tried with fewer."""
    found: dict[tuple[str, int], float] = {}
    for suite in study.sizes.suites:
        for n in sorted(QUICK_NS if study.sizes is QUICK else PILOT_NS, reverse=True):
            found[suite, n] = 100 * rate(study.result(f"pilot/{suite}/n{n}"))
            if found[suite, n] < BAND[0]:
                break
    return found


def asked_for(words: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words.split(","):
        suite, _, n = word.strip().partition(":")
        if suite not in POOLED or not n.isdigit() or not 1 <= int(n) <= max(PILOT_NS):
            raise UserError(
                f"expected --judge as {POOLED[0]}:3,{POOLED[1]}:1, of the suites that are pretrained on, "
                f"with 1 to {max(PILOT_NS)} demonstrations, found {word!r}: correct it"
            )
        found[suite] = int(n)
    return found
