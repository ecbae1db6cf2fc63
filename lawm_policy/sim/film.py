"""Films of episodes: rendered beside the policy's own images, at their own size, changing nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np


class Film:
    """Collects frames of all cameras, side by side. `watch` suits `playing.play`.

    The environment gives `data` (MuJoCo's) and a `camera_rig`; rendering only reads.
    """

    def __init__(self, env: Any, cameras: tuple[str, ...], pixels: int, every: int, hz: int) -> None:
        self.env, self.cameras, self.pixels, self.every, self.hz = env.unwrapped, cameras, pixels, every, hz
        self.frames_THWC: list[np.ndarray] = []
        self._rig: Any = None

    def watch(self, step: int) -> None:
        if step % self.every == 0:
            self._take()

    def end(self, step: int) -> None:
        """The last frame is how it ended."""
        if step % self.every:
            self._take()

    def _take(self) -> None:
        if self._rig is None:  # now, not earlier: a reset may build a new model
            self._rig = self.env.camera_rig(self.pixels)
        views = [np.array(self._rig.render(self.env.data, camera)) for camera in self.cameras]
        self.frames_THWC.append(np.concatenate(views, axis=1))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{os.getpid()}-{path.name}")
        write_mp4(aside, self.frames_THWC, self.hz)
        os.replace(aside, path)

    def close(self) -> None:
        if self._rig is not None:
            self._rig.close()
            self._rig = None


def write_mp4(path: Path, frames_THWC: list[np.ndarray], hz: int) -> None:
    """H.264 that browsers and phones play, its index in front."""
    import av

    height, width, _ = frames_THWC[0].shape
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=hz, options={"crf": "26", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC))))
        container.mux(stream.encode())
