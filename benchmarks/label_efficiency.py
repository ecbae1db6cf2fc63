"""How much do unlabelled videos help, at few labelled demonstrations a task?

    python benchmarks/label_efficiency.py --plan                 the units, with predicted minutes
    python benchmarks/label_efficiency.py --out DIR [--resume] [--jobs 2] [--only 'n10*']
    python benchmarks/label_efficiency.py --out DIR --table      the table from the units there are

A seed is a draw of demonstrations and an initialisation, the same for every arm; arms are compared in pairs.
Learning rates are chosen on validation states with a draw of their own (units tune/...), the same number of
trials for every arm, before the seeds of the table are run on the test states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from campaign import TUNING_DRAW, Arm, compared, finite, rate
from harness import Target, answer, write_result
from study import FULL, QUICK, TEST_STATES, Study
from units import StudyArgs, Unit, work_through

from lawm_policy.sim.tabletop_tasks import TASKS
from lawm_policy.stats import Interval, seed_difference

Cells = dict[int, dict[str, Any]]  # seed -> what was found

RECIPES = ("lawm", "inverse-kl", "variational")
BEST = "inverse-kl"  # the recipe that stands for pretraining at other n and in the controls

# Parts of the policy that may start anew.
WORDS = ("policy.language",)  # what instructions mean, for the trunk and for the path
PATH = ("policy.language_token", "policy.position_ND", "policy.norm", "policy.blocks", "policy.head")

NOTES = f"""Student's t intervals over seeds; differences are paired by seed; 0 seeds: not run yet. All seeds
play the same initial states (from {TEST_STATES} on: nobody had played them when they were chosen), and every
arm has one run of pretraining, of as many minutes and not as many clips (lawm 3000 steps of 24, variational
and supervised 3000 of 64, inverse-kl 2000 of 16 and 1800 of 64): `over_seeds_and_states` draws the states
anew too (by bootstrap, where there are 5 seeds), and nothing here draws the pretraining anew. Beside its
n, each cell has 4 or 5 held-out demonstrations a task, which choose the step whose weights are played;
rates are chosen on validation states. `still_falling`: by how many percent the held-out loss fell in the
last quarter of fine-tuning; scratch-longer and {BEST}-longer say what more of it gives. Videos: of the
arm, and of a floating hand (a fifth of them; half of the clips), each of an expert with its instruction,
some of play without; hand-only has fewer videos too. Seconds: as the units' files say; of a unit that was
resumed, its last part."""

ARMS = (
    Arm("scratch", "no pretraining", ns=(3, 10, 30), seeds=5),
    Arm("lawm", "the policy says z; the frame loss trains it", "lawm", seeds=5),
    Arm("inverse-kl", "an inverse model says z; the policy clones it", "inverse-kl", ns=(3, 10, 30), seeds=5),
    Arm("variational", "posterior and learned prior", "variational", seeds=5),
    Arm("supervised", "the arm's videos of tasks, with their commands: the headroom", "supervised", seeds=5),
    Arm("blind", "no images", settings_of="scratch", overrides=(("policy.sees", "false"),)),
    Arm("no-language", "no instruction", settings_of="scratch", overrides=(("policy.hears", "false"),)),
    Arm("frames-permuted", "later frames in random order", f"{BEST}+frames-permuted", BEST),
    Arm("captions-permuted", "captions of other clips", f"{BEST}+captions-permuted", BEST),
    Arm("auto-encoding", "the trunk reproduces what it sees", f"{BEST}+auto-encoding", BEST, fresh=PATH),
    Arm("hand-only", "videos of the hand alone", f"{BEST}+hand-only", BEST),
    Arm("random-frozen", "an untrained latent path, frozen", f"{BEST}+untrained", BEST, train="controller"),
    Arm("scratch-longer", "scratch, ten times as long", settings_of="scratch", ns=(10, 30), longer=10.0),
    Arm(f"{BEST}-longer", "ten times as long", BEST, BEST, longer=10.0),
    Arm("frozen", "the latent path frozen, the controller trained", BEST, BEST, train="controller"),
    Arm("trunk-language", "only trunk and language from pretraining", BEST, BEST, fresh=PATH),
    Arm("trunk-only", "only the trunk from pretraining", BEST, BEST, fresh=(*WORDS, *PATH)),
    Arm("language-only", "only the language from pretraining", BEST, BEST, fresh=("policy.trunk", *PATH)),
    Arm("path-only", "all but the trunk from pretraining", BEST, BEST, fresh=("policy.trunk",)),
)


@dataclass(frozen=True)
class Args(StudyArgs):
    """Success against the number of labelled demonstrations, with and without unlabelled videos."""

    out: Path = Path("benchmarks/results/label_efficiency")
    work: Path = Path("runs/label_efficiency")


def units(study: Study) -> Iterator[Unit]:
    yield Unit("data", 25, partial(make_data, study))
    starts = dict.fromkeys(arm.start for arm in ARMS if arm.start)
    for start in [*starts, *(f"{recipe}+z-free" for recipe in RECIPES)]:
        minutes = 1 if start.endswith("untrained") else 40
        yield Unit(f"pretrain/{start}", minutes, partial(make_pretraining, study, start))
    for arm in (arm for arm in ARMS if not arm.settings_of):
        for trial, settings in enumerate(arm.trials):
            tune = partial(study.cell, arm, 10, TUNING_DRAW, "val", settings)
            yield Unit(f"tune/{arm.name}/{trial}", 8, tune)
    cells = [(arm, n, seed) for arm in ARMS for n in arm.ns for seed in range(arm.seeds)]
    for arm, n, seed in sorted(cells, key=lambda c: (c[1] != 10, c[0].settings_of != "", c[2])):
        yield Unit(f"n{n}/{arm.name}/{seed}", 1 + 3.5 * arm.longer, partial(make_cell, study, arm, n, seed))


def make_data(study: Study) -> dict[str, Any]:
    study.data()
    return {}


def make_pretraining(study: Study, start: str) -> dict[str, Any]:
    run = study.pretraining(start)
    return {"metrics": (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]}


def make_cell(study: Study, arm: Arm, n: int, seed: int) -> dict[str, Any]:
    tuned = next(other for other in ARMS if other.name == (arm.settings_of or arm.name))
    settings = study.choose(tuned, [f"tune/{tuned.name}/{i}" for i in range(len(tuned.trials))])
    return study.cell(arm, n, seed, "test", settings)


def table(study: Study) -> None:
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        for n in arm.ns:
            there = done(study, arm.name, n, arm.seeds)
            if not there:
                rows.append({"arm": arm.name, "n": n, "seeds": 0, "says": arm.says})
                continue
            base = {} if arm.name == "scratch" else done(study, "scratch", n, arm.seeds)
            cells = compared(there, base)
            held_out = [100 * rate(f, lambda task: TASKS[task].held_out) for f in there.values()]
            rates = cells.pop("rates")
            told = {"held_out_tasks": float(np.mean(held_out)), "still_falling": still_falling(there)}
            rows.append({"arm": arm.name, "n": n} | cells | told | {"says": arm.says, "rates": rates})
    write_result(
        study.out,
        question="How much do unlabelled videos help, at few labelled demonstrations a task?",
        argv=("--resume", *study.flags),
        seconds=study.spent(),
        machine=study.machine(),
        seeds=list(range(5)),
        rows=rows,
        targets=_targets(study, rows),
        notes=f"{NOTES} {study.made_by()}",
    )


def still_falling(there: Cells) -> float:
    """By how many percent the held-out loss fell in the last interval between two measurements of it."""
    curves = [list(cell["held_out"].values()) for cell in there.values()]
    return float(np.mean([100 * (1 - curve[-1] / curve[-2]) for curve in curves]))


def done(study: Study, arm: str, n: int, seeds: int) -> Cells:
    """Seed -> what was found."""
    found = {seed: study.result(f"n{n}/{arm}/{seed}") for seed in range(seeds)}
    return {seed: cell for seed, cell in found.items() if cell is not None}


def _targets(study: Study, rows: list[dict[str, Any]]) -> list[Target]:
    at10 = {row["arm"]: row for row in rows if row["n"] == 10 and row["seeds"]}
    best = at10.get(BEST)  # chosen on validation states: not the luckiest on the test's
    gain = best["minus_scratch"] if best else None
    interval = best["minus_scratch_interval"] if best else None
    scratch = at10["scratch"]["mean"] if "scratch" in at10 else None
    share = share_of_the_way(*(done(study, arm, 10, 5) for arm in ("scratch", BEST, "supervised")))
    return [
        Target(f"{BEST} - scratch at n = 10, points", ">= 15", gain, interval),
        Target("low end of that interval", "> 0", interval[0] if interval else None),
        Target(
            "share of the way to supervised, %",
            ">= 50",
            share.value if share else None,
            finite(share) if share else None,
        ),
        Target("scratch at n = 10, low end", ">= 25", scratch),
        Target("scratch at n = 10, high end", "<= 60", scratch),
    ]


def share_of_the_way(scratch: Cells, best: Cells, supervised: Cells) -> Interval | None:
    """From scratch to supervised, in percent, over the seeds that have all three."""
    rates = [
        [rate(arm[s]) for arm in (scratch, best, supervised)]
        for s in scratch
        if s in best and s in supervised
    ]
    shares = [100 * (b - low) / (high - low) for low, b, high in rates if high > low]
    return seed_difference(shares) if shares else None


def main(args: Args) -> None:
    study = Study(*args.folders, QUICK if args.quick else FULL)
    if work_through(study, args, partial(units, study), stages=("data", "pretrain", "tune")):
        table(study)


if __name__ == "__main__":
    answer(main, Args)
