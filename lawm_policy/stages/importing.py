"""`lawm import`: ordinary videos, and demonstrations that others recorded, into an episode store."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import tyro

from lawm_policy.console import progress, say
from lawm_policy.data.layout import INFO, write_json
from lawm_policy.data.lerobot_import import find_episodes, libero_card, own_card, stage_stored
from lawm_policy.data.libero_hdf5 import (
    CAMERAS,
    Hdf5Demo,
    Unusable,
    find_demos,
    find_files,
    stage_demo,
)
from lawm_policy.data.store import EpisodeStore
from lawm_policy.data.store_writer import EpisodeShape, StoreWriter
from lawm_policy.data.video import VideoError, scan_packets
from lawm_policy.data.video_import import SourceEpisode, find_videos, stage_videos
from lawm_policy.runs import check_writable
from lawm_policy.sim.libero_robot import CONTROL_HZ, panda_card
from lawm_policy.stages.replacing import replacing, settle
from lawm_policy.types import UserError

REPORT = "import_report.json"
LIBERO_NAMES = {"image": "front", "image2": "wrist", "wrist_image": "wrist"}  # cameras, in LeRobot's dataset


@dataclass(frozen=True)
class ImportArgs:
    """Videos, or demonstrations of others, into an episode store.

    videos: every mp4, webm, avi, mov and mkv below SRC becomes an episode: the centre square, reduced (by
    area averaging) or enlarged to --size, at one constant rate (the frame nearest in time), turned as its
    rotation flag says. NAME.front.mp4 beside NAME.wrist.mp4 are two views of one episode. NAME.txt, or a line
    {"file": "NAME.mp4", "text": "..."} in a captions.jsonl, is its caption. The topmost folder it lies in
    (arm/, hand/) names its embodiment; of what `lawm collect` wrote, the topmost in that collection.

    libero: LIBERO's HDF5 files, or folders of them. Each command is put beside what was seen before it
    (the files have it beside what was seen after), and no-ops at the ends are left out.

    lerobot: a dataset folder that LeRobot wrote (v3).

    Unreadable files are listed and skipped. Exit status: 0 if anything was imported, 2 if nothing.
    """

    kind: Annotated[
        tyro.conf.Positional[Literal["videos", "libero", "lerobot"]], tyro.conf.arg(metavar="KIND")
    ]
    """What SRC holds: videos, libero or lerobot."""
    source: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="SRC", help_behavior_hint="(required)"),
    ]
    """A folder, however nested; for libero also files, as many as you like."""
    out: Path
    """The store to write."""
    camera: str = "front"
    """videos: the camera's name where the file does not say it."""
    views: tuple[str, ...] = ("front", "wrist")
    """videos: camera names recognised in NAME.VIEW.mp4."""
    fps: str = "20"
    """videos: frames a second to store, or `native`: the videos' own median rate, rounded."""
    rotate: bool = False
    """libero, lerobot: turn images by half a turn. LIBERO's own are upside down, and stay so else."""
    rename: tuple[str, ...] = ()
    """lerobot: cameras' new names, as image=front image2=wrist."""
    robot: Literal["", "libero"] = ""
    """lerobot: whose state and commands these are; libero: LIBERO's 8 and 7 numbers."""
    size: int = 128
    """Pixels of the stored square's side (even)."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that convert."""
    resume: bool = False
    """Go on with an import that was interrupted, or add what is new."""
    force: bool = False
    """Replace an existing store, when the new one is complete (there has to be room for both)."""


ONLY = {  # options that mean nothing to other kinds
    "camera": ("videos",),
    "views": ("videos",),
    "fps": ("videos",),
    "rotate": ("libero", "lerobot"),
    "rename": ("lerobot",),
    "robot": ("lerobot",),
}


class Source(Protocol):
    """What will be one episode."""

    @property
    def source(self) -> str: ...  # its identity


@dataclass(frozen=True)
class Plan:
    """What is to be imported, and how one of it becomes a staged episode."""

    what: str
    episodes: Sequence[Source]
    shape: EpisodeShape
    stage: Callable[[Path, Any, Any], tuple[int, str | None]]
    robot: dict[str, Any] | None = None
    failed: tuple[tuple[str, str], ...] = ()  # what could not even be opened, and why


def run(args: ImportArgs) -> int | None:
    _check(args)
    plan = {"videos": _videos, "libero": _libero, "lerobot": _lerobot}[args.kind](args)
    where = ", ".join(map(str, args.source))
    failed = [{"file": file, "reason": reason} for file, reason in plan.failed]
    if not plan.episodes:
        raise _nothing(plan, where, failed)
    settle(args.out)
    _prepare(args)
    with replacing(args.out, resume=args.resume, force=args.force) as target:
        told, episodes = _fill(target.folder, args, plan, failed)
        imported, present, frames = told["imported"], told["already_there"], told["frames"]
        if not imported and not present:
            if not episodes:
                shutil.rmtree(target.folder)
            raise _nothing(plan, where, failed)
        fps, cameras = plan.shape.fps, list(plan.shape.cameras)
        shape = {"source": where, "fps": fps, "size": args.size, "cameras": cameras}
        write_json(target.folder / REPORT, {**shape, **told, "failed": failed})
        target.complete = True
    for item in failed:
        print(f"skipped {item['file']}: {item['reason']}")
    there = f", {present} were already there" if present else ""
    print(
        f"imported {imported} episodes ({frames} frames at {fps} Hz, {args.size} px, cameras "
        f"{', '.join(cameras)}){there}, skipped {len(failed)}: {args.out} (details in {REPORT})"
    )
    return 0


def _fill(
    out: Path, args: ImportArgs, plan: Plan, failed: list[dict[str, str]]
) -> tuple[dict[str, Any], int]:
    """Imports into the store at `out`, and adds to `failed`; what is told, and the episodes that it holds."""
    shape = plan.shape
    writer = StoreWriter(
        out,
        fps=shape.fps,
        cameras=shape.cameras,
        state_names=shape.state_names,
        action_names=shape.action_names,
        robot=plan.robot,
        append=args.resume,
    )
    if writer.recovery is not None:
        say(f"{args.out}: {writer.recovery}")
    todo = list({e.source: e for e in plan.episodes if e.source not in writer.sources}.values())
    present = len(plan.episodes) - len(todo)
    imported = frames = 0
    started = time.monotonic()
    with writer, progress("import", len(plan.episodes), unit="episodes", done=present) as bar:
        for episode, folder, length, problem in _converted(todo, writer, plan, args.workers):
            if problem is None:
                writer.commit(folder)
                imported, frames = imported + 1, frames + length
            else:
                failed.append({"file": episode.source, "reason": problem})
            seconds = time.monotonic() - started
            bar.advance(1, note=f"{frames / max(seconds, 1e-9):.0f} frames/s, {len(failed)} unreadable")
    seconds = round(time.monotonic() - started, 2)
    told = {"imported": imported, "already_there": present, "frames": frames, "seconds": seconds}
    return told, len(writer)


def _nothing(plan: Plan, where: str, failed: list[dict[str, str]]) -> UserError:
    reasons = "; ".join(f"{f['file']}: {f['reason']}" for f in failed[:3])
    return UserError(
        f"expected at least one readable {plan.what} in {where}, found none"
        + (f": {reasons}" if reasons else "")
    )


def _check(args: ImportArgs) -> None:
    if args.size < 16 or args.size % 2:
        raise UserError(f"expected an even --size of at least 16, found {args.size}: choose one")
    if args.workers < 1:
        raise UserError(f"expected --workers of at least 1, found {args.workers}: change it")
    usual = {f.name: f.default for f in fields(args)}
    for name, kinds in ONLY.items():
        if args.kind not in kinds and getattr(args, name) != usual[name]:
            raise UserError(
                f"expected --{name} with {' or '.join(kinds)} alone, found it with {args.kind}: leave it out"
            )
    if not args.source:
        raise UserError(f"expected SRC, what is to be imported as {args.kind}, found nothing: name a folder")
    if args.kind != "libero":
        if len(args.source) > 1:
            raise UserError(f"expected one folder, found {len(args.source)}: import each apart")
        if not args.source[0].is_dir():
            found = "a file" if args.source[0].exists() else "nothing"
            what = "videos" if args.kind == "videos" else "a dataset"
            raise UserError(f"expected a folder of {what} at {args.source[0]}, found {found}: name a folder")
    _check_apart(args)


def _check_apart(args: ImportArgs) -> None:
    """--force replaces --out: no source may lie there. A folder below SRC will do, where what is in it is no
    source; a dataset is read whole."""
    out = args.out.resolve()
    for source in (path.resolve() for path in args.source):
        if source.is_relative_to(out) or (args.kind == "lerobot" and out.is_relative_to(source)):
            raise UserError(
                f"expected --out apart from what is imported, found {args.out}: name another folder"
            )


def _videos(args: ImportArgs) -> Plan:
    source = args.source[0]
    here = source.resolve()
    if store := next((p for p in (here, *here.parents) if (p / INFO).is_file()), None):
        raise UserError(
            f"expected ordinary videos at {source}, found an episode store at {store}: give that to --data "
            "as it is, or to `lawm import lerobot`"
        )
    found = find_videos(source, args.camera, args.views, exclude=args.out)
    above = [{folder for file in e.files.values() for folder in file.parents} for e in found]
    stores = {folder for folder in set().union(*above) if (folder / INFO).is_file()}
    for folder in sorted(stores):
        say(f"left out: {folder}, an episode store")
    episodes = [e for e, folders in zip(found, above, strict=True) if not folders & stores]
    if not episodes:
        raise UserError(
            f"expected mp4, webm, avi, mov or mkv below {source}, found none: name another folder"
        )
    used = {camera for episode in episodes for camera in episode.files}
    ordered = [c for c in args.views if c in used] + sorted(used - set(args.views))
    shape = EpisodeShape(fps=_rate(args.fps, episodes), cameras={c: (args.size, args.size) for c in ordered})
    return Plan("video", episodes, shape, stage_videos)


def _libero(args: ImportArgs) -> Plan:
    episodes: list[Hdf5Demo] = []
    failed: list[tuple[str, str]] = []
    files = deque(find_files(args.source, exclude=args.out))
    while files:
        with _pool(1) as pool:  # a stranger's file may bring down whoever opens it
            try:
                while files:
                    file, name = files.popleft()
                    try:
                        episodes += pool.submit(find_demos, file, name).result()
                    except Unusable as error:
                        failed.append((name, str(error)))
            except BrokenProcessPool:
                failed.append((name, "its reader crashed"))
    card = panda_card("ee", tuple(CAMERAS), "rotate_180" if args.rotate else "none")
    stage = partial(stage_demo, rotate=args.rotate)
    return Plan("demonstration", episodes, _demo_shape(args, card), stage, card, tuple(failed))


def _lerobot(args: ImportArgs) -> Plan:
    source = args.source[0]
    rename = dict(_pair(word) for word in args.rename)
    store = EpisodeStore.open(source, pictures=True)
    libero = args.robot == "libero"
    if libero:
        rename = {name: ours for name, ours in LIBERO_NAMES.items() if name in store.cameras} | rename
    cameras = [rename.get(camera, camera) for camera in store.cameras]
    named: dict[str, Any] = {"state_names": store.state_names, "action_names": store.action_names}
    named |= {"rate": store.fps, "cameras": cameras}
    card = own_card(store, cameras, args.rotate)
    if libero:
        card = named = libero_card(store, cameras, args.rotate)
        if store.fps != CONTROL_HZ:  # most LIBERO datasets on the hub say 10 Hz, and are not
            say(f"{source}: labelled {store.fps} Hz; taken for LIBERO's {CONTROL_HZ}, one frame a command")
    episodes = find_episodes(source, rename, named.get("embodiment", ""))
    stage = partial(stage_stored, rotate=args.rotate)
    return Plan("episode", episodes, _demo_shape(args, named), stage, card)


def _demo_shape(args: ImportArgs, card: dict[str, Any]) -> EpisodeShape:
    cameras = {camera: (args.size, args.size) for camera in card["cameras"]}
    return EpisodeShape(card["rate"], cameras, card["state_names"], card["action_names"])


def _pair(word: str) -> tuple[str, str]:
    theirs, equals, ours = word.partition("=")
    if not (theirs and equals and ours):
        raise UserError(f"expected --rename as image=front, found {word!r}: correct it")
    return theirs, ours


def _rate(text: str, episodes: list[SourceEpisode]) -> int:
    if text == "native":
        rates = []
        for episode in episodes:
            try:
                rates.append(scan_packets(next(iter(episode.files.values()))).rate)
            except VideoError:
                continue  # listed as unreadable when its turn comes
        return max(1, round(sorted(rates)[len(rates) // 2])) if rates else 20
    if not text.isdigit() or not 1 <= int(text) <= 240:
        raise UserError(f"expected --fps from 1 to 240, or native, found {text!r}: choose one")
    return int(text)


def _prepare(args: ImportArgs) -> None:
    """Refuses an output that is occupied, unless it may be."""
    occupied = args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir()))
    check_writable(args.out)
    if not occupied or args.resume:
        return
    if not args.force:
        raise UserError(
            f"expected a new folder, found {args.out}: add --resume to go on or --force to replace it"
        )
    if not (args.out / INFO).exists():
        raise UserError(
            f"expected an episode store at {args.out} to --force, found something else: give another --out"
        )


Converted = tuple[Any, Path, int, str | None]


def _converted(todo: list[Source], writer: StoreWriter, plan: Plan, workers: int) -> Iterator[Converted]:
    """Converts in parallel and yields in order, so that the store does not depend on who was fast."""
    coming = iter(todo)
    running: deque[tuple[Source, Path, Future[tuple[int, str | None]]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            while len(running) < 2 * workers + 2 and (new := next(coming, None)) is not None:
                folder = writer.staging_folder()
                running.append((new, folder, _submit(pool, plan, folder, new)))
            if not running:
                return
            episode, folder, future = running.popleft()
            try:
                length, problem = future.result()
            except BrokenProcessPool:  # a file brought its process down: find out which, one at a time
                yield from _alone([(episode, folder), *((e, f) for e, f, _ in running)], plan)
                running.clear()
                pool.shutdown()
                pool = _pool(workers)
                continue
            yield episode, folder, length, problem
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, plan: Plan, folder: Path, episode: Source
) -> Future[tuple[int, str | None]]:
    try:
        return pool.submit(plan.stage, folder, episode, plan.shape)
    except BrokenProcessPool as error:  # by one that is waited for: this one is tried again with it
        broken: Future[tuple[int, str | None]] = Future()
        broken.set_exception(error)
        return broken


def _alone(suspects: list[tuple[Source, Path]], plan: Plan) -> Iterator[Converted]:
    for episode, folder in suspects:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with _pool(1) as pool:
            try:
                length, problem = pool.submit(plan.stage, folder, episode, plan.shape).result()
            except BrokenProcessPool:
                shutil.rmtree(folder)
                length, problem = 0, "its decoder crashed"
        yield episode, folder, length, problem


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_in_worker, initargs=(os.getpid(),))


def _in_worker(parent: int) -> None:
    """Ends the worker with its parent: one killed with -9 cannot tell its children."""
    import av.logging

    av.logging.set_level(av.logging.PANIC)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
