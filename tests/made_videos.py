"""Small videos and stores that tests make for themselves: each frame says which one it is."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from lawm_policy.data.store import StoreWriter


def level(step: int) -> int:
    """The grey level that says `step`: far enough from its neighbours to survive any codec."""
    return 20 + (step * 8) % 208


def numbered_frame(step: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Grey level says the step; the upper left corner is bright red, so that turns show."""
    frame = np.full((height, width, 3), level(step), np.uint8)
    frame[: height // 4, : width // 4] = (250, 10, 10)
    return frame


def read_step(image_HWC: np.ndarray, near: int) -> int:
    """The step (within 26 of `near`) that the picture's middle says."""
    height, width = image_HWC.shape[:2]
    middle = image_HWC[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8].mean()
    steps = range(max(0, near - 13), near + 13)
    return min(steps, key=lambda step: abs(level(step) - middle))


def make_video(
    path: Path,
    times: Iterable[float],
    *,
    codec: str = "libx264",
    height: int = 32,
    width: int = 32,
    rotation: int = 0,
    rate: int = 30,
    pix_fmt: str = "yuv420p",
) -> Path:
    """A video whose k-th frame is `numbered_frame(k)`, shown at `times[k]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        stream.bit_rate = 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        clock = Fraction(1, rate if path.suffix == ".avi" else 1000)
        stream.codec_context.time_base = clock
        for step, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_frame(step, height, width), format="rgb24")
            frame.pts, frame.time_base = round(time / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def moving_square(length: int, size: int, seed: int) -> np.ndarray:
    """(T, size, size, 3): a coloured square that wanders over a dark ground."""
    rng = np.random.default_rng(seed)
    frames = np.full((length, size, size, 3), 30, np.uint8)
    side, colour = size // 4, rng.integers(80, 255, 3)
    y, x = rng.uniform(0, size - side, 2)
    velocity = rng.uniform(1, 3, 2) * rng.choice([-1, 1], 2)
    for t in range(length):
        frames[t, int(y) : int(y) + side, int(x) : int(x) + side] = colour
        y, x = np.array([y, x]) + velocity
        if not 0 <= y <= size - side:
            velocity[0] *= -1
        if not 0 <= x <= size - side:
            velocity[1] *= -1
        y, x = np.clip([y, x], 0, size - side)
    return frames


def make_store(
    path: Path,
    *,
    episodes: int = 6,
    length: int = 40,
    size: int = 32,
    fps: int = 20,
    cameras: tuple[str, ...] = ("front", "wrist"),
    labelled: bool = True,
    tasks: int = 2,
    embodiment: str = "arm6",
    captions: bool = True,
    split: str | None = None,
) -> Path:
    """A store whose frames, states and actions all say their step: state[t] = (t, e / 10, 0), action[t] =
    (t + 0.5, -1 or 1)."""
    names = {"state_names": ["x", "y", "g"], "action_names": ["x", "g"]} if labelled else {}
    robot = {"embodiment": embodiment, "relative_to": [0, None]} if labelled else None
    with StoreWriter(
        path, fps=fps, cameras=dict.fromkeys(cameras, (size, size)), robot=robot, **names
    ) as writer:
        for e in range(episodes):
            steps = np.arange(length, dtype=np.float32)
            frames = np.stack([numbered_frame(t, size, size) for t in range(length)])
            writer.add_episode(
                dict.fromkeys(cameras, frames),
                state=np.stack([steps, 0 * steps + 0.1 * e, 0 * steps], axis=1) if labelled else None,
                actions=np.stack([steps + 0.5, np.sign(steps - length / 2)], axis=1) if labelled else None,
                text=f"do task {e % tasks}" if captions else "",
                task=f"task{e % tasks}",
                embodiment=embodiment,
                split=split,
                source=f"{e}",
            )
    return path
