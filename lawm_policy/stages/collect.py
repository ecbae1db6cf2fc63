"""`lawm collect`: episodes by scripted experts, as labelled demonstrations or as unlabelled videos.

The tabletop is known here, LIBERO in `collect_libero`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lawm_policy.config import difference
from lawm_policy.console import progress, say
from lawm_policy.data.layout import REQUEST, write_json
from lawm_policy.data.store_writer import EpisodeShape, StoreWriter, stage
from lawm_policy.data.video import write_video
from lawm_policy.runs import check_out, commit, read_record
from lawm_policy.sim.experts_tabletop import play, rollout
from lawm_policy.sim.kinematics import load_chain
from lawm_policy.sim.libero_assets import check_ready
from lawm_policy.sim.libero_premise import BrokenPremise
from lawm_policy.sim.protocol import SPLITS
from lawm_policy.sim.suites import TABLETOP, suite_named
from lawm_policy.sim.tabletop_env import CONTROL_HZ, TabletopEnv
from lawm_policy.sim.tabletop_scene import CAMERAS
from lawm_policy.sim.tabletop_tasks import TASKS, select_tasks
from lawm_policy.sim.workers import Outcome, check_workers, cuda_in_use, run_jobs
from lawm_policy.stages import collect_libero
from lawm_policy.stages.collect_args import ONLY, CollectArgs, Played, Slot, closing
from lawm_policy.stages.replacing import replacing, settle
from lawm_policy.types import NO_ROOM, UserError

PLAY = "play"
ATTEMPTS = 4  # a scene in which the expert fails is tried again, differently, before it is given up
PART = ".part.mp4"


class Done(NamedTuple):
    """What a worker says of a slot: `steps` is 0 where it was given up, or found the disk full."""

    steps: int
    failures: int
    full: bool = False


def run(args: CollectArgs) -> int:
    args = _resolved(args)
    slots = _check(args)
    settle(args.out)
    check_out(args.out, resume=args.resume, force=args.force, marker=REQUEST)
    made_with = _made_with(args)
    _check_rendering(args)
    with replacing(args.out, resume=args.resume, force=args.force) as target:
        _check_request(target.folder, args, made_with)
        there, errors = _fill(target.folder, args, slots)
        target.complete = bool(there) and not errors
        if not there and target.folder != args.out:
            shutil.rmtree(target.folder)
    return 1 if errors else 0


def _fill(out: Path, args: CollectArgs, slots: list[Slot]) -> tuple[int, int]:
    """Collects into `out`, and tells; returns how many episodes are there, and how many errors there were."""
    collect = _collect_demos if args.kind == "demos" else _collect_videos
    tally: Counter[str] = Counter()
    given_up: Counter[str] = Counter()
    errors: list[tuple[Slot, str]] = []
    with progress("collect", len(slots), unit="episodes") as bar:
        for slot, outcome in collect(out, args, slots):
            if outcome.error is not None:
                errors.append((slot, outcome.error))
            else:
                tally["kept"] += bool(outcome.result.steps)
                given_up[slot.task] += not outcome.result.steps
                tally["steps"] += outcome.result.steps
                tally["failures"] += outcome.result.failures
            bar.advance(note=f"{tally['failures']} failures" if tally["failures"] else None)
    for slot, line in errors:
        say(f"{slot.name}: {line}")
    for task, number in (+given_up).items():
        asked = sum(slot.task == task for slot in slots) - sum(slot.task == task for slot, _ in errors)
        say(f"{task}: {asked - number} episodes kept, {number} given up")
    already = len(slots) - tally["kept"] - given_up.total() - len(errors)
    say(
        f"{args.out}: {tally['kept']} episodes, {tally['steps'] / CONTROL_HZ / 60:.1f} minutes"
        + (f", {already} were there already" if already else "")
        + f"; the expert failed {tally['failures']} times, {given_up.total()} episodes were given up"
    )
    return tally["kept"] + already, len(errors)


# ---------------------------------------------------------------------- what was asked for


def _resolved(args: CollectArgs) -> CollectArgs:
    """With what was left out."""
    _check_meant(args)
    if args.suite == TABLETOP:
        return replace(
            args,
            embodiment=args.embodiment or "arm6",
            command=args.command or "joint",
            size=args.pixels,
        )
    return collect_libero.resolved(args)


def _check_meant(args: CollectArgs) -> None:
    """Refuses options that mean nothing to this suite or kind."""
    suite = TABLETOP if args.suite == TABLETOP else "LIBERO"
    usual = {option.name: option.default for option in fields(args)}
    for name, where in ONLY.items():
        if where not in (suite, args.kind) and getattr(args, name) != usual[name]:
            option, found = name.replace("_", "-"), f"{args.suite} {args.kind}"
            raise UserError(f"expected --{option} with {where} alone, found it with {found}: leave it out")


def _check(args: CollectArgs) -> list[Slot]:
    bodies = _bodies(args)
    if len(bodies) > 1 and args.kind == "demos":
        raise UserError(
            f"expected one embodiment for demonstrations, found {args.embodiment}: collect each apart"
        )
    if args.fps not in (20, 10, 5, 4):
        raise UserError(f"expected --fps 20, 10, 5 or 4, found {args.fps}: choose one")
    if args.pixels % 2 or not 16 <= args.pixels <= 640:
        raise UserError(f"expected an even --size from 16 to 640, found {args.size}: choose one")
    if not 0 <= args.caption_rate <= 1:
        raise UserError(f"expected --caption-rate from 0 to 1, found {args.caption_rate}: choose one")
    check_workers(args.workers)
    for name, least in (("episodes", 0), ("play", 0), ("seed", 0), ("distractors", 0), ("play_seconds", 1)):
        if not getattr(args, name) >= least:
            option = name.replace("_", "-")
            raise UserError(
                f"expected --{option} of at least {least}, found {getattr(args, name)}: change it"
            )
    slots = _tabletop_slots(args, bodies) if args.suite == TABLETOP else collect_libero.check(args)
    if not slots:
        play = " or --play" if args.suite == TABLETOP else ""
        raise UserError(f"expected at least one episode, found none: give --episodes{play}")
    return slots


def _bodies(args: CollectArgs) -> tuple[str, ...]:
    return tuple(word.strip() for word in args.embodiment.split(","))


def _tabletop_slots(args: CollectArgs, bodies: tuple[str, ...]) -> list[Slot]:
    for body in bodies:
        load_chain(body)
    tasks = select_tasks(("all" if args.kind == "demos" else "train") if args.tasks is None else args.tasks)
    number = {name: index for index, name in enumerate(TASKS)}
    slots = []
    for body in bodies:
        group = "hand" if body == "hand" else "arm"
        for k in range(args.episodes):
            for task in tasks:
                offset = k if args.shared_scenes else k * len(TASKS) + number[task]
                slots.append(Slot(body, task, args.seed + offset, group))
        group = PLAY if body != "hand" else "hand_play"
        slots += [Slot(body, PLAY, args.seed + k, group) for k in range(args.play)]
    last = max((slot.seed for slot in slots), default=0)
    if last >= SPLITS["val"]:
        raise UserError(
            f"expected scenes below {SPLITS['val']}, where validation begins, found {last}: "
            "lower --seed or --episodes"
        )
    return slots


def _check_rendering(args: CollectArgs) -> None:
    """One image before anything is written: a machine without OpenGL is known here, not in each episode. Not
    where this process uses CUDA, beside which no simulator may run: there workers tell it."""
    if cuda_in_use():
        return
    env = _open_env(args)
    try:
        with suppress(BrokenPremise):  # told of its slot when that comes
            env.reset(seed=args.seed)
    finally:
        env.close()


def _open_env(args: CollectArgs, **settings: Any) -> Any:
    if args.suite != TABLETOP:
        return collect_libero.open_env(args)
    command = args.command or "joint"
    return TabletopEnv(embodiment=_bodies(args)[0], command=command, size=args.pixels, **settings)


def _made_with(args: CollectArgs) -> dict[str, Any]:
    """What decides how things look and move, beside what was asked for: as in evaluations."""
    if args.suite != TABLETOP:
        check_ready()
    suite = suite_named(args.suite if args.suite == TABLETOP else f"{args.suite}@{args.protocol}")
    assets = suite.rules.get("libero", {}).get("assets")
    return {"versions": {name: version(name) for name in suite.simulators}, "assets": assets}


def _check_request(out: Path, args: CollectArgs, made_with: dict[str, Any]) -> None:
    """A collection that is resumed must have been asked for in the same words, and be made with the same. A
    new one is written down before all else."""
    asked = _request(args)
    path = out / REQUEST
    if out.is_dir() and {file.name for file in out.iterdir()} - {f".{REQUEST}.part"}:
        if not path.is_file():
            raise UserError(
                f"expected {REQUEST} in {out} to resume it, found other files: give another --out"
            )
        found = read_record(path, "give another --out, or --force to start anew")
        if differing := [key for key in asked if found.get(key) != asked[key]]:
            key = differing[0]
            raise UserError(
                f"expected {key} {found.get(key)!r} as in {out} to resume it, found {asked[key]!r}: "
                "give another --out"
            )
        before = found.get("made_with", made_with)  # of an earlier version of ours: nobody knows
        if unlike := difference(before, made_with):
            raise UserError(
                f"expected what {out} was begun with to resume it, found something else ({unlike}): "
                "put that back, or give another --out"
            )
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asked, "made_with": made_with, "commit": commit()})


# ---------------------------------------------------------------------- the two kinds


def _collect_demos(out: Path, args: CollectArgs, slots: list[Slot]) -> Iterator[tuple[Slot, Outcome]]:
    """Workers stage episodes; this process commits them in the order of the slots."""
    card = _card(args)
    with StoreWriter(
        out,
        fps=CONTROL_HZ,
        cameras={camera: (args.pixels, args.pixels) for camera in CAMERAS},
        state_names=card["state_names"],
        action_names=card["action_names"],
        robot=card,
        append=args.resume,
    ) as writer:
        there = {source.partition(" ")[0] for source in writer.sources}
        slots = [slot for slot in slots if slot.name not in there]
        jobs = [slot._replace(folder=str(writer.staging_folder())) for slot in slots]
        arguments = {"args": args, "shape": writer.shape}
        waiting: dict[int, Outcome] = {}
        following = 0
        for outcome in _outcomes(args, "prepare_demo", arguments, jobs):
            waiting[outcome.index] = outcome
            while following in waiting:
                ready = waiting.pop(following)
                if ready.error is None and ready.result.steps:
                    writer.commit(Path(jobs[following].folder))
                yield slots[following], ready
                following += 1


def _collect_videos(out: Path, args: CollectArgs, slots: list[Slot]) -> Iterator[tuple[Slot, Outcome]]:
    for part in out.glob(f"*/.*{PART}"):  # of a run that was killed, whose workers may be at it still
        part.unlink()
    slots = [slot for slot in slots if not _video_file(out, slot, CAMERAS[0]).exists()]
    arguments = {"args": args, "out": out}
    for outcome in _outcomes(args, "prepare_video", arguments, slots):
        yield slots[outcome.index], outcome


def _outcomes(
    args: CollectArgs, prepare: str, arguments: dict[str, Any], jobs: list[Slot]
) -> Iterator[Outcome]:
    """Until the disk is full: what is left would be played for nothing."""
    for outcome in run_jobs(f"{__name__}:{prepare}", arguments, jobs, workers=args.workers):
        if outcome.error is None and outcome.result.full:
            raise UserError(f"expected room on the disk for {args.out}, found none: free some and --resume")
        yield outcome


def _card(args: CollectArgs) -> dict[str, Any]:
    if args.suite != TABLETOP:
        return collect_libero.card(args)
    env = _open_env(args, images=False)
    try:
        return env.robot_card() | {"cameras": list(CAMERAS)}
    finally:
        env.close()


# ---------------------------------------------------------------------- in a worker


def prepare_demo(args: CollectArgs, shape: EpisodeShape) -> Callable[[Slot], Done]:
    perform = _performer(args)

    def work(slot: Slot) -> Done:
        episode, failures, attempt = perform(slot)
        folder = Path(slot.folder)
        if episode is None:
            shutil.rmtree(folder)
            return Done(0, failures)
        for file in folder.iterdir():  # of a worker that died here
            file.unlink()
        facts: dict[str, Any] = {"text": episode.text, "task": slot.task, "embodiment": slot.embodiment}
        # The slot is what `--resume` knows it by; the scene may be one that took its place.
        facts |= {"split": None, "source": f"{slot.name} scene {episode.seed} attempt {attempt}"}
        steps = stage(folder, shape, episode.frames, facts, episode.state_TP, episode.action_TA)
        return Done(steps, failures)

    return _noticing(work, perform)


def prepare_video(args: CollectArgs, out: Path) -> Callable[[Slot], Done]:
    perform = _performer(args)

    def work(slot: Slot) -> Done:
        episode, failures, attempt = perform(slot)
        if episode is None:
            return Done(0, failures)
        (out / slot.folder).mkdir(parents=True, exist_ok=True)
        played = json.dumps({"scene": episode.seed, "attempt": attempt})
        (out / slot.folder / f"{slot.name}.json").write_text(played + "\n")
        if episode.text and _draw(slot.name) < args.caption_rate:
            (out / slot.folder / f"{slot.name}.txt").write_text(episode.text + "\n")
        for camera in reversed(CAMERAS):  # the first camera's file says that the episode is complete
            target = _video_file(out, slot, camera)
            part = target.with_name(f".{target.stem}.{os.getpid()}{PART}")
            write_video(part, episode.frames[camera], args.fps)
            part.replace(target)
        return Done(len(episode.action_TA), failures)

    return _noticing(work, perform)


def _noticing(work: Callable[[Slot], Done], perform: Any) -> Callable[[Slot], Done]:
    """A full disk is no error of one episode: all that follow would meet it."""

    def noticed(slot: Slot) -> Done:
        try:
            return work(slot)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return Done(0, 0, full=True)

    taken: Any = noticed
    taken.close = perform.close
    return taken


def _performer(args: CollectArgs) -> Any:
    """Plays slots, with one environment for each embodiment; `close` closes them."""
    if args.suite != TABLETOP:
        return collect_libero.performer(args, ATTEMPTS)
    envs: dict[str, TabletopEnv] = {}
    stride = CONTROL_HZ // args.fps

    def perform(slot: Slot) -> Played:
        if slot.embodiment not in envs:
            envs[slot.embodiment] = TabletopEnv(
                embodiment=slot.embodiment,
                command=args.command or "joint",
                size=args.pixels,
                distractors=args.distractors,
            )
        env = envs[slot.embodiment]
        if slot.task == PLAY:
            return Played(play(env, slot.seed, args.play_seconds, frame_stride=stride), 0)
        for attempt in range(ATTEMPTS):
            episode = rollout(env, slot.task, slot.seed, frame_stride=stride, attempt=attempt)
            if episode.success:
                return Played(episode, attempt, attempt)
        return Played(None, ATTEMPTS)

    return closing(perform, envs)


def _draw(name: str) -> float:
    """In [0, 1), from the name alone: a lower caption rate leaves a subset of the captions."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little") / 2**48


def _video_file(out: Path, slot: Slot, camera: str) -> Path:
    return out / slot.folder / f"{slot.name}.{camera}.mp4"


def _request(args: CollectArgs) -> dict[str, Any]:
    """What decides which episodes there will be."""
    left_out = ("out", "workers", "resume", "force", *(("protocol",) if args.suite == TABLETOP else ()))
    return {key: value for key, value in asdict(args).items() if key not in left_out}
