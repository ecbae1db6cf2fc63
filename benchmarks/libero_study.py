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

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from campaign import TUNING_DRAW, Arm
from harness import answer
from libero_arms import SEEDS, Args, arms, arms_of, judged, of_fifty, pilot
from libero_table import table
from libero_units import FULL, MAIN, QUICK, SLICE, LiberoStudy, Part
from units import Unit, work_through

LONGEST = 45.0  # minutes of a unit
FIFTY_LONGER = 5  # times the steps of a cell
STAGES = ("data", "stores", "pilot", "pretrain", "tune")
# Minutes on one of two cores, both busy, of an Intel Xeon of 2.8 GHz without bf16 (an AMD EPYC takes half as
# long).
COLLECT, JOIN, FIT, PLAY, NEW_TASK = 0.13, 0.005, 17.0, 0.1, 0.1
RECIPE, SUPERVISED = 270.0, 80.0


def units(study: LiberoStudy, args: Args) -> Iterator[Unit]:
    s, chosen = study.sizes, judged(study, args)
    yield from demo_units(study, "demos", s.suites)
    few, more = {MAIN: s.val_states}, {MAIN: s.tune_states}
    for suite, n in pilot(study):
        scratch = arms(args.recipe)[0]
        cell = partial(study.cell, scratch, suite, n, TUNING_DRAW, "val", few, scratch.trials[1])
        yield Unit(f"pilot/{suite}/n{n}", fit_minutes(few), cell)
    yield from pool_units(study)
    for start in (args.recipe, "supervised"):
        yield from slices(study, args, start)
    # A plan can be made before it is known which suites there will be.
    cases = chosen or ({"FIRST": 0, "SECOND": 0} if args.plan else {})
    for suite, n in list(cases.items())[:1]:  # what is chosen there serves both
        for arm in (arm for arm in arms(args.recipe) if not arm.settings_of):
            for trial, settings in enumerate(arm.trials):
                cell = partial(study.cell, arm, suite, n, TUNING_DRAW, "val", more, settings)
                yield Unit(f"tune/{suite}/n{n}/{arm.name}/{trial}", fit_minutes(more), cell)
    known = chosen or dict.fromkeys(s.suites[: len(cases)], 0)
    yield from demo_units(study, "draws", known)
    for suite in cases:
        yield Unit(f"expert/{suite}", fit_minutes(few) - FIT, partial(study.expert, suite))
    for seed in range(SEEDS):
        for suite, n in cases.items():
            for arm in (arm for arm in arms_of(args.recipe, suite, cases) if seed < arm.seeds):
                asked = (study, arm, suite, n, seed, next(iter(cases.items())))
                train, work = (partial(judge, *asked, last) for last in (False, True))
                fit, play = arm.longer * FIT, fit_minutes(s.states) - FIT
                yield from in_slices(f"{suite}/n{n}/{arm.name}/{seed}", fit, play, train, work)
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
    count = ceil((SUPERVISED if start == "supervised" else RECIPE) / SLICE)
    for k in range(count):
        last, before = k == count - 1, f"pretrain/{start}/{k - 1}" if k else ""
        yield Unit(
            f"pretrain/{start}/{k}",
            SLICE,
            partial(study.pretraining_slice, start, last),
            before,
            leaves=study.mark(f"pretrain-{start}") if last else study.work / f"pretrain-{start}",
            readers=(f"pretrain/{start}/*", *(f"{where}{end}" for where in cells for end in ("", "/*"))),
        )


def fifty_units(study: LiberoStudy, args: Args, cases: dict[str, int]) -> Iterator[Unit]:
    by_name = {arm.name: arm for arm in arms(args.recipe)}
    play = fit_minutes({"stored": study.sizes.fifty_states}) - FIT
    for arm in (by_name[name] for name in of_fifty(args.recipe)):
        for suite in study.sizes.suites:
            asked = (study, arm, suite, next(iter(cases.items())))
            train, work = (partial(fifty, *asked, last) for last in (False, True))
            yield from in_slices(f"fifty/{suite}/{arm.name}", FIFTY_LONGER * FIT, play, train, work)


def in_slices(
    name: str, fit: float, play: float, train: Callable[..., Any], work: Callable[..., Any]
) -> Iterator[Unit]:
    """A cell. If that takes too long for one unit, the training has units of its own, which it fills."""
    before, full = "", int(fit / SLICE) if fit + play > LONGEST else 0
    for k in range(full):
        yield Unit(f"{name}/fit/{k}", SLICE, train, before)
        before = f"{name}/fit/{k}"
    yield Unit(name, fit - full * SLICE + play, work, before)


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
    study: LiberoStudy, arm: Arm, suite: str, n: int, seed: int, tuned: tuple[str, int], last: bool
) -> dict[str, Any]:
    settings = settings_of(study, arm, *tuned)
    if not last:
        return study.cell_slice(arm, suite, n, seed, settings)
    return study.cell(arm, suite, n, seed, "test", study.sizes.states, settings)


def fifty(study: LiberoStudy, arm: Arm, suite: str, tuned: tuple[str, int], last: bool) -> dict[str, Any]:
    settings = settings_of(study, arm, *tuned)
    return study.fifty(arm, suite, settings) if last else study.fifty_slice(arm, suite, settings)


def settings_of(study: LiberoStudy, arm: Arm, suite: str, n: int) -> Any:
    """The rate that was chosen for an arm, on the first suite: every arm had the same trials there."""
    tuned = arm.settings_of or arm.name
    return study.choose(arm, [f"tune/{suite}/n{n}/{tuned}/{i}" for i in range(len(arm.trials))])


def main(args: Args) -> None:
    flags = ("--recipe", args.recipe, *(("--judge", args.judge) if args.judge else ()))
    study = LiberoStudy(*args.folders, QUICK if args.quick else FULL, flags=flags)
    if work_through(study, args, partial(units, study, args), STAGES):
        table(study, args)


if __name__ == "__main__":
    answer(main, Args)
