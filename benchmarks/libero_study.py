"""How much do label-free LIBERO videos help, at few demonstrations a task, where seeing and hearing matter?

    python benchmarks/libero_study.py --plan                 the units, with predicted minutes
    python benchmarks/libero_study.py --out DIR [--resume] [--jobs 2] [--only 'pilot/*']
    python benchmarks/libero_study.py --out DIR --table      the table from the units there are

A pilot of scratch alone, on validation states, chooses two suites and for each the number of demonstrations
at which scratch is neither lost nor perfect. A seed is a draw of demonstrations and an initialisation, the
same for every arm; arms are compared in pairs. Rates are chosen on validation states, by as many trials for
each arm that is compared, before any test state is played. Where a policy without eyes does nearly as well
as the best, nothing is shown, and the table says so. Last comes the setting of published results: 50
demonstrations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from campaign import TUNING_DRAW, Arm, compared, rate
from harness import Target, answer, write_result
from libero_units import FULL, MAIN, QUICK, SLICE, STARTS, WIDE, LiberoStudy, Part
from units import StudyArgs, Unit, work_through

from lawm_policy.stats import wilson
from lawm_policy.types import UserError

Cells = Mapping[str, Mapping[int, Any]]  # arm -> seed -> what was found

PILOT_NS, QUICK_NS = (1, 3, 5, 10), (1,)
BAND = (25.0, 60.0)  # percent, of scratch
SEEDS, CONTROLS = 5, 3  # draws of what is compared, and of the policies beside it that lack something
BLIND_MARGIN = 20.0  # points by which the best has to be better than a policy without eyes
LONGER = 3.0  # times the steps
FIFTY = ("blind", "no-language", "scratch")  # and first the recipe: who learns from fifty
FIFTY_GOALS = {"libero_object": ">= 98", "libero_spatial": ">= 95", "libero_goal": ">= 90"}
SLICES = 2  # units that a pretraining takes
STAGES = ("data", "stores", "pilot", "pretrain", "tune")
POOLED = tuple(dict.fromkeys(part.suite for part in FULL.pool))  # what is pretrained on
# Minutes on one of two cores of an Intel Xeon of 2.8 GHz without bf16 (playing: estimated; an AMD EPYC takes
# half as long).
COLLECT, JOIN, FIT, PLAY, NEW_TASK = 0.13, 0.005, 10.0, 0.07, 0.1


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
        Arm("supervised", "the same episodes with their commands: the headroom", "supervised", seeds=SEEDS),
        Arm("blind", "no images", **blind),
        Arm(blind_twin(recipe), f"{recipe}, no images", recipe, **blind | {"settings_of": recipe}),
        Arm("no-language", "no instruction", overrides=(("policy.hears", "false"),), **beside),
        Arm("scratch-longer", "no pretraining, three times the steps", longer=LONGER, **beside),
    )


def blind_twin(recipe: str) -> str:
    return f"{recipe}-blind"


def arms_of(recipe: str, suite: str, cases: Mapping[str, int]) -> tuple[Arm, ...]:
    """What pretraining's steps are worth to scratch is asked on the first suite."""
    first = suite == next(iter(cases))
    return tuple(arm for arm in arms(recipe) if first or arm.longer == 1)


# What is judged ------------------------------------------------------------------------------------


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


# The units -----------------------------------------------------------------------------------------


def units(study: LiberoStudy, args: Args) -> Iterator[Unit]:
    s, chosen = study.sizes, judged(study, args)
    yield from demo_units(study, "demos", s.suites)
    play = fit_minutes({MAIN: s.val_states})
    for suite, n in pilot(study):
        scratch = arms(args.recipe)[0]
        cell = partial(study.cell, scratch, suite, n, TUNING_DRAW, "val", scratch.trials[1])
        yield Unit(f"pilot/{suite}/n{n}", play, cell)
    yield from pool_units(study)
    for start in (args.recipe, "supervised"):
        yield from slices(study, args, start)
    # A plan can be made before it is known which suites there will be.
    cases = chosen or ({"FIRST": 0, "SECOND": 0} if args.plan else {})
    for suite, n in list(cases.items())[:1]:  # what is chosen there serves both
        for arm in (arm for arm in arms(args.recipe) if not arm.settings_of):
            for trial, settings in enumerate(arm.trials):
                cell = partial(study.cell, arm, suite, n, TUNING_DRAW, "val", settings)
                yield Unit(f"tune/{suite}/n{n}/{arm.name}/{trial}", play, cell)
    known = chosen or dict.fromkeys(s.suites[: len(cases)], 0)
    yield from demo_units(study, "draws", known)
    for suite in cases:
        yield Unit(f"expert/{suite}", fit_minutes({MAIN: s.val_states}) - FIT, partial(study.expert, suite))
    for seed in range(SEEDS):
        for suite, n in cases.items():
            for arm in (arm for arm in arms_of(args.recipe, suite, cases) if seed < arm.seeds):
                cell = partial(judge, study, arm, suite, n, seed, next(iter(cases.items())))
                minutes = fit_minutes(s.states) + (arm.longer - 1) * FIT
                yield Unit(f"{suite}/n{n}/{arm.name}/{seed}", minutes, cell)
    if cases:
        yield from demo_units(study, "fifty", s.suites)
        yield from fifty_units(study, args, cases)


def demo_units(study: LiberoStudy, kind: str, suites: Iterable[str]) -> Iterator[Unit]:
    suites = list(suites)
    for suite in suites:
        for part in study.demo_parts(suite, kind):
            name, made_by = f"data/{kind}/{part.name}", partial(made, study.demos, part, kind)
            mark = study.mark(f"collect-{kind}-{part.folder}")
            yield Unit(name, collecting(part), made_by, leaves=mark, readers=(f"stores/{kind}/{suite}",))
    for suite in suites:
        readers = {"demos": ("pilot/{}/*", "tune/{}/*"), "draws": ("{}/n*",), "fifty": ("fifty/{}/*",)}[kind]
        episodes = sum(number_of_tasks(p.tasks) * p.episodes for p in study.demo_parts(suite, kind))
        yield Unit(
            f"stores/{kind}/{suite}",
            JOIN * episodes,
            partial(made, study.demo_store, suite, kind),
            leaves=study.mark(f"{kind}-{suite}"),
            readers=tuple(pattern.format(suite) for pattern in readers),
        )


def pool_units(study: LiberoStudy) -> Iterator[Unit]:
    parts = study.sizes.pool
    for part in parts:
        mark, readers = study.mark(f"collect-pool-{part.folder}"), ("stores/pool", "pretrain/*")
        made_by = partial(made, study.pool, part)
        yield Unit(f"data/pool/{part.name}", collecting(part), made_by, leaves=mark, readers=readers)
    minutes = JOIN * sum(number_of_tasks(part.tasks) * part.episodes for part in parts)
    made_by = partial(made, study.pool_store)
    yield Unit("stores/pool", minutes, made_by, leaves=study.mark("pool"), readers=("pretrain/supervised/*",))


def slices(study: LiberoStudy, args: Args, start: str) -> Iterator[Unit]:
    """A pretraining, in units."""
    begin_so = [arm.name for arm in arms(args.recipe) if arm.start == start]
    cells = [f"{where}/{name}" for where in ("*/n*", "fifty/*") for name in begin_so]
    for k in range(SLICES):
        last, before = k == SLICES - 1, f"pretrain/{start}/{k - 1}" if k else ""
        yield Unit(
            f"pretrain/{start}/{k}",
            40,
            partial(study.pretraining_slice, start, last),
            before,
            leaves=study.mark(f"pretrain-{start}") if last else study.work / f"pretrain-{start}",
            readers=(f"pretrain/{start}/*", *(f"{where}{end}" for where in cells for end in ("", "/*"))),
        )


def fifty_units(study: LiberoStudy, args: Args, cases: dict[str, int]) -> Iterator[Unit]:
    by_name = {arm.name: arm for arm in arms(args.recipe)}
    for arm in (by_name[name] for name in (args.recipe, *FIFTY)):
        for suite in study.sizes.suites:
            tuned = next(iter(cases.items()))
            name = f"fifty/{suite}/{arm.name}"
            names = [f"{name}/fit", name]
            for before, unit in pairwise(["", *names]):
                last = unit == name
                work = partial(fifty, study, arm, suite, tuned, last)
                first = min(SLICE, 5 * FIT)  # five times the steps of a cell
                then = fit_minutes({"stored": study.sizes.fifty_states}) + 4 * FIT - first
                minutes = then if last else first
                yield Unit(unit, minutes, work, before)


def collecting(part: Part) -> float:
    return number_of_tasks(part.tasks) * (NEW_TASK + part.episodes * COLLECT)


def number_of_tasks(words: str) -> int:
    spans = [word.partition("-")[::2] for word in words.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, last in spans)


def fit_minutes(states: Mapping[str, int]) -> float:
    """Of a cell: its training, ten tasks to open for each kind of start, and its episodes."""
    return FIT + sum(10 * (NEW_TASK + PLAY * number) for number in states.values())


def made(make: Callable[..., Path], *arguments: Any) -> dict[str, Any]:
    make(*arguments)
    return {}


def judge(
    study: LiberoStudy, arm: Arm, suite: str, n: int, seed: int, tuned: tuple[str, int]
) -> dict[str, Any]:
    return study.cell(arm, suite, n, seed, "test", settings_of(study, arm, *tuned))


def fifty(study: LiberoStudy, arm: Arm, suite: str, tuned: tuple[str, int], last: bool) -> dict[str, Any]:
    settings = settings_of(study, arm, *tuned)
    return study.fifty(arm, suite, settings) if last else study.fifty_slice(arm, suite, settings)


def settings_of(study: LiberoStudy, arm: Arm, suite: str, n: int) -> Any:
    """The rate that was chosen for an arm, on the first suite: every arm had the same trials there."""
    tuned = arm.settings_of or arm.name
    return study.choose(arm, [f"tune/{suite}/n{n}/{tuned}/{i}" for i in range(len(arm.trials))])


# The table -----------------------------------------------------------------------------------------


def table(study: LiberoStudy, args: Args) -> None:
    chosen = judged(study, args)
    rows = pilot_rows(study) + expert_rows(study)
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
        "row says: none of these draws is in an interval. Beside n, three held-out demonstrations a task "
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
    return f"Steps: {world} of the world model, {policy} of the policy that clones, {tuned} of fine-tuning."


def pilot_rows(study: LiberoStudy) -> list[dict[str, Any]]:
    rows = []
    for (suite, n), found in pilot(study).items():
        row = {"suite": suite, "n": n, "start": f"{MAIN}, validation", "arm": "scratch (pilot)"}
        done = study.result(f"pilot/{suite}/n{n}")
        rows.append(row | ({"verdict": "not run"} if done is None else {"mean": found, **share(done)}))
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
        return {
            seed: {
                "successes": f["successes"] if start == MAIN else f["beside"][start],
                "libero": f["libero"],
                "start": f.get("start"),
            }
            for seed, f in found.items()
            if f is not None
        }

    return {arm.name: marks(arm.name) for arm in arms(args.recipe)}


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
            row["pretrainings"] = len({f["start"] for f in there.values() if f["start"]})
            row["made with"] = "; ".join(sorted({f["libero"] for f in there.values()}))
        rows.append(row | {"seeds": len(there)})
    return with_verdict(rows, found, args.recipe)


def above_blind(found: Cells, recipe: str) -> float | None:
    """By how many points the better of scratch and the recipe is above the better of their like without eyes,
    of those that were run, over the seeds that all of these have; None where there are none."""
    groups = (("scratch", recipe), ("blind", blind_twin(recipe)))
    seeing, blind = ([found[name] for name in names if found.get(name)] for names in groups)
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
        verdict = "open: blind not run beside it"
    else:
        verdict = f"blind {margin:.1f} points below the best"
        verdict = verdict if margin >= BLIND_MARGIN else f"proves nothing: {verdict}"
    return [row | {"verdict": verdict if "mean" in row else "not run"} for row in rows]


def fifty_rows(study: LiberoStudy, args: Args) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for suite in study.sizes.suites:
        group: list[dict[str, Any]] = []
        found: dict[str, dict[int, Any]] = {}
        for arm in (a for a in arms(args.recipe) if a.name in (args.recipe, *FIFTY)):
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
    return {"interval": (100 * found.low, 100 * found.high)}


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


def main(args: Args) -> None:
    flags = ("--recipe", args.recipe, *(("--judge", args.judge) if args.judge else ()))
    study = LiberoStudy(*args.folders, QUICK if args.quick else FULL, flags=flags)
    if work_through(study, args, partial(units, study, args), STAGES):
        table(study, args)


if __name__ == "__main__":
    answer(main, Args)
