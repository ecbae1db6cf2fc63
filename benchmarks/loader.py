"""How much faster than decoding at random are the clips?

Random clips (7 frames at 5 Hz, 2 views) from the decoded cache, beside PyAV's random access on the same
files in the same run: the fastest of three ways to use it. Memory is read over 10 000 clips.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from harness import Target, answer, interval_of_median, write_result

from lawm_policy.data.clips import ClipConfig, ClipDataset
from lawm_policy.data.store import EpisodeStore, StoreWriter

VIEWS = ("front", "wrist")
LENGTH, HZ, FPS = 7, 5.0, 20
BATCH = 32


@dataclass(frozen=True)
class Args:
    """Clips a second, and memory."""

    out: Path
    """where result.json and page.md go"""
    quick: bool = False
    """fewer episodes and rounds, the same code"""
    episodes: int = 300
    """in the store"""
    rounds: int = 9
    """of each way, in turn"""


def main(args: Args) -> None:
    episodes, rounds, clips = (40, 3, 2_000) if args.quick else (args.episodes, args.rounds, 10_000)
    began = time.monotonic()
    rows, targets = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in (64, 128):
            store_path = Path(folder) / f"store{size}"
            make_store(store_path, episodes, size)
            found = measure(store_path, Path(folder) / "cache", size, rounds, clips)
            rows += found["rows"]
            ratios = found["ratios"]
            interval = interval_of_median(ratios) if len(ratios) >= 6 else (min(ratios), max(ratios))
            targets.append(
                Target(f"clips at {size} px, times PyAV", ">= 20", float(np.median(ratios)), interval)
            )
            targets.append(Target(f"growth over {clips} clips at {size} px, MB", "<= 5", found["growth"]))
            shutil.rmtree(store_path)
    write_result(
        args.out,
        question="How much faster than decoding at random are the clips?",
        seconds=time.monotonic() - began,
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=(
            f"{episodes} episodes of 10 s, {FPS} Hz, 2 views, H.264 in joined files; one process. PyAV "
            "keeps its files open and reads 7 frames a view; its fastest way is the yardstick, round by "
            "round. Both read from the system's page cache. Growth is of private memory (RssAnon); mapped "
            "pages belong to the system."
        ),
    )


def make_store(path: Path, episodes: int, size: int) -> None:
    """Squares that wander over a mottled ground: as hard to decode as a filmed table."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (size // 8, size // 8, 3), dtype=np.uint8)
    ground = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    with StoreWriter(path, fps=FPS, cameras=dict.fromkeys(VIEWS, (size, size))) as writer:
        for _ in range(episodes):
            frames = np.stack([ground] * (10 * FPS))
            for _ in range(4):
                side = size // 6
                start, speed = rng.uniform(0, size - side, 2), rng.uniform(-0.02, 0.02, 2) * size
                colour = rng.integers(0, 255, 3)
                for t in range(len(frames)):
                    y, x = np.abs((start + speed * t) % (2 * (size - side)) - (size - side)).astype(int)
                    frames[t, y : y + side, x : x + side] = colour
            writer.add_episode({"front": frames, "wrist": frames[:, ::-1]}, split="train")


def measure(path: Path, cache: Path, size: int, rounds: int, clips: int) -> dict:
    started = time.monotonic()
    data = ClipDataset(path, ClipConfig(length=LENGTH, hz=HZ, size=size, cameras=VIEWS), cache_dir=cache)
    built = time.monotonic() - started
    store = EpisodeStore.open(path)

    def cached(step: int, n: int) -> None:
        for i in range(n // BATCH):
            data.batch(step + i, BATCH, 0)

    ways: dict[str, Callable[[int, int], None]] = {"cache, with augmentation": cached}
    pyav = RandomAccess(store)
    ways |= {f"PyAV, {name}": getattr(pyav, name) for name in ("sequential", "seeking", "reopening")}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            n = 40 * BATCH if name.startswith("cache") else 48
            started = time.perf_counter()
            way(round_ * 1000, n)
            if round_:  # the first warms up
                rates[name].append(n / (time.perf_counter() - started))
    mine = rates["cache, with augmentation"]
    best = [max(rates[name][r] for name in ways if name != "cache, with augmentation") for r in range(rounds)]
    private: list[float] = []
    total: list[float] = []
    for step in range(clips // BATCH + 1):
        data.batch(10_000 + step, BATCH, 0)
        if step % max(1, clips // BATCH // 10) == 0:
            private.append(memory("RssAnon"))
            total.append(memory("VmRSS"))
    rows = [
        {
            "size": size,
            "way": name,
            "clips/s": float(np.median(values)),
            "frames/s": float(np.median(values)) * LENGTH * len(VIEWS),
            "ms a clip": 1e3 / float(np.median(values)),
        }
        for name, values in rates.items()
    ]
    frames = sum(e.length for e in store.episodes) // 2 * len(VIEWS)
    rows[0] |= {
        "cache built at frames/s": frames / built,
        "private MB": private[-1],
        "total RSS MB": total[-1],
    }
    return {
        "rows": rows,
        "ratios": [a / b for a, b in zip(mine, best, strict=True)],
        "growth": private[-1] - private[1],  # the first batch allocates what all others use again
    }


class RandomAccess:
    """Random clips straight from the video files."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store = store
        paths = {store.video_file(e.index, camera)[0] for e in store.episodes for camera in VIEWS}
        self._open = {path: opened(path) for path in paths}

    def _clips(self, step: int, n: int) -> list[tuple[Path, float]]:
        rng = np.random.default_rng(step)
        found = []
        for _ in range(n):
            episode = self._store.episodes[rng.integers(len(self._store.episodes))]
            first = float(rng.integers(episode.length - int((LENGTH - 1) * FPS / HZ)) / FPS)
            for camera in VIEWS:
                path, start = self._store.video_file(episode.index, camera)
                found.append((path, start + first))
        return found

    def sequential(self, step: int, n: int) -> None:
        """One seek, then every frame in between is decoded; only the wanted ones are converted."""
        for path, start in self._clips(step, n):
            self._read(self._open[path], start)

    def seeking(self, step: int, n: int) -> None:
        """One seek for each of the frames."""
        for path, start in self._clips(step, n):
            container = self._open[path]
            for k in range(LENGTH):
                self._read(container, start + k / HZ, 1)

    def reopening(self, step: int, n: int) -> None:
        """As sequential, with the file opened for each clip: what keeps memory flat in plain loaders."""
        for path, start in self._clips(step, n):
            with opened(path) as container:
                self._read(container, start)

    def _read(self, container: av.container.InputContainer, start: float, length: int = LENGTH) -> None:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        base = float(stream.time_base)
        container.seek(int(start / base), stream=stream, backward=True)
        wanted = [start + k / HZ - 0.5 / FPS for k in range(length)]
        images: list[np.ndarray] = []
        for frame in container.decode(stream):
            assert frame.pts is not None
            if frame.pts * base >= wanted[len(images)]:
                images.append(frame.to_ndarray(format="rgb24"))
                if len(images) == length:
                    break
        np.stack(images)


def opened(path: Path) -> av.container.InputContainer:
    container = av.open(str(path))
    container.streams.video[0].thread_type = "NONE"  # no faster with threads on frames this small
    return container


def memory(field: str) -> float:
    """Megabytes of this process, from the kernel."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


if __name__ == "__main__":
    answer(main, Args)
