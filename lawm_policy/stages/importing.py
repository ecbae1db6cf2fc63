"""`lawm import`: ordinary videos into an episode store."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lawm_policy.console import progress, say
from lawm_policy.data.layout import INFO, write_json
from lawm_policy.data.store_writer import StoreWriter
from lawm_policy.data.video import VideoError, scan_packets
from lawm_policy.data.video_import import Shape, SourceEpisode, find_videos, stage_videos
from lawm_policy.types import UserError

REPORT = "import_report.json"


@dataclass(frozen=True)
class ImportArgs:
    """Videos into an episode store.

    Every mp4, webm, avi, mov and mkv below SRC becomes an episode: the centre square, reduced by area
    averaging, at one constant rate (the frame nearest in time), turned as its rotation flag says.
    NAME.front.mp4 beside NAME.wrist.mp4 are two views of one episode. NAME.txt, or a line
    {"file": "NAME.mp4", "text": "..."} in a captions.jsonl, is its caption. The topmost folder it lies in
    (arm/, hand/) names its embodiment. Unreadable files are listed and skipped. Exit status: 0 if any
    video was imported, 2 if none.
    """

    kind: Annotated[tyro.conf.Positional[Literal["videos"]], tyro.conf.arg(metavar="videos")]
    """What SRC holds."""
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """A folder of videos, however nested."""
    out: Path
    """The store to write."""
    camera: str = "front"
    """The camera's name for videos that do not say it."""
    views: tuple[str, ...] = ("front", "wrist")
    """Camera names recognised in NAME.VIEW.mp4."""
    fps: str = "20"
    """Frames a second to store, or `native`: the videos' own median rate, rounded."""
    size: int = 128
    """Pixels of the stored square's side (even)."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that convert."""
    resume: bool = False
    """Go on with an import that was interrupted, or add videos that are new."""
    force: bool = False
    """Replace an existing store."""


def run(args: ImportArgs) -> int | None:
    if not args.source.is_dir():
        found = "a file" if args.source.exists() else "nothing"
        raise UserError(f"expected a folder of videos at {args.source}, found {found}")
    if args.size < 16 or args.size % 2 or args.workers < 1:
        raise UserError(
            f"expected an even --size of at least 16 and --workers >= 1, found {args.size}, {args.workers}"
        )
    episodes = find_videos(args.source, args.camera, args.views, exclude=args.out)
    if not episodes:
        raise UserError(f"expected videos (mp4, webm, avi, mov, mkv) below {args.source}, found none")
    fps = _rate(args.fps, episodes)
    used = {camera for episode in episodes for camera in episode.files}
    ordered = [c for c in args.views if c in used] + sorted(used - set(args.views))
    shape = Shape(fps=fps, cameras={camera: (args.size, args.size) for camera in ordered})
    fresh = _prepare(args)
    writer = StoreWriter(args.out, fps=fps, cameras=shape.cameras, append=args.resume)
    if writer.recovery is not None:
        say(f"{args.out}: {writer.recovery}")
    todo = [episode for episode in episodes if episode.source not in writer.sources]
    present = len(episodes) - len(todo)
    failed: list[dict[str, str]] = []
    frames = 0
    started = time.monotonic()
    with writer, progress("import", len(episodes), unit="videos", done=present) as bar:
        for episode, folder, length, problem in _converted(todo, writer, shape, args.workers):
            if problem is None:
                writer.commit(folder)
                frames += length
            else:
                names = "|".join(re.escape(path.name) for path in episode.files.values())
                failed.append({"file": episode.source, "reason": re.sub(f"^({names}) ", "", problem)})
            seconds = time.monotonic() - started
            bar.advance(1, note=f"{frames / max(seconds, 1e-9):.0f} frames/s, {len(failed)} unreadable")
    imported = len(todo) - len(failed)
    if not imported and not present:
        if fresh:
            shutil.rmtree(args.out)
        reasons = "; ".join(f"{f['file']}: {f['reason']}" for f in failed[:3])
        raise UserError(f"expected at least one readable video in {args.source}, found none: {reasons}")
    report = {
        "source": str(args.source),
        "fps": fps,
        "size": args.size,
        "cameras": ordered,
        "imported": imported,
        "already_there": present,
        "frames": frames,
        "seconds": round(time.monotonic() - started, 2),
        "failed": failed,
    }
    write_json(args.out / REPORT, report)
    for item in failed:
        print(f"skipped {item['file']}: {item['reason']}")
    there = f", {present} were already there" if present else ""
    print(
        f"imported {imported} episodes ({frames} frames at {fps} Hz, {args.size} px, cameras "
        f"{', '.join(ordered)}){there}, skipped {len(failed)}: {args.out} (details in {REPORT})"
    )
    return 0


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
        raise UserError(f"expected --fps from 1 to 240, or native, found {text!r}")
    return int(text)


def _prepare(args: ImportArgs) -> bool:
    """Clears the output where that was asked for; says whether this run creates it."""
    occupied = args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir()))
    if not occupied or args.resume:
        return not occupied
    if not args.force:
        raise UserError(
            f"expected a new folder, found {args.out}: add --resume to go on or --force to replace it"
        )
    if not (args.out / INFO).exists():
        raise UserError(f"expected --force to replace an episode store, found something else at {args.out}")
    shutil.rmtree(args.out)
    return True


Converted = tuple[SourceEpisode, Path, int, str | None]


def _converted(
    todo: list[SourceEpisode], writer: StoreWriter, shape: Shape, workers: int
) -> Iterator[Converted]:
    """Converts in parallel and yields in order, so that the store does not depend on who was fast."""
    coming = iter(todo)
    running: deque[tuple[SourceEpisode, Path, Future[tuple[int, str | None]]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            while len(running) < 2 * workers + 2 and (new := next(coming, None)) is not None:
                folder = writer.staging_folder()
                running.append((new, folder, pool.submit(stage_videos, folder, new, shape)))
            if not running:
                return
            episode, folder, future = running.popleft()
            try:
                length, problem = future.result()
            except BrokenProcessPool:  # a file brought its process down: find out which, one at a time
                yield from _alone([(episode, folder), *((e, f) for e, f, _ in running)], shape)
                running.clear()
                pool.shutdown()
                pool = _pool(workers)
                continue
            yield episode, folder, length, problem
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(suspects: list[tuple[SourceEpisode, Path]], shape: Shape) -> Iterator[Converted]:
    for episode, folder in suspects:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with _pool(1) as pool:
            try:
                length, problem = pool.submit(stage_videos, folder, episode, shape).result()
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
