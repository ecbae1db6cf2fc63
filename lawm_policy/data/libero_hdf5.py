"""LIBERO's official demonstrations: HDF5, one file a task.

Two things about them are easily missed. What they call the observation of step t was taken *after* action t
(`states[t]`, the simulator's own state, before it), so a policy that is cloned row by row learns to command
what it already sees done; here each command stands beside what was seen before it. And their images are
upside down, as robosuite renders them.

Files come from anywhere: nothing outside of them is read (no links, no external or virtual storage), and
sizes are looked at before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np

from lawm_policy.data.store_writer import EpisodeShape, stage
from lawm_policy.data.video import Reducer
from lawm_policy.sim.libero_tasks import in_words, task_titled
from lawm_policy.types import UserError

SUFFIXES = (".hdf5", ".h5")
CAMERAS = {"front": "agentview_rgb", "wrist": "eye_in_hand_rgb"}
# What says nothing new (the hand again, whether it is over), or where time stands; there may be none.
BESIDE = ("states", "robot_states", "rewards", "dones")
LONGEST, WIDEST, LARGEST = 20_000, 4096, 2048  # rows, numbers a row, pixels: far beyond any of LIBERO's
MOST_BYTES = 2**30  # of one dataset, however little of it is stored
STILL = 1e-3  # of a command's range
# h5py's, for what is cut or made up
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)


class Unusable(Exception):
    """Why a file or a demonstration is skipped, in a few words."""


@dataclass(frozen=True)
class Hdf5Demo:
    """One demonstration, not read yet."""

    source: str  # FILE:demo_3:CONTENT, its identity
    file: Path
    name: str
    text: str
    task: str
    upright: bool  # written with robosuite's other image convention


def find_files(paths: Sequence[Path], exclude: Path) -> list[tuple[Path, str]]:
    """Files and the names they go by: what is given, and all below what is a folder."""
    found: dict[Path, str] = {}
    exclude = exclude.resolve()
    for path in paths:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found |= {p: str(p.relative_to(path)) for p in below if exclude not in p.resolve().parents}
        elif path.is_file():
            found[path] = path.name
        else:
            raise UserError(f"expected HDF5 files or a folder of them, found nothing at {path}")
    if not found:
        raise UserError(f"expected HDF5 files in {', '.join(map(str, paths))}, found none")
    if len(set(found.values())) < len(found):
        raise UserError("expected files with names of their own, found one name twice: give their folder")
    return list(found.items())


def find_demos(file: Path, name: str) -> list[Hdf5Demo]:
    """The demonstrations of one file, in their order; raises Unusable."""
    try:
        with h5py.File(file, "r") as handle:
            data = _group(handle, "data")
            demos = sorted((n for n in data if re.fullmatch(r"demo_\d+", n)), key=lambda n: int(n[5:]))
            title = re.sub(r"_demo$", "", file.stem)
            task = task_titled(title)
            # The file has the problem's own sentence; what is said in the simulator is the title.
            text = in_words(title) if task else _instruction(data.attrs.get("problem_info"), title)
            sources = [_source(data, demo, file, name) for demo in demos]
            convention = data.attrs.get("macros_image_convention")
            upright = isinstance(convention, str) and convention == "opencv"
    except DAMAGE as error:
        raise Unusable(f"not a readable HDF5 file ({_line(error)})") from None
    if not demos:
        raise Unusable("holds no demonstrations (data/demo_0 and so on)")
    return [
        Hdf5Demo(source, file, demo, text, task or title, upright)
        for source, demo in zip(sources, demos, strict=True)
    ]


def _source(data: h5py.Group, demo: str, file: Path, name: str) -> str:
    """The same whichever folder above was named; other commands in a file of the same name are another."""
    try:
        commands = _numbers(_group(data, demo), "actions", None)
    except (Unusable, *DAMAGE):  # staging says why
        return f"{name}:{demo}"
    return f"{file.name}:{demo}:{hashlib.sha256(commands.tobytes()).hexdigest()[:8]}"


def stage_demo(folder: Path, demo: Hdf5Demo, shape: EpisodeShape, rotate: bool) -> tuple[int, str | None]:
    """Converts one demonstration into its staging folder: (frames, None), or (0, why it cannot be read)."""
    try:
        with h5py.File(demo.file, "r") as handle:
            images, state_TP, action_TA = _read(_group(_group(handle, "data"), demo.name))
    except Unusable as error:
        return _skipped(folder, str(error))
    except DAMAGE as error:
        return _skipped(folder, f"not readable ({_line(error)})")
    reduce = Reducer(next(iter(shape.cameras.values()))[0])
    for camera, frames_THWC in images.items():
        frames_THWC = frames_THWC[:, ::-1] if demo.upright else frames_THWC
        frames_THWC = frames_THWC[:, ::-1, ::-1] if rotate else frames_THWC
        images[camera] = np.stack([reduce(_picture(frame_HWC)) for frame_HWC in frames_THWC])
    facts = {
        "text": demo.text,
        "task": demo.task,
        "embodiment": "panda",
        "split": None,
        "source": demo.source,
    }
    return stage(folder, shape, images, facts, state_TP, action_TA), None


def _read(demo: h5py.Group) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Images by camera, state (T, 15), commands (T, 7): a row is what was seen, then what was commanded."""
    seen = _group(demo, "obs")
    action_TA = _numbers(demo, "actions", 7)
    if "ee_pos" in seen and "ee_ori" in seen:
        hand_T6 = np.concatenate([_numbers(seen, "ee_pos", 3), _numbers(seen, "ee_ori", 3)], axis=1)
    else:
        hand_T6 = _numbers(seen, "ee_states", 6)
    joints_T7 = _numbers(seen, "joint_states", 7)
    state_TP = np.concatenate([hand_T6, _numbers(seen, "gripper_states", 2), joints_T7], axis=1)
    images = {camera: _images(seen, key) for camera, key in CAMERAS.items()}
    lengths = {"actions": len(action_TA), "observations": len(state_TP)}
    lengths |= {n: len(i) for n, i in images.items()}
    lengths |= {name: len(_dataset(demo, name)) for name in BESIDE if name in demo}
    if len(set(lengths.values())) > 1:
        raise Unusable(f"rows differ in number: {', '.join(f'{k} of {n}' for n, k in lengths.items())}")
    if seen_after(demo, joints_T7):
        images = {camera: frames[:-1] for camera, frames in images.items()}
        state_TP, action_TA = state_TP[:-1], action_TA[1:]
    first, last = span(action_TA)
    rows = slice(first, last + 1)
    return {camera: frames[rows] for camera, frames in images.items()}, state_TP[rows], action_TA[rows]


def seen_after(demo: h5py.Group, joints_T7: np.ndarray) -> bool:
    """Whether row t was observed after command t, judged by the simulator's own states where there are any.

    LIBERO's are, so that is believed where nothing tells.
    """
    if "states" not in demo or len(joints_T7) < 2:
        return True
    states_TS = _numbers(demo, "states", None)
    if states_TS.shape[1] < 8 or len(states_TS) != len(joints_T7):
        return True
    told_T7 = states_TS[:, 1:8]  # after the time come the positions, the arm's first
    before = np.abs(joints_T7[:-1] - told_T7[:-1]).mean()
    after = np.abs(joints_T7[:-1] - told_T7[1:]).mean()
    return bool(after <= before)


def span(action_TA: np.ndarray) -> tuple[int, int]:
    """First and last command that does something: no-ops at the ends go, none between them."""
    moves_T = np.abs(action_TA[:, :-1]).max(axis=1) > STILL
    grips_T = np.diff(np.sign(action_TA[:, -1]), prepend=np.sign(action_TA[:1, -1])) != 0
    busy = np.flatnonzero(moves_T | grips_T)
    if not len(busy):
        raise Unusable("nothing moves")
    return int(busy[0]), int(busy[-1])


# ---------------------------------------------------------------------- reading what a stranger wrote


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    found = _inside(parent, name)
    if not isinstance(found, h5py.Group):
        raise Unusable(f"{name} is not a group")
    return found


def _numbers(parent: h5py.Group, name: str, width: int | None) -> np.ndarray:
    """(T, width) float32 or float64."""
    found = _dataset(parent, name)
    if found.ndim != 2 or found.dtype.kind not in "fiu" or (width and found.shape[1] != width):
        raise Unusable(f"{name} is {found.shape} {found.dtype}, expected rows of {width or 'some'} numbers")
    if not 0 < found.shape[0] <= LONGEST or found.shape[1] > WIDEST:
        raise Unusable(f"{name} has {found.shape[0]} rows of {found.shape[1]}")
    values = found[()]
    if not np.isfinite(values).all():
        raise Unusable(f"{name} has numbers that are not finite")
    return values.astype(np.float64 if width is None else np.float32)


def _images(parent: h5py.Group, name: str) -> np.ndarray:
    found = _dataset(parent, name)
    if found.ndim != 4 or found.dtype != np.uint8 or found.shape[3] != 3:
        raise Unusable(f"{name} is {found.shape} {found.dtype}, expected (T, H, W, 3) uint8")
    sides = found.shape[1:3]
    if not 0 < found.shape[0] <= LONGEST or min(sides) < 8 or max(sides) > LARGEST:
        raise Unusable(f"{name} is {found.shape}")
    images: np.ndarray = found[()]
    return images


def _dataset(parent: h5py.Group, name: str) -> h5py.Dataset:
    found = _inside(parent, name)
    if not isinstance(found, h5py.Dataset):
        raise Unusable(f"{name} is not a dataset")
    if found.external or found.is_virtual:
        raise Unusable(f"{name} keeps its values in another file")
    if found.nbytes > MOST_BYTES:
        raise Unusable(f"{name} is {found.shape}, {found.nbytes / 2**30:.0f} GB")
    return found


def _inside(parent: h5py.Group, name: str) -> Any:
    if name not in parent:
        raise Unusable(f"lacks {name}")
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise Unusable(f"{name} is a link to elsewhere")
    return parent[name]


def _instruction(problem: Any, title: str) -> str:
    """The sentence in the file's description, else its title in words."""
    try:
        said = json.loads(problem)["language_instruction"]
        text = " ".join(said) if isinstance(said, list) else str(said)
    except (TypeError, ValueError, KeyError):
        text = in_words(title)
    return " ".join(text.replace('"', " ").encode(errors="replace").decode().split())


def _picture(frame_HWC: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _skipped(folder: Path, reason: str) -> tuple[int, str]:
    shutil.rmtree(folder, ignore_errors=True)
    return 0, reason
