"""Reading and writing video files: PyAV and nothing else.

Stored video is H.264, GOP 2, no B-frames, yuv420p, one constant rate: any frame is one packet away
from a key frame, and packets of two episodes can be joined without encoding again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

GOP = 2
CRF = 18
TICKS = 1000  # of the container's clock in one frame: no timestamp is ever rounded


class VideoError(ValueError):
    """A video file that cannot be read to the end that was asked for."""


class VideoWriter:
    """Writes one constant-rate H.264 file; frames are (H, W, 3) uint8 or ready-made yuv420p."""

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"expected even frame sizes, found {height}x{width}: resize to even numbers")
        self.frames = 0
        self.fps = fps
        self._size = (height, width)
        self._container = av.open(
            str(path), "w", format="mp4", options={"video_track_timescale": str(fps * TICKS)}
        )
        # One thread: episodes are encoded side by side, and the bytes do not depend on the machine.
        # Equal frames must come out equal: what still scenes are found by is that nothing changes.
        steady = "mbtree=0:aq-mode=0"
        options = {"crf": str(CRF), "preset": "veryfast", "g": str(GOP), "bf": "0", "sc_threshold": "0"}
        options["x264-params"] = steady
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.thread_count = 1

    def add(self, frame: np.ndarray | av.VideoFrame) -> None:
        if isinstance(frame, np.ndarray):
            if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
                raise ValueError(
                    f"expected frames of shape {(*self._size, 3)} uint8, found {frame.shape} {frame.dtype}"
                )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        frame.pts = self.frames
        frame.time_base = Fraction(1, self.fps)
        frame.pict_type = 0  # the encoder decides: a decoded source frame carries its own type
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def write_video(path: Path, frames_THWC: np.ndarray, fps: int) -> None:
    writer = VideoWriter(path, fps, *frames_THWC.shape[1:3])
    for frame in frames_THWC:
        writer.add(frame)
    writer.close()


def join_videos(parts: list[Path], out: Path, fps: int) -> list[tuple[float, float]]:
    """Concatenates files of one size and rate by copying packets; says where each begins and ends."""
    spans: list[tuple[float, float]] = []
    frames = 0
    clock = fps * TICKS
    with av.open(str(out), "w", format="mp4", options={"video_track_timescale": str(clock)}) as target:
        stream: Any = None
        for part in parts:
            with av.open(str(part)) as source:
                video = source.streams.video[0]
                if stream is None:
                    stream = target.add_stream_from_template(video)
                first = frames
                for packet in source.demux(video):
                    if packet.pts is None:  # the flushing packet
                        continue
                    packet.pts = packet.dts = frames * TICKS
                    packet.duration = TICKS
                    packet.time_base = Fraction(1, clock)
                    packet.stream = stream
                    target.mux(packet)
                    frames += 1
            spans.append((first / fps, frames / fps))
    return spans


def same_encoding(a: Path, b: Path) -> bool:
    """Whether the packets of `b` can follow those of `a` in one file."""
    headers = []
    for path in (a, b):
        with av.open(str(path)) as container:
            headers.append(bytes(container.streams.video[0].codec_context.extradata or b""))
    return headers[0] == headers[1]


@dataclass(frozen=True)
class Packets:
    """What a file says about itself without decoding."""

    times: np.ndarray  # seconds, sorted, from the container's own clock
    height: int
    width: int
    codec: str
    rate: float  # frames a second, on average
    promised: float  # seconds the header promises; 0 when it says nothing
    aspect: float  # of one pixel: width over height


def scan_packets(path: Path) -> Packets:
    """Demultiplexes the first video stream: frame times and sizes, at disk speed."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        base = float(stream.time_base or 0)
        times: list[float] = []
        try:
            for packet in container.demux(stream):
                moment = packet.pts if packet.pts is not None else packet.dts
                if packet.size and moment is not None:
                    times.append(float(moment * base))
        except av.FFmpegError as error:
            raise VideoError(f"{path.name} is damaged after {len(times)} frames: {why(error)}") from error
        if not times:
            raise VideoError("no video frames")
        promised = float(stream.duration * base) if stream.duration else (container.duration or 0) / 1e6
        context = stream.codec_context
        ordered = np.sort(np.asarray(times))
        span = ordered[-1] - ordered[0]
        rate = (len(ordered) - 1) / span if span > 0 else float(stream.average_rate or 1)
        return Packets(
            times=ordered,
            height=context.height,
            width=context.width,
            codec=context.name,
            rate=rate,
            promised=promised,
            aspect=float(stream.sample_aspect_ratio or 1),
        )


def count_frames(path: Path) -> int:
    return len(scan_packets(path).times)


def decode_at(
    path: Path, times: np.ndarray, *, tolerance: float, start: float = 0.0, seek: bool = True
) -> Iterator[av.VideoFrame]:
    """Yields, for each of the ascending `times` (seconds after `start`), the nearest decoded frame.

    Consecutive equal frames are the same object. Raises VideoError where the nearest frame is
    further away than `tolerance`, or is one that the decoder had to make up.
    """
    wanted = np.asarray(times, dtype=np.float64) + start
    position = 0
    before: av.VideoFrame | None = None
    before_time = -np.inf
    for frame, now in _decoded(path, wanted[0] - tolerance if seek else None):
        while position < len(wanted) and wanted[position] <= now:
            early = before is not None and wanted[position] - before_time <= now - wanted[position]
            nearest, when = (before, before_time) if early else (frame, now)
            yield _near(nearest, wanted[position], when, tolerance, path)
            position += 1
        if position == len(wanted):
            return
        before, before_time = frame, now
    while position < len(wanted):  # the last frame stands for what little follows it
        yield _near(before, wanted[position], before_time, tolerance, path)
        position += 1


def _decoded(path: Path, seek: float | None) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames with their times in seconds, in order, from the key frame before `seek` on."""
    now = -np.inf
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        base = float(stream.time_base or 0)
        if seek is not None and seek > 0:
            container.seek(int(seek / base), stream=stream, backward=True)
        try:
            for frame in container.decode(stream):
                ticks = frame.pts if frame.pts is not None else frame.dts
                if ticks is not None and ticks * base > now:
                    now = float(ticks * base)
                    yield frame, now
        except av.FFmpegError as error:
            raise VideoError(
                f"{path.name} cannot be decoded after {max(now, 0):.2f} s: {why(error)}"
            ) from error


def _near(
    frame: av.VideoFrame | None, wanted: float, found: float, tolerance: float, path: Path
) -> av.VideoFrame:
    if frame is None or abs(wanted - found) > tolerance:
        raise VideoError(
            f"expected a frame of {path.name} at {wanted:.3f} s, nearest is at {found:.3f} s "
            f"(tolerance {tolerance:.3f} s)"
        )
    if frame.is_corrupt:
        raise VideoError(f"{path.name} is damaged at {found:.2f} s")
    return frame


class Reducer:
    """Frames as (S, S, 3) uint8: the centre square, reduced by area averaging; whole frames if size is None.

    One for each file that is read: the conversion's tables are made once, not once a frame.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._to_rgb, self._to_size = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        size = self._size
        rgb = self._to_rgb.reformat(frame, format="rgb24")
        side = min(rgb.height, rgb.width)
        if size is None or side == size == max(rgb.height, rgb.width):
            return _array(rgb)
        top, left = (rgb.height - side) // 2, (rgb.width - side) // 2
        square = _array(rgb)[top : top + side, left : left + side]
        if side % size == 0:  # whole blocks: their exact mean
            step = side // size
            total = np.full((size, size, 3), step * step // 2, np.uint32)
            for offset in range(step * step):
                total += square[offset // step :: step, offset % step :: step]
            return (total // (step * step)).astype(np.uint8)
        whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(square), format="rgb24")
        return _array(self._to_size.reformat(whole, width=size, height=size, interpolation="AREA"))


def _array(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    return np.asarray(frame.to_ndarray(), dtype=np.uint8)


def read_frames(
    path: Path, times: np.ndarray, *, tolerance: float, start: float = 0.0, size: int | None = None
) -> np.ndarray:
    """(N, H, W, 3) uint8 at `times`; see `decode_at`."""
    out: list[np.ndarray] = []
    reduce = Reducer(size)
    last: av.VideoFrame | None = None
    for frame in decode_at(path, times, tolerance=tolerance, start=start):
        out.append(out[-1] if frame is last else reduce(frame))
        last = frame
    return np.stack(out)


def why(error: Exception) -> str:
    """The library's own words, without its error numbers and paths."""
    text = getattr(error, "strerror", None) or str(error)
    log = getattr(error, "log", None)
    return f"{text} ({log[2].strip()})" if log else text


def _opened(path: Path) -> Any:
    """An input container with at least one video stream, or VideoError."""
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path.name} cannot be opened: {why(error)}") from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path.name} has no video stream")
    stream: Any = container.streams.video[0]
    if stream.codec_context is None:  # PyAV's types do not say that this happens
        container.close()
        raise VideoError(f"{path.name} is in a format without a decoder here")
    return container
