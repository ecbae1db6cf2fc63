"""Decoded frames, memory-mapped: random access at memory speed instead of a decoder's.

An entry holds one camera of one store at one size and rate, and is named by that content, so any run
on any copy of the same store finds it. It is built aside and renamed when complete; a lock lets two
runs build at once without doing the work twice. When the cache would grow over its limit, the entries
used longest ago go first, whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lawm_policy import config
from lawm_policy.console import progress
from lawm_policy.data.store import EpisodeStore
from lawm_policy.data.video import Reducer, VideoError, decode_at
from lawm_policy.types import UserError

FORMAT = 2
LIMIT_GB = 50.0
RESERVE_BYTES = 256 * 2**20  # left free on the disk, for whoever else writes there
BLOCK = 8  # motion is measured on blocks of BLOCK x BLOCK pixels


@dataclass(frozen=True)
class Request:
    """One camera of one store, as wanted in the cache."""

    store: EpisodeStore
    camera: str
    size: int
    hz: float

    @property
    def name(self) -> str:
        content = [self.store.fingerprint, self.store.files_digest]
        what = [FORMAT, *content, self.camera, self.size, float(self.hz)]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]

    def counts(self) -> np.ndarray:
        """Cached frames of each episode; 0 where it lacks the camera."""
        return np.array(
            [
                _frames_at(e.length, self.store.fps, self.hz) if self.camera in e.cameras else 0
                for e in self.store.episodes
            ],
            dtype=np.int64,
        )

    def bytes(self) -> int:
        return int(self.counts().sum()) * (3 * self.size * self.size + 4)


def _frames_at(length: int, fps: int, hz: float) -> int:
    """How many moments k/hz lie within an episode of `length` frames."""
    return int(np.floor((length - 1) * hz / fps + 1e-6)) + 1


@dataclass(frozen=True)
class CachedFrames:
    """An opened entry."""

    frames_NCHW: np.ndarray  # uint8, read-only memory map
    motion_N: np.ndarray  # float32: largest change of an 8x8 block since the frame before, in grey levels
    first_E: np.ndarray  # row of each episode's first frame; -1 where it lacks the camera
    count_E: np.ndarray


def cache_folder(folder: str | Path | None = None) -> Path:
    return Path(folder or config.cache_folder()) / "frames"


def cache_limit() -> int:
    text = os.environ.get("LAWM_CACHE_GB", str(LIMIT_GB))
    try:
        gigabytes = float(text)
    except ValueError:
        raise UserError(f"expected a number of gigabytes in LAWM_CACHE_GB, found {text!r}") from None
    return int(gigabytes * 1e9)


def open_frames(requests: Sequence[Request], folder: str | Path | None = None) -> list[CachedFrames]:
    """Opens the entries, building those that are missing; whether they fit is known before it starts."""
    root = cache_folder(folder)
    try:
        (root / "locks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"expected a cache folder at {root}, found {error.strerror}: set LAWM_CACHE"
        ) from error
    missing = [r for r in requests if not (root / r.name).exists()]
    if missing:
        _make_room(root, sum(r.bytes() for r in missing), keep={r.name for r in requests})
    return [_open_or_build(root, request) for request in requests]


def _open_or_build(root: Path, request: Request) -> CachedFrames:
    while True:
        with _lock(root, request.name, shared=True):
            opened = _open(root / request.name, request)
        if opened is not None:
            return opened
        with _lock(root, request.name, shared=False):
            if not (root / request.name).exists():  # else another run has just built it
                for part in root.glob(f"{request.name}.part-*"):  # of a builder that was killed
                    shutil.rmtree(part)
                part = root / f"{request.name}.part-{os.getpid()}"
                try:
                    _build(part, request)
                    os.rename(part, root / request.name)
                except BaseException:
                    shutil.rmtree(part, ignore_errors=True)
                    raise


def _open(entry: Path, request: Request) -> CachedFrames | None:
    if not entry.exists():
        return None
    counts = request.counts()
    rows, size = int(counts.sum()), request.size
    shape = (rows, 3, size, size)
    frames = np.memmap(entry / "frames.u8", np.uint8, "r", shape=shape) if rows else np.zeros(shape, np.uint8)
    motion = np.fromfile(entry / "motion.f4", np.float32)
    os.utime(entry)  # the time of last use
    first = np.where(counts > 0, np.cumsum(counts) - counts, -1)
    plain = frames.view(np.ndarray)  # slices of np.memmap itself cost more than the copy they serve
    return CachedFrames(plain, motion, first, counts)


def _build(part: Path, request: Request) -> None:
    part.mkdir()
    counts = request.counts()
    rows, size = int(counts.sum()), request.size
    facts = {"store": str(request.store.path), "camera": request.camera, "size": size, "hz": request.hz}
    (part / "entry.json").write_text(json.dumps(facts))
    motion_N = np.zeros(rows, np.float32)
    path = part / "frames.u8"
    with path.open("wb") as file:
        if rows and hasattr(
            os, "posix_fallocate"
        ):  # a full disk shows now, not in the middle of a memory map
            os.posix_fallocate(file.fileno(), 0, rows * 3 * size * size)
        file.truncate(rows * 3 * size * size)
    if rows:
        frames_NCHW = np.memmap(path, np.uint8, "r+", shape=(rows, 3, size, size))
        first = np.cumsum(counts) - counts
        what = f"decode {request.camera} at {size} px"

        def decode(index: int) -> int:
            span = slice(int(first[index]), int(first[index] + counts[index]))
            motion_N[span] = _decode_episode(request, index, frames_NCHW[span])
            return int(counts[index])

        wanted = [int(i) for i in np.flatnonzero(counts)]
        with progress(what, rows, unit="frames") as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in pool.map(decode, wanted):
                bar.advance(done)
        frames_NCHW.flush()
    motion_N.tofile(part / "motion.f4")


def _decode_episode(request: Request, index: int, out_NCHW: np.ndarray) -> np.ndarray:
    """Decodes one episode into `out_NCHW`, and returns the motion of each frame."""
    store = request.store
    path, start = store.video_file(index, request.camera)
    times = np.arange(len(out_NCHW)) / request.hz
    reduce = Reducer(request.size)
    last, previous = None, None
    motion = np.zeros(len(out_NCHW), np.float32)
    try:
        for i, frame in enumerate(decode_at(path, times, start=start, tolerance=0.501 / store.fps)):
            if frame is last:
                out_NCHW[i] = out_NCHW[i - 1]
                continue
            image = reduce(frame)
            out_NCHW[i] = image.transpose(2, 0, 1)
            if previous is not None:
                motion[i] = block_change(previous, image)
            last, previous = frame, image
    except VideoError as error:
        raise UserError(f"{error}: see `lawm inspect {store.path}`") from error
    return motion


def block_change(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    """The largest mean change of any 8x8 block, in grey levels: compression noise averages out."""
    change = np.abs(a_HWC.astype(np.int16) - b_HWC).sum(-1)
    height, width = (n - n % BLOCK for n in change.shape)
    if not height or not width:
        return float(change.mean() / 3)
    blocks = change[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return float(blocks.mean(axis=(1, 3)).max() / 3)


@contextlib.contextmanager
def _lock(root: Path, name: str, *, shared: bool, wait: bool = True) -> Iterator[bool]:
    """An advisory lock on one entry; yields whether it was obtained. The kernel frees a dead process's."""
    handle = os.open(root / "locks" / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            yield True
        except BlockingIOError:
            yield False
    finally:
        os.close(handle)


def _make_room(root: Path, need: int, keep: set[str]) -> None:
    """Removes what was used longest ago until `need` more bytes fit the limit and the disk."""
    limit = cache_limit()
    if need > limit:
        raise UserError(
            f"expected the cache limit to hold {need / 1e9:.2f} GB of decoded frames, found "
            f"{limit / 1e9:.2f} GB: raise LAWM_CACHE_GB or choose a smaller image size"
        )
    with _lock(root, "room", shared=False):  # one at a time: both would remove the same
        _remove_oldest(root, need, limit, keep)


def _remove_oldest(root: Path, need: int, limit: int, keep: set[str]) -> None:
    entries = sorted((p for p in root.iterdir() if p.is_dir() and p.name != "locks"), key=_last_use)
    sizes = {p: _size(p) for p in entries}
    disk_free = shutil.disk_usage(root).free - RESERVE_BYTES
    removable = [p for p in entries if p.name.partition(".part-")[0] not in keep]
    if need > disk_free + sum(sizes[p] for p in removable):
        raise UserError(
            f"expected {need} bytes free for decoded frames in {root}, found {max(disk_free, 0)}: free some, "
            "point LAWM_CACHE at another disk, or choose a smaller image size"
        )
    used = sum(sizes.values())
    for path in removable:
        if used + need <= limit and need <= disk_free:
            return
        name = path.name.partition(".part-")[0]
        with _lock(root, name, shared=False, wait=False) as obtained:
            if obtained:  # else somebody is building or opening it
                with contextlib.suppress(FileNotFoundError):  # its builder has just given it its name
                    shutil.rmtree(path)  # whoever has it mapped keeps reading it
                used -= sizes[path]
                disk_free += sizes[path]
    if need > disk_free:
        raise UserError(f"expected {need} bytes free for decoded frames in {root}, found {max(disk_free, 0)}")


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # renamed, as below
        return time.time()


def _size(path: Path) -> int:
    try:
        return sum(f.stat().st_size for f in path.glob("*"))
    except FileNotFoundError:
        return 0
