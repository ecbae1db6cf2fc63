"""`lawm eval`: success rates over an explicit grid of episodes.

    lawm eval runs/finetuned --suite tabletop --episodes 20 --workers 2 --out evals/finetuned

The grid is (task, initial state, seed). Each episode depends on its cell alone: a worker has its own
simulator and its own policy (one thread, batch 1), or asks the one policy of this process (--batch, for a
GPU), which fills every batch up to the same size: so the number of workers changes nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lawm_policy.config import differences
from lawm_policy.console import progress, say
from lawm_policy.runs import check_writable, versions, write_text
from lawm_policy.sim import protocol
from lawm_policy.sim.crews import load_function
from lawm_policy.sim.matching import check_match
from lawm_policy.sim.protocol import (
    EPISODES,
    SUMMARY,
    VIDEO,
    Actor,
    Episode,
    Record,
    Seat,
    Suite,
)
from lawm_policy.sim.suites import suite_named
from lawm_policy.sim.workers import Outcome, check_workers, cuda_in_use, run_jobs
from lawm_policy.stages import evaluate_worker
from lawm_policy.stages.evaluate_worker import film_name
from lawm_policy.types import UserError

if TYPE_CHECKING:
    from lawm_policy.policies.batching import Batcher

ERRORS_SHOWN = 5


@dataclass(frozen=True)
class EvaluateArgs:
    """Success rates of a policy over an explicit grid of episodes."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a fine-tuned run, or of one checkpoint."""
    out: Path
    """Folder for episodes.jsonl, summary.json and video/."""
    suite: str = "tabletop"
    """tabletop; libero_spatial, libero_object, libero_goal, libero_10 or libero_90, with how to play after an
    @ (libero_goal@openvla+lite, see docs/libero.md); or "module:function" that makes a `Suite`."""
    tasks: str = "all"
    """Names or kinds of tasks, separated by commas; or all, train, held_out; LIBERO: numbers such as 0,3 or
    0-4."""
    episodes: int = 20
    """Initial states a task."""
    split: Literal["val", "test"] = "test"
    """Which initial states: val (to choose with) or test (to report)."""
    seed_base: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(left out: where --split begins)")] = (
        None
    )
    """First initial state; where states are drawn from seeds, at least 100000: below, policies train."""
    seed: int = 0
    """Seed of the policy's own draws."""
    workers: int | str = 2
    """Processes; 0 plays in this one, for a debugger; ray://HOST:PORT on a Ray cluster."""
    batch: int = 0
    """One policy answers up to this many workers at a time; 0: each worker has its own."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where that one policy is."""
    execute: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(left out: the policy's own number)")
    ] = None
    """Commands of each chunk to execute."""
    distractors: int = 0
    """Moving objects that have nothing to do with the task."""
    blind: bool = False
    """Black images: what does the policy do without eyes?"""
    no_language: bool = False
    """Empty instructions."""
    video: int = 0
    """Films of this many episodes a task."""
    failures: int = 0
    """At the end, play this many failures again and film them, the most informative first."""
    job_seconds: float = 600.0
    """An episode that takes longer counts as a hung worker; --batch: an answer that does ends it all."""
    resume: bool = False
    """Go on with an unfinished evaluation; plays what is missing and what ended in an error."""
    force: bool = False
    """Replace an evaluation in --out; beside --resume it means nothing."""
    policy_factory: str = "lawm_policy.policies.loading:load_policy"
    """"module:function" that makes a policy from RUN; for policies that are not checkpoints."""


def run(args: EvaluateArgs) -> int:
    """Plays what is missing of the grid. 1 when an episode ended in an error, which is never a failure."""
    _check(args)
    suite = suite_named(args.suite)
    tasks = list(suite.choose(args.tasks))
    first = protocol.first_state(suite, args.split, args.episodes, args.seed_base)
    actor: Actor = load_function(args.policy_factory)(args.run)
    with _threads_kept():
        return _play(args, suite, tasks, first, actor)


def _play(args: EvaluateArgs, suite: protocol.Suite, tasks: list[str], first: int, actor: Actor) -> int:
    cells = protocol.grid(tasks, args.episodes, first, args.seed)
    execute = args.execute or actor.execute
    most = getattr(actor, "commands", execute)  # of a chunk, where the policy says
    if not 1 <= execute <= most:
        raise UserError(
            f"expected 1 to {most} commands to execute, as many as a chunk has, found {execute}: "
            "give another --execute"
        )
    if ensemble := getattr(actor, "ensemble", None):
        ensemble.execute = execute
    batcher = _batcher(args, actor)
    card = _checked(args, actor, suite)
    summary: dict[str, Any] = {
        "protocol": protocol.describe(suite, actor, card, execute, args.distractors),
        "policy": {
            "run": args.run,
            "checkpoint_sha256": actor.sha256,
            "factory": args.policy_factory,
            "blind": args.blind,
            "no_language": args.no_language,
            "robot": card,
            **({"batch": args.batch, "device": args.device} if args.batch else {}),
        },
        "grid": {"tasks": tasks, "episodes": args.episodes, "first": first, "seed": args.seed},
        "versions": versions(),
    }
    began = time.time()
    with _open(args, summary, cells) as (descriptor, done):
        ended = {r.episode for r in done}
        missing = [cell for cell in cells if cell not in ended]
        arguments = {
            "run": args.run,
            "factory": args.policy_factory,
            "sha256": actor.sha256,
            "seat": Seat.of(actor) if batcher else None,
            "suite": args.suite,
            "distractors": args.distractors,
            "execute": execute,
            "blind": args.blind,
            "no_language": args.no_language,
            "video": str(args.out / VIDEO) if args.video or args.failures else None,
        }
        jobs = [(cell, cell.init_state < first + args.video) for cell in missing]
        with progress("eval", len(cells), unit="episodes", done=len(done)) as bar:
            for outcome in _outcomes(args, arguments, jobs, suite, batcher):
                cell = missing[outcome.index]
                played = outcome.result or {"success": None, "steps": 0, "seconds": 0.0, "instruction": ""}
                record = Record(
                    suite=suite.name,
                    **cell._asdict(),
                    **played,
                    error=outcome.error,
                    checkpoint_sha256=actor.sha256,
                )
                protocol.append(descriptor, record)
                done.append(record)
                bar.advance(note=rate_line(protocol.count(done)))
        numbers = protocol.summarize(done, suite.held_out)
        _write_summary(
            args.out,
            summary | {"seconds": round(summary.get("seconds", 0.0) + time.time() - began, 1)},
            numbers,
            complete=True,
        )
        _film_failures(args, arguments, done, suite, batcher)
    show(numbers, args.out)
    failed = [record for record in done if record.error is not None and not record.no_episode]
    for record in failed[:ERRORS_SHOWN]:
        say(f"error in {record.task} {record.init_state}: {record.error}")
    if len(failed) > ERRORS_SHOWN:
        say(f"and {len(failed) - ERRORS_SHOWN} more errors: see {EPISODES}; --resume plays them again")
    return 1 if numbers["all"]["errors"] else 0


def _checked(args: EvaluateArgs, actor: Actor, suite: Suite) -> dict[str, Any]:
    """The robot card of a policy that belongs to this suite. A process that uses CUDA opens no simulator."""
    if args.device == "cpu" and not cuda_in_use():
        return check_match(suite, actor, args.distractors)
    seat = Seat.of(actor) if args.batch else None
    arguments: dict[str, Any] = {"run": args.run, "factory": args.policy_factory, "seat": seat}
    arguments |= {"suite": args.suite, "distractors": args.distractors}
    [outcome] = run_jobs(f"{evaluate_worker.__name__}:check", arguments, [None], workers=1)
    card: dict[str, Any] = outcome.result
    return card


def _batcher(args: EvaluateArgs, actor: Actor) -> Batcher | None:
    if not args.batch:
        return None
    from lawm_policy.policies.batching import Batcher

    return Batcher(actor, args.batch, args.device)


def _outcomes(
    args: EvaluateArgs,
    arguments: dict[str, Any],
    jobs: list[tuple[Episode, bool]],
    suite: Suite,
    batcher: Batcher | None,
) -> Iterator[Outcome]:
    return run_jobs(
        f"{evaluate_worker.__name__}:begin",
        arguments,
        jobs,
        workers=args.workers,
        job_seconds=args.job_seconds,
        kind=_task if suite.slow_tasks else None,
        answer=batcher,
    )


def _film_failures(
    args: EvaluateArgs, arguments: dict[str, Any], done: list[Record], suite: Suite, batcher: Batcher | None
) -> None:
    """Plays failures again, which fail again in the same way, and says so where one does not."""
    if not args.failures:
        return
    wanted, there = protocol.telling_failures(done), args.out / VIDEO
    wanted = [r for r in wanted if not (there / film_name(r.episode)).exists()][: args.failures]
    jobs = [(record.episode, True) for record in wanted]
    with progress("film", len(jobs), unit="failures") as bar:
        for outcome in _outcomes(args, arguments, jobs, suite, batcher):
            record, again = wanted[outcome.index], outcome.result or {}
            if (again.get("success"), again.get("steps")) != (record.success, record.steps):
                found = outcome.error or f"{again['steps']} steps"
                say(f"{record.task} {record.init_state} was not the same when played again: {found}")
            bar.advance()


def _task(job: tuple[Episode, bool]) -> str:
    return job[0].task


def rate_line(numbers: dict[str, Any]) -> str:
    """ "62% (48 to 74), 1 errors, 2 starts are no episodes" """
    if not numbers["episodes"]:
        text = "no episode ended"
    else:
        text = f"{100 * numbers['rate']:.0f}% ({100 * numbers['low']:.0f} to {100 * numbers['high']:.0f})"
    text += f", {numbers['errors']} errors" if numbers["errors"] else ""
    return text + (f", {numbers['no_episode']} starts are no episodes" if numbers["no_episode"] else "")


def show(numbers: dict[str, Any], out: Path) -> None:
    """The table that ends an evaluation, on standard output."""
    rows = [(f"{name}{' *' if n['held_out'] else ''}", n) for name, n in numbers["tasks"].items()]
    rows += [("all", numbers["all"])]
    if numbers["held_out"]["episodes"] and numbers["seen"]["episodes"]:
        rows[-1:-1] = [("seen in pretraining", numbers["seen"]), ("held out *", numbers["held_out"])]
    width = max(len(name) for name, _ in rows)
    for name, n in rows:
        print(f"{name:<{width}}  {n['successes']:>4}/{n['episodes']:<4}  {rate_line(n)}")
    print(f"{out / SUMMARY}")


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Playing in this process (--workers 0, --batch) takes one thread; whoever called goes on with theirs."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)


def _check(args: EvaluateArgs) -> None:
    for name, least in (
        ("episodes", 1),
        ("batch", 0),
        ("video", 0),
        ("failures", 0),
        ("distractors", 0),
        ("execute", 1),
        ("seed_base", 0),
        ("seed", 0),
        ("job_seconds", 1),
    ):
        value = getattr(args, name)
        if value is not None and not value >= least:
            option = name.replace("_", "-")
            raise UserError(f"expected --{option} of at least {least}, found {value}: change it")
    check_workers(args.workers)
    if args.device != "cpu" and not args.batch:
        raise UserError(f"expected --batch with --device {args.device}, found none: give --batch 16")
    if args.device != "cpu" and args.workers == 0:
        raise UserError(
            f"expected --workers of at least 1 with --device {args.device}, found 0: OpenGL and CUDA do not "
            "go together in one process"
        )


@contextmanager
def _open(
    args: EvaluateArgs, summary: dict[str, Any], cells: list[Episode]
) -> Iterator[tuple[int, list[Record]]]:
    """episodes.jsonl, open for appending, and the episodes already in it; nobody else may write."""
    out = args.out
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder, found a file at {out}: choose another --out")
    there = (out / SUMMARY).exists() or (out / EPISODES).exists()
    if not there and out.exists() and any(not p.name.startswith(".") for p in out.iterdir()):
        raise UserError(f"expected a new folder or an evaluation, found other files in {out}: choose another")
    if there and not (args.resume or args.force):
        raise UserError(f"expected a new folder, found an evaluation in {out}: add --resume or --force")
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"expected {out} to be free, found another evaluation writing: wait for it"
            ) from None
        if args.force and not args.resume:
            shutil.rmtree(out / VIDEO, ignore_errors=True)
            for name in (EPISODES, SUMMARY):
                (out / name).unlink(missing_ok=True)
        done = _recover(out, summary, cells)
        lines = "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in done)
        write_text(out / EPISODES, lines)
        _write_summary(
            out, summary, protocol.summarize(done, summary["protocol"]["held_out"]), complete=False
        )
        descriptor = os.open(out / EPISODES, os.O_WRONLY | os.O_APPEND)
        try:
            yield descriptor, done
        finally:
            os.close(descriptor)


def _recover(out: Path, summary: dict[str, Any], cells: list[Episode]) -> list[Record]:
    """The episodes that ended, once each: a half line and those that ended in an error are played again."""
    path = out / EPISODES
    if not (out / SUMMARY).exists():
        if path.exists() and path.stat().st_size:
            raise UserError(
                f"expected {SUMMARY} in {out}, which says what was played, found {EPISODES} alone: "
                "put it back, or choose another --out"
            )
        return []
    before = protocol.read_summary(out)
    for part in ("protocol", "policy"):
        told = json.loads(json.dumps(summary[part]))
        # Where the checkpoint lies does not matter; which one it is does.
        told["run"], was = None, {**before.get(part, {}), "run": None}
        if found := next(differences(was, told, part), None):
            raise UserError(f"expected to go on with {out}, found another {found}: choose another --out")
    if "versions" in before:  # of those who began it
        summary["earlier"] = [*before.get("earlier", []), before["versions"]]
    summary["seconds"] = before.get("seconds", 0.0)
    if not path.exists():
        return []
    kept = {r.episode: r for r in protocol.read(out) if r.error is None or r.no_episode}
    strangers = kept.keys() - set(cells)
    if strangers:
        raise UserError(
            f"expected a grid that contains what {out} holds, found {len(strangers)} episodes outside it: "
            "give the same --tasks, --seed and first state, and at least as many --episodes"
        )
    return list(kept.values())


def _write_summary(out: Path, summary: dict[str, Any], numbers: dict[str, Any], complete: bool) -> None:
    whole = {"complete": complete, **summary, **numbers}
    write_text(out / SUMMARY, json.dumps(whole, indent=1, allow_nan=False) + "\n")
