"""The table of the LIBERO study, from the units that there are: its rows, its verdicts, its targets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from campaign import compared, rate
from harness import Target, write_result
from libero_arms import BAND, POOLED, SEEDS, Args, arms, arms_of, blind_twin, judged, of_fifty, pilot
from libero_units import MAIN, STARTS, WIDE, LiberoStudy

from lawm_policy.stats import wilson

Cells = Mapping[str, Mapping[int, Any]]  # arm -> seed -> what was found
BLIND_MARGIN = 20.0  # points by which the best has to be better than a policy without eyes
FIFTY_GOALS = {"libero_object": ">= 98", "libero_spatial": ">= 95", "libero_goal": ">= 90"}


def table(study: LiberoStudy, args: Args) -> None:
    chosen = judged(study, args)
    rows = pilot_rows(study) + tuning_rows(study, args, chosen or {}) + expert_rows(study)
    for suite in chosen or {}:
        for start in STARTS:
            rows += cell_rows(study, args, suite, start, chosen or {})
    fifties = fifty_rows(study, args)
    write_result(
        study.out,
        question="How much do label-free LIBERO videos help, at few demonstrations a task?",
        argv=("--resume", *study.flags),
        seconds=study.spent(),
        machine=study.machine(),
        seeds=list(range(SEEDS)),
        rows=rows + fifties,
        targets=targets(study, args, chosen, rows, fifties),
        notes="Student's t intervals over seeds; differences are paired by seed; pilot and n = "
        f"{study.sizes.fifty[0]}: one seed, Wilson's interval. Starts: wide (regions enlarged by "
        + ", ".join(f"{suite} {factor}" for suite, factor in WIDE.items())
        + "), fresh (LIBERO's regions), stored. A cell proves nothing where a policy without images comes "
        f"within {BLIND_MARGIN:.0f} points of the best of scratch and {args.recipe}, over the seeds that "
        "all have. Not run: not run yet. All seeds play the same initial states and draw from the same "
        f"{round(0.9 * study.sizes.draws)} demonstrations a task, and a recipe is pretrained as often as its "
        "row says: none of these draws is in an interval (but states in over_seeds_and_states, a bootstrap). "
        "Beside n, three held-out demonstrations a task "
        "(one or two in tuning) choose the step whose weights are played. Rates are chosen on the first "
        "suite, by as many trials for each arm; blind, no-language and scratch-longer take scratch's, "
        f"{blind_twin(args.recipe)} the recipe's. {steps_told(study, args.recipe)} "
        f"What is pretrained on are the tasks of {', '.join(POOLED)} themselves, other episodes, each with "
        "its instruction; of any other suite nothing is. "
        "Demonstrations and videos are of states that the expert solves; what is played is not chosen so: "
        "the expert's own row says how much of it can be solved by who learnt from him. " + study.made_by(),
    )


def steps_told(study: LiberoStudy, recipe: str) -> str:
    s = study.sizes
    policy, tuned = dict(s.pretrain)["train.steps"], dict(s.finetune)["train.steps"]
    world = dict(dict(s.recipes).get(recipe, ())).get("world.steps", "0")
    supervised = dict(s.supervised)["train.steps"]
    return (
        f"Steps: {world} of the world model and {policy} of the policy that clones, or {supervised} of "
        f"supervised pretraining; {tuned} of fine-tuning. scratch-longer's take half of the time of the "
        "recipe's in all."
    )


def pilot_rows(study: LiberoStudy) -> list[dict[str, Any]]:
    rows = []
    for (suite, n), found in pilot(study).items():
        row = {"suite": suite, "n": n, "start": f"{MAIN}, validation", "arm": "scratch (pilot)"}
        done = study.result(f"pilot/{suite}/n{n}")
        row |= {"verdict": "not run"} if done is None else {"mean": found, **share(done), **begun_by(done)}
        rows.append(row)
    return rows


def begun_by(done: Mapping[str, Any]) -> dict[str, str]:
    """Of a pilot: it decides what is asked, by the code of its day, and is compared with nothing."""
    return {"says": f"by {done['begun_by'][:9]}"} if "begun_by" in done else {}


def tuning_rows(study: LiberoStudy, args: Args, cases: Mapping[str, int]) -> list[dict[str, Any]]:
    """Every trial that has been played: each arm had as many."""
    rows = []
    for suite, n in list(cases.items())[:1]:
        for arm in (arm for arm in arms(args.recipe) if not arm.settings_of):
            for trial, settings in enumerate(arm.trials):
                if (done := study.result(f"tune/{suite}/n{n}/{arm.name}/{trial}")) is not None:
                    row = {
                        "suite": suite,
                        "n": n,
                        "start": f"{MAIN}, validation",
                        "arm": f"{arm.name} (tuning)",
                    }
                    says = ", ".join(f"{key} {value}" for key, value in settings)
                    rows.append(row | {"says": says, "mean": 100 * rate(done), **share(done)})
    return rows


def expert_rows(study: LiberoStudy) -> list[dict[str, Any]]:
    rows = []
    for suite in study.sizes.suites:
        if (done := study.result(f"expert/{suite}")) is not None:
            row = {"suite": suite, "n": 0, "start": f"{MAIN}, validation", "arm": "the scripted expert"}
            rows.append(row | {"mean": 100 * rate(done), **share(done)})
    return rows


def cells(study: LiberoStudy, args: Args, suite: str, n: int, start: str) -> Cells:
    def marks(arm: str) -> dict[int, Any]:
        found = {seed: study.result(f"{suite}/n{n}/{arm}/{seed}") for seed in range(SEEDS)}
        tuned = {json.dumps(f.get("settings")) for f in found.values() if f is not None}
        if len(tuned) > 1:
            raise SystemExit(f"{suite}/n{n}/{arm}: units of several settings, {', '.join(sorted(tuned))}")
        played.update(json.dumps([f["starts"][start], f["protocols"][start]]) for f in found.values() if f)
        return {
            seed: {
                "successes": f["successes"] if start == MAIN else f["beside"][start],
                "libero": f["libero"],
                "start": f.get("start"),
            }
            for seed, f in found.items()
            if f is not None
        }

    played: set[str] = set()
    there = {arm.name: marks(arm.name) for arm in arms(args.recipe)}
    if len(played) > 1:
        raise SystemExit(f"{suite}/n{n}, {start}: units of several protocols or states, which are no pairs")
    return there


def cell_rows(
    study: LiberoStudy, args: Args, suite: str, start: str, cases: Mapping[str, int]
) -> list[dict[str, Any]]:
    """One row an arm; what they show together stands in each."""
    n, rows = cases[suite], []
    found = cells(study, args, suite, n, start)
    for arm in arms_of(args.recipe, suite, cases):
        row: dict[str, Any] = {"suite": suite, "n": n, "start": start, "arm": arm.name, "says": arm.says}
        there = found[arm.name]
        if there:
            row |= compared(there, found["scratch"] if arm.name != "scratch" else None)
            row["states"] = sum(
                mark != "-" for marks in there[min(there)]["successes"].values() for mark in marks
            )
            row["pretrainings"] = len({f["start"] for f in there.values() if f["start"]})
            row["made with"] = "; ".join(sorted({f["libero"] for f in there.values()}))
        rows.append(row | {"seeds": len(there)})
    return with_verdict(rows, found, args.recipe)


def above_blind(found: Cells, recipe: str) -> float | None:
    """By how many points the better of scratch and the recipe is above the better of their like without eyes,
    over the seeds that all have; None while one of these without eyes has none."""
    seeing = [found[name] for name in ("scratch", recipe) if found.get(name)]
    blind = [found[name] for name in ("blind", blind_twin(recipe)) if name in found]
    seeds = set.intersection(*map(set, (*seeing, *blind))) if seeing and blind else set()
    if not seeds:
        return None
    best, best_blind = (
        max(np.mean([rate(there[seed]) for seed in seeds]) for there in group) for group in (seeing, blind)
    )
    return 100 * float(best - best_blind)


def with_verdict(rows: list[dict[str, Any]], found: Cells, recipe: str) -> list[dict[str, Any]]:
    """Whether these rows can show anything: only if what sees is clearly better than what does not."""
    margin = above_blind(found, recipe)
    if margin is None:
        verdict = "open: who is blind has not been run beside it"
    else:
        verdict = f"blind {margin:.1f} points below the best"
        verdict = verdict if margin >= BLIND_MARGIN else f"proves nothing: {verdict}"
    return [row | {"verdict": verdict if "mean" in row else "not run"} for row in rows]


def fifty_rows(study: LiberoStudy, args: Args) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for suite in study.sizes.suites:
        group: list[dict[str, Any]] = []
        found: dict[str, dict[int, Any]] = {}
        for arm in (a for a in arms(args.recipe) if a.name in of_fifty(args.recipe)):
            row: dict[str, Any] = {"suite": suite, "n": study.sizes.fifty[0], "start": "stored"}
            row |= {"arm": arm.name, "says": arm.says}
            done = study.result(f"fifty/{suite}/{arm.name}")
            found[arm.name] = {} if done is None else {0: done}
            if done is not None:
                row |= {"mean": 100 * rate(done), "seeds": 1, **share(done), "made with": done["libero"]}
            group.append(row)
        rows += with_verdict(group, found, args.recipe)
    return rows


def share(done: Mapping[str, Any]) -> dict[str, Any]:
    marks = "".join(done["successes"].values())
    found = wilson(marks.count("1"), marks.count("1") + marks.count("0"))
    return {"interval": (100 * found.low, 100 * found.high), "states": len(marks.replace("-", ""))}


def targets(
    study: LiberoStudy,
    args: Args,
    chosen: dict[str, int] | None,
    rows: list[dict[str, Any]],
    fifties: list[dict[str, Any]],
) -> list[Target]:
    found = []
    for k, word in enumerate(("first", "second")):
        suite = list(chosen or {})[k : k + 1]
        case = f"{suite[0]}, n = {chosen[suite[0]]}" if chosen and suite else f"{word} suite"
        main = {r["arm"]: r for r in rows if [r["suite"]] == suite and r["start"] == MAIN and "mean" in r}
        if any(main.get(arm.name, {}).get("seeds", 0) < arm.seeds for arm in arms(args.recipe)[:5]):
            main = {}  # nothing is judged before all seeds are there
        best, scratch = main.get(args.recipe, {}), main.get("scratch", {})
        gain, interval = best.get("minus_scratch"), best.get("minus_scratch_interval")
        apart = None
        if chosen and main:
            apart = above_blind(cells(study, args, suite[0], chosen[suite[0]], MAIN), args.recipe)
        low, high = BAND
        found += [
            Target(f"{case}, wide: {args.recipe} - scratch, points", ">= 15", gain, interval),
            Target(f"{case}, wide: low end of that interval", "> 0", interval[0] if interval else None),
            Target(f"{case}, wide: the best - blind, points", f">= {BLIND_MARGIN:.0f}", apart),
            Target(f"{case}, wide: scratch, low end", f">= {low:.0f}", scratch.get("mean")),
            Target(f"{case}, wide: scratch, high end", f"<= {high:.0f}", scratch.get("mean")),
        ]
    n = study.sizes.fifty[0]
    for judged_on, goal in FIFTY_GOALS.items():
        row = next((r for r in fifties if (r["suite"], r["arm"]) == (judged_on, args.recipe)), {})
        name = f"{judged_on}, {n} demonstrations, stored states: {args.recipe}, success %"
        found.append(Target(name, goal, row.get("mean"), row.get("interval")))
    return found
