"""Ordinary video files into staged episodes: finding them, resampling, squaring, encoding again.

Whatever their shape, rate and rotation, videos become the centre square of the picture as it is meant
to be seen, at one size and one constant rate: the frame nearest in time to each tick.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np

from lawm_policy.data.layout import REQUEST
from lawm_policy.data.store_writer import EpisodeShape, end_if_full, image_stats, seal
from lawm_policy.data.video import Packets, VideoError, VideoWriter, decode_at, scan_packets, why
from lawm_policy.types import UserError

SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv")
CAPTIONS = "captions.jsonl"
CLOCK_ERROR = 0.002  # seconds: containers round their timestamps to milliseconds


@dataclass(frozen=True)
class SourceEpisode:
    """Files that show one episode, one a camera."""

    source: str  # path of the first, relative to what is imported: the episode's identity
    files: dict[str, Path]
    text: str
    embodiment: str


def find_videos(root: Path, camera: str, views: Sequence[str], exclude: Path) -> list[SourceEpisode]:
    """Groups NAME.front.mp4 and NAME.wrist.mp4 into one episode; other files are seen by `camera` alone."""
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() not in SUFFIXES or hidden or not path.is_file():
            continue
        if exclude.resolve() in path.resolve().parents:
            continue
        relative = path.relative_to(root)
        name, _, view = relative.stem.rpartition(".")
        if not name or view not in views:
            name, view = relative.stem, camera
        key = str(relative.parent / name)
        if view in groups.setdefault(key, {}):  # a.mp4 beside a.avi: two videos, not two views
            key = str(relative)
        groups.setdefault(key, {})[view] = path
    captions = _Captions(root)
    episodes = []
    for key, files in groups.items():
        first = next(iter(files.values()))
        episodes.append(
            SourceEpisode(
                source=str(first.relative_to(root)),
                files=files,
                text=captions.of(key, list(files.values())),
                embodiment=_embodiment(root, first),
            )
        )
    return episodes


def _embodiment(root: Path, file: Path) -> str:
    """The topmost folder; of several collections imported at once, the topmost in each."""
    folders = file.relative_to(root).parts[:-1]
    for depth, folder in enumerate(folders):
        if root.joinpath(*folders[:depth], REQUEST).is_file():
            return folder
    return folders[0] if folders else root.resolve().name


class _Captions:
    """Captions from NAME.txt, or from the nearest captions.jsonl above with lines {"file", "text"}."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tables: dict[Path, dict[str, str]] = {}

    def of(self, key: str, files: list[Path]) -> str:
        name = files[0].parent / Path(key).name
        for path in [name.with_name(f"{name.name}.txt"), *(file.with_suffix(".txt") for file in files)]:
            if path.is_file():
                return " ".join(_text(path).split())
        folder = files[0].parent
        while True:
            table = self._table(folder)
            for file in files:
                relative = str(file.relative_to(folder))
                for candidate in (
                    relative,
                    str(Path(relative).with_suffix("")),
                    str((self._root / key).relative_to(folder)),
                ):
                    if candidate in table:
                        return table[candidate]
            if folder == self._root:
                return ""
            folder = folder.parent

    def _table(self, folder: Path) -> dict[str, str]:
        if folder not in self._tables:
            path = folder / CAPTIONS
            table = {}
            if path.is_file():
                for number, line in enumerate(_text(path).splitlines(), 1):
                    if not line.strip():
                        continue
                    try:
                        entry = json.loads(line)
                        table[str(entry["file"])] = " ".join(str(entry["text"]).split())
                    except (json.JSONDecodeError, KeyError, TypeError):
                        raise UserError(
                            f'expected {{"file": "...", "text": "..."}} in line {number} of {path}, '
                            f"found {line[:60]!r}"
                        ) from None
            self._tables[folder] = table
        return self._tables[folder]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"expected UTF-8 text in {path}, found other bytes: convert it") from None


def stage_videos(folder: Path, episode: SourceEpisode, shape: EpisodeShape) -> tuple[int, str | None]:
    """Converts one episode into its staging folder: (frames, None), or (0, why it cannot be read)."""
    try:
        scans = {}
        for camera, path in episode.files.items():
            scan = scans[camera] = scan_packets(path)
            seconds = float(scan.times[-1] - scan.times[0])
            if scan.promised - seconds > max(1.0, 0.2 * scan.promised):
                raise VideoError(f"{path.name} is cut off: {seconds:.1f} of {scan.promised:.1f} s are there")
        length = min(int((s.times[-1] - s.times[0] + CLOCK_ERROR) * shape.fps) + 1 for s in scans.values())
        if length < 2:
            raise VideoError(f"{next(iter(episode.files.values())).name} is shorter than two frames")
        stats = {
            camera: _convert(
                path, folder / f"{camera}.mp4", scans[camera], length, shape.cameras[camera], shape.fps
            )
            for camera, path in episode.files.items()
        }
        facts: dict[str, Any] = {"text": episode.text, "task": "", "embodiment": episode.embodiment}
        facts |= {"split": None, "source": episode.source}
        seal(folder, shape, length=length, facts=facts, stats=stats)
        return length, None
    except (VideoError, av.FFmpegError, OSError, ValueError) as error:
        end_if_full(error, folder)
        shutil.rmtree(folder)
        text = " ".join((str(error) if isinstance(error, VideoError) else why(error)).split())
        names = "|".join(re.escape(path.name) for path in episode.files.values())
        return 0, re.sub(f"^({names}) ", "", text)


def _convert(
    source: Path, target: Path, scan: Packets, length: int, size: tuple[int, int], fps: int
) -> dict[str, Any]:
    """Writes `length` frames at `fps`, and returns the sums of a sample of them."""
    gap = float(np.diff(scan.times).max()) if len(scan.times) > 1 else 0.0
    ticks = np.arange(length) / fps
    writer = VideoWriter(target, fps, *size)
    square = _Square(*size, scan.aspect)
    last: av.VideoFrame | None = None
    picture: av.VideoFrame | None = None
    sample = []
    # A variable rate may leave a frame standing for long; never longer than the file itself says.
    nearest = decode_at(source, ticks, start=float(scan.times[0]), tolerance=gap / 2 + 0.51 / fps, seek=False)
    for i, frame in enumerate(nearest):
        if frame is not last or picture is None:
            picture, last = square(frame), frame
        writer.add(picture)
        if i % max(1, length // 8) == 0:
            sample.append(picture.to_ndarray(format="rgb24"))
    writer.close()
    return image_stats(np.stack(sample))


class _Square:
    """Turns decoded frames upright, crops the centre square and scales it, without leaving YUV."""

    def __init__(self, height: int, width: int, aspect: float) -> None:
        self._size = (height, width)
        self._aspect = aspect  # of one pixel: width over height
        self._made_for: tuple[Any, ...] = ()
        self._graph: Any = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        kind = (frame.width, frame.height, frame.format.name, frame.rotation)
        if kind != self._made_for:  # some files change size on the way
            self._graph = self._build(frame)
            self._made_for = kind
        frame.pts = None
        self._graph.push(frame)
        return self._graph.pull()

    def _build(self, frame: av.VideoFrame) -> Any:
        height, width = self._size
        side = min(frame.height, frame.width * self._aspect)
        crop_width, crop_height = max(1, round(side / self._aspect)), max(1, round(side))
        turn = {90: "transpose=cclock", 270: "transpose=clock", 180: "hflip,vflip"}.get(frame.rotation % 360)
        flags = "area" if side >= height else "bicubic"
        steps = [
            f"crop={crop_width}:{crop_height}",
            f"scale={width}:{height}:flags={flags}:out_color_matrix=bt601:out_range=tv",
            *([turn] if turn else []),
            "format=yuv420p",
        ]
        graph = av.filter.Graph()
        nodes = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
        ]
        for step in ",".join(steps).split(","):
            name, _, arguments = step.partition("=")
            nodes.append(graph.add(name, arguments or None))
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        return graph
