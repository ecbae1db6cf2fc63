"""How often do LIBERO's scripted experts succeed? Every task, stored and fresh initial states, no images; do
their episodes succeed again as joint commands (and as they were executed, a check that replaying is sound)?

    python benchmarks/libero_experts.py --out benchmarks/results/libero_experts [--resume]
    python benchmarks/libero_experts.py --out DIR --table    the targets again, from the rows of its result

`journal.jsonl` in the output holds one line an episode: what a resumed run goes on from. It carries the hash
of the simulator's code, and is refused under another.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import Journal, Target, answer, judge_again, libero_made_with, write_result

import lawm_policy.sim
from lawm_policy.console import progress
from lawm_policy.data import commands
from lawm_policy.data.store import EpisodeStore
from lawm_policy.sim.libero_assets import check_ready
from lawm_policy.sim.libero_protocol import TASK_COUNTS, protocol_named, task_names
from lawm_policy.sim.workers import run_jobs
from lawm_policy.stages.collect import CollectArgs
from lawm_policy.stages.collect import run as collect
from lawm_policy.stats import wilson

KINDS = {"stored": "", "fresh": "+fresh"}  # initial states, and what the protocol's name says of them
COLLECTED = ("libero_spatial", "libero_object", "libero_goal")
HELD = 12  # steps that the last joint target is held: what was let go of falls
PACE, REPLAYED = "demonstrations a minute", "commands replayed"  # names in rows and of targets
FORMS = {  # in a line of the journal (None where it was not tried), and the target's name
    "executed again": f"check: executed {REPLAYED}, {{}} episodes that succeed again, %",
    "joint again": f"joint {REPLAYED}: {{}} episodes that succeed again, %",
}
PER_TASK, GOOD_TASKS = 80.0, 80.0  # of the long suites: this share of the tasks, each at this rate


@dataclass(frozen=True)
class Args:
    """Success of LIBERO's experts, per task."""

    out: Path
    """where result.json, page.md and journal.jsonl go"""
    quick: bool = False
    """2 states of each kind a task, two tasks a suite"""
    resume: bool = False
    """go on where this run stopped"""
    suites: str = ",".join(TASK_COUNTS)
    """separated by commas"""
    states: int = 20
    """stored initial states of each task, and as many fresh ones"""
    replays: int = 2
    """fresh episodes of each task that are replayed, in either form"""
    protocol: str = "lawm"
    """step limits and settling"""
    workers: int = 1
    """processes"""
    table: bool = False
    """judge the result there is"""


class Job(NamedTuple):
    task: str
    kind: str  # of KINDS
    states: tuple[int, ...]  # stored ones by number, fresh ones by seed


def code_hash() -> str:
    """Of everything that decides what an expert does, and what is replayed of it."""
    digest = hashlib.sha256()
    parts = sorted(Path(lawm_policy.sim.__file__).parent.glob("libero_*.py"))
    for path in (*parts, Path(commands.__file__)):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def prepare(protocol: str, replays: int) -> Callable[[Job], list[dict[str, Any]]]:
    from lawm_policy.sim.libero_env import LiberoEnv
    from lawm_policy.sim.libero_experts import rollout
    from lawm_policy.sim.libero_premise import BrokenPremise, Diverged

    def work(job: Job) -> list[dict[str, Any]]:
        rules = protocol_named(protocol + KINDS[job.kind])
        env = LiberoEnv(job.task, images=False, protocol=rules)
        joint: LiberoEnv | None = None
        lines = []
        for state in job.states:
            started = time.process_time()
            line = _line(job, state)
            try:
                episode = rollout(env, state, init_state=state)
            except BrokenPremise as error:
                lines.append(line | {"error": str(error)})
                continue
            except Diverged:
                lines.append(line | {"seconds": round(time.process_time() - started, 3)})
                continue
            line |= {"success": episode.success, "steps": len(episode.action_TA)}
            line["seconds"] = round(time.process_time() - started, 3)
            if episode.success and job.kind == "fresh" and state < replays:
                joint = joint or LiberoEnv(job.task, command="joint", images=False, protocol=rules)
                line["executed again"] = _again(env, state, episode.executed_TA)
                learnt_TA = commands.joint_commands(env.robot_card(), episode.state_TP, episode.action_TA)
                line["joint again"] = _again(joint, state, learnt_TA)
            lines.append(line)
        for made in (env, joint):
            if made is not None:
                made.close()
        return lines

    return work


def _line(job: Job, state: int) -> dict[str, Any]:
    line: dict[str, Any] = {"task": job.task, "kind": job.kind, "state": state, "error": None, "fault": None}
    return line | {"success": False, "steps": 0, "seconds": 0.0, **dict.fromkeys(FORMS)}


def _again(env: Any, state: int, commands_TA: np.ndarray) -> bool:
    """Whether the commands succeed from that state, the last one held for a while."""
    from lawm_policy.sim.libero_premise import Diverged

    env.reset(options={"init_state": state})
    last = commands_TA[-1].copy()
    if env.command == "ee":
        last[:-1] = 0
    with suppress(Diverged):
        return any(env.step(command)[2] for command in [*commands_TA, *[last] * HELD])
    return False


def main(args: Args) -> None:
    if args.table:
        result = json.loads((args.out / "result.json").read_text())
        replays = [Target(**without_verdict(t)) for t in result["targets"] if REPLAYED in t["name"]]
        judge_again(args.out, result, result["rows"], [*judge(result["rows"], result["seeds"]), *replays])
        return
    check_ready()  # what is missing here is no fault of an expert
    suites = args.suites.split(",")
    tasks = [task for suite in suites for task in task_names(suite)[: 2 if args.quick else None]]
    states = range(2 if args.quick else args.states)
    code = code_hash()
    journal = Journal(args.out, f"{code} {args.protocol} {args.replays}", resume=args.resume)
    done = {(line["task"], line["kind"], line["state"]): line for line in journal.lines if "task" in line}
    jobs = []
    for task in tasks:
        for kind in KINDS:
            left = [state for state in states if (task, kind, state) not in done]
            jobs += [Job(task, kind, tuple(left[k : k + 5])) for k in range(0, len(left), 5)]
    with progress("experts", sum(len(job.states) for job in jobs), unit="episodes") as bar:
        for lines in played(args, jobs):
            journal.add(lines)
            done |= {(line["task"], line["kind"], line["state"]): line for line in lines}
            bar.advance(len(lines))
    _report(args, tasks, list(states), done, measured_paces(args, tasks, journal), code)


def played(args: Args, jobs: list[Job]) -> Iterator[list[dict[str, Any]]]:
    """Lines of the journal, a job's at once. The states of a job that fails are tried again, each alone, and
    what fails alone (an exception, the time limit) is a failure of the expert."""
    alone: list[Job] = []
    arguments = {"protocol": args.protocol, "replays": args.replays}
    for outcome in run_jobs("libero_experts:prepare", arguments, jobs, workers=args.workers):
        job = jobs[outcome.index]
        if outcome.error is None:
            yield outcome.result
        elif len(job.states) > 1:
            alone += [job._replace(states=(state,)) for state in job.states]
        else:
            yield [_line(job, job.states[0]) | {"fault": outcome.error}]
    if alone:
        yield from played(args, alone)


def measured_paces(args: Args, tasks: list[str], journal: Journal) -> dict[str, float]:
    """suite -> demonstrations a minute; measured once, when whoever ran this took care of the load."""
    found = {x["suite"]: x[PACE] for x in journal.lines if PACE in x and x["quick"] == args.quick}
    for suite in COLLECTED:
        if f"{suite}-0" in tasks and suite not in found:
            found[suite] = demonstrations_a_minute(suite, args.quick)
            journal.add([{"suite": suite, "quick": args.quick, PACE: found[suite]}])
    return found


def demonstrations_a_minute(suite: str, quick: bool) -> float:
    """As people collect them: images, files and all, on two processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demos"
        tasks = "0-1" if quick else "all"
        started = time.monotonic()
        if collect(CollectArgs(suite, out, tasks=tasks, episodes=1 if quick else 4, workers=2)):
            raise SystemExit(f"lawm collect {suite} failed")
        return 60 * len(EpisodeStore.open(out).episodes) / (time.monotonic() - started)


def judge(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[Target]:
    """What the rows say of each suite. Intervals are over episodes; of the long suites, over tasks."""
    targets = []
    tasks = [row for row in rows if "instruction" in row]
    tried = seeds[-1] - seeds[0] + 1
    for suite in dict.fromkeys(row["task"].rpartition("-")[0] for row in tasks):
        ours = [row for row in tasks if row["task"].startswith(f"{suite}-")]
        for kind in KINDS:
            if suite in ("libero_10", "libero_90"):
                good, of = sum(row[f"{kind} %"] >= PER_TASK for row in ours), len(ours)
                name, goal = f"{suite}, {kind} states: tasks at 80% or more, %", f">= {GOOD_TASKS:.0f}"
            else:
                of = sum(tried - len(row[f"{kind}: broken"]) for row in ours)
                good = of - sum(len(row[f"{kind}: failed"]) for row in ours)
                name, goal = f"{suite}, {kind} states: success, %", ">= 95"
            found = wilson(good, of)
            targets.append(Target(name, goal, 100 * found.value, (100 * found.low, 100 * found.high)))
    if paces := [row[PACE] for row in rows if PACE in row]:
        name = "slowest of spatial, object, goal: demonstrations a minute, 128 px lite, 2 processes"
        targets.append(Target(name, ">= 5", min(paces)))
    return targets


def without_verdict(target: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in target.items() if key != "met"}


def _report(
    args: Args,
    tasks: list[str],
    states: list[int],
    done: dict[tuple[str, str, int], dict[str, Any]],
    paces: dict[str, float],
    code: str,
) -> None:
    from lawm_policy.sim.libero_tasks import libero_task

    rows = []
    for task in tasks:
        row: dict[str, Any] = {"task": task, "instruction": libero_task(task).instruction}
        for kind in KINDS:
            lines = [done[task, kind, state] for state in states]
            valid = [line for line in lines if line["error"] is None]
            won = [line for line in valid if line["success"]]
            found = wilson(len(won), len(valid))
            rate = 100 * len(won) / len(valid) if valid else 0.0
            row |= {
                f"{kind} %": rate,
                f"{kind}: 95% interval": (100 * found.low, 100 * found.high) if valid else None,
                f"{kind}: broken": [line["state"] for line in lines if line["error"] is not None],
                f"{kind}: failed": [line["state"] for line in valid if not line["success"]],
                f"{kind}: mean steps": float(np.mean([line["steps"] for line in won])) if won else None,
            }
            if faults := [line["state"] for line in valid if line["fault"]]:
                row[f"{kind}: failed by a fault"] = faults
        rows.append(row)
    rows += [{"task": suite, PACE: pace} for suite, pace in paces.items()]
    targets = judge(rows, (states[0], states[-1]))
    for form, name in FORMS.items():
        tried = [line[form] for line in done.values() if line[form] is not None]
        if tried:
            found = wilson(sum(tried), len(tried))
            interval = (100 * found.low, 100 * found.high)
            targets.append(Target(name.format(len(tried)), ">= 95", 100 * found.value, interval))
    spent = sum(line["seconds"] for line in done.values())
    steps = sum(line["steps"] for line in done.values())
    write_result(
        args.out,
        question="How often do LIBERO's scripted experts succeed?",
        seconds=spent,
        seeds=[states[0], states[-1]],
        rows=rows,
        targets=targets,
        notes=f"Code {code}. Seeds are the first and last of the initial states (stored by number, fresh by "
        f"seed), each tried once, with protocol {args.protocol}'s settling and limits (libero_10: 520); an "
        "episode in which the simulation diverges, or the expert ends in an error (a fault), is a failure. "
        f"States whose premise does not hold are not counted. {libero_made_with()}. "
        f"{steps / max(spent, 1e-9):.0f} control steps a CPU second, planning included.",
    )


if __name__ == "__main__":
    answer(main, Args)
