"""Does LeRobot itself read our stores, and do we read its?

LeRobot needs another Python and another torch than ours, so it gets an environment of its own (several
gigabytes, minutes): `--venv` keeps it for the next time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from harness import Target, answer, write_result

from lawm_policy.cli import main as lawm
from lawm_policy.data.clips import ClipConfig, ClipDataset, DemoConfig, DemoDataset
from lawm_policy.data.health import damage
from lawm_policy.data.store import EpisodeStore, StoreWriter
from lawm_policy.sim.libero_env import LiberoEnv
from lawm_policy.sim.libero_experts import rollout
from lawm_policy.sim.libero_robot import HAND

LEROBOT = "lerobot[dataset]==0.6.1"
SIDE = Path(__file__).with_name("lerobot_side.py")
FPS, SIZE = 20, 64
CAMERAS = {"front": "image", "wrist": "image2"}  # ours, and their names in LIBERO's data set
FORMS = {"video": 20, "image": 10}  # of its data sets of LIBERO: how frames are kept, and their label in Hz
CODEC = 6.0  # grey levels, on average over an image: what lossy video may cost


@dataclass(frozen=True)
class Args:
    """What LeRobot reads of ours, and we of theirs."""

    out: Path
    """where result.json and page.md go"""
    python: str = "python3.12"
    """a Python >= 3.12 to make the environment with"""
    venv: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(left out: one that is removed)")] = None
    """LeRobot's environment: made if it does not exist, then kept"""
    quick: bool = False
    """fewer episodes, the same code"""


def main(args: Args) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        python = environment(args.venv or root / "venv", args.python)
        rows = theirs_reads_ours(python, root, 4 if args.quick else 24)
        rows += ours_reads_theirs(python, root)
        rows += libero_through_lerobot(python, root, 1 if args.quick else 3)
    failed = [row for row in rows if not row["as expected"]]
    write_result(
        args.out,
        question="Does LeRobot read our stores, and do we read its?",
        seconds=time.monotonic() - began,
        seeds=[0],
        rows=rows,
        targets=[Target("checks that failed", "<= 0", float(len(failed)))],
        notes=f"{LEROBOT} from the package index, in a virtual environment without lawm_policy.",
    )


def environment(venv: Path, python: str) -> Path:
    interpreter = venv / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "--quiet", LEROBOT], check=True)
    return interpreter


def side(python: Path, *arguments: str) -> None:
    """Runs LeRobot's part, cut off from the network: nothing may come from the hub."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run(
        [str(python), str(SIDE), *arguments], check=True, env=os.environ | quiet, stdout=sys.stderr
    )


def row(direction: str, check: str, found: Any, good: bool) -> dict[str, Any]:
    return {"direction": direction, "check": check, "found": found, "as expected": good}


def theirs_reads_ours(python: Path, root: Path, episodes: int) -> list[dict[str, Any]]:
    truth = write_ours(root / "ours", episodes, labelled=True)
    side(python, "read", str(root / "ours"), str(root / "ours.npz"))
    seen = np.load(root / "ours.npz")
    store = EpisodeStore.open(root / "ours")
    frames = {c: np.concatenate([store.frames(e.index, c) for e in store.episodes]) for c in store.cameras}
    where = f"LeRobot {seen['version']} reads ours"
    rows = [
        row(where, "frames", len(seen["timestamp"]), len(seen["timestamp"]) == len(truth["state"])),
        row(where, "state, largest error", *largest(seen["observation.state"], truth["state"], 0)),
        row(where, "action, largest error", *largest(seen["action"], truth["action"], 0)),
        row(where, "timestamp, largest error in s", *largest(seen["timestamp"], truth["time"], 1e-6)),
        row(where, "episode numbers differ", *differing(seen["episode"], truth["episode"])),
        row(where, "instructions differ", *differing(seen["task"], truth["task"])),
    ]
    for camera in store.cameras:
        image = seen[f"observation.images.{camera}"].transpose(0, 2, 3, 1)
        rows.append(
            row(where, f"{camera}, largest error to our decoding", *largest(image, frames[camera], 3))
        )
        rows.append(
            row(where, f"{camera}, mean error to what was filmed", *mean(image, truth[camera], CODEC))
        )
    picked = seen["window_index"]
    ends = np.array([np.flatnonzero(truth["episode"] == truth["episode"][i])[-1] for i in picked])
    steps = picked[:, None] + np.arange(8)
    rows.append(row(where, "is_pad differ", *differing(seen["window_is_pad"], steps > ends[:, None])))
    expected = truth["action"][np.minimum(steps, ends[:, None])]
    rows.append(row(where, "windows of actions, largest error", *largest(seen["window_action"], expected, 0)))
    later = np.minimum(picked[:, None] + np.array([0, 4]), ends[:, None])
    image = seen["window_frames"].transpose(0, 1, 3, 4, 2)
    rows.append(row(where, "windows of frames, largest error", *largest(image, frames["front"][later], 3)))
    rows.append(
        row(where, "stats: action mean", *largest(seen["stats_action_mean"], truth["action"].mean(0), 1e-3))
    )

    write_ours(root / "video", 3, labelled=False)
    side(python, "read", str(root / "video"), str(root / "video.npz"))
    seen = np.load(root / "video.npz")
    video = EpisodeStore.open(root / "video")
    same = np.concatenate([video.frames(e.index, "front") for e in video.episodes])
    image = seen["observation.images.front"].transpose(0, 2, 3, 1)
    rows.append(row(where, "unlabelled video, largest error", *largest(image, same, 3)))
    return rows


def ours_reads_theirs(python: Path, root: Path) -> list[dict[str, Any]]:
    side(python, "write", str(root / "theirs"), str(root / "theirs.npz"))
    told = np.load(root / "theirs.npz")
    store = EpisodeStore.open(root / "theirs")
    all_of = [np.concatenate([f(e.index) for e in store.episodes]) for f in (store.state, store.actions)]
    frames = np.concatenate([store.frames(e.index, "front") for e in store.episodes])
    found = list(damage(store, full=True))
    where = "we read LeRobot's"
    rows = [
        row(where, "state, largest error", *largest(all_of[0], told["state"], 0)),
        row(where, "action, largest error", *largest(all_of[1], told["action"], 0)),
        row(where, "front, mean error to what was filmed", *mean(frames, told["front"], CODEC)),
        row(where, "instructions differ", *differing([e.text for e in store.episodes], told["task"])),
        row(where, "lengths differ", *differing([e.length for e in store.episodes], told["length"])),
        row(where, "embodiment", store.episodes[0].embodiment, store.episodes[0].embodiment == "their_arm"),
        row(where, "damage found", "; ".join(found) or 0, not found),
    ]
    cache = root / "cache"
    clips = ClipDataset(
        [(store.path, 1.0), (root / "ours", 1.0)],
        ClipConfig(length=4, cameras=("front",), shift=0),
        cache_dir=cache,
    )
    clip = clips.batch(0, 64, 0)
    rows.append(
        row(
            where,
            "clips of both in one batch",
            len(set(clip.embodiment_B.tolist())),
            len(set(clip.embodiment_B.tolist())) == 2,
        )
    )
    config = DemoConfig(chunk=3, commands_per_latent=2, cameras=("front",), shift=0)
    demos = DemoDataset(store.path, config, cache_dir=cache)
    demo = demos.batch(0, 64, 0)
    error = (demo.actions_BKRA[:, 0, 0, 0] - demo.state_BP[:, 0] - 0.5).abs().max()
    rows.append(row(where, "demonstrations: action beside state", float(error), float(error) == 0))
    return rows


def libero_through_lerobot(python: Path, root: Path, episodes: int) -> list[dict[str, Any]]:
    """Expert episodes of LIBERO, written by LeRobot as on its hub (turned by half a turn, its names),
    imported, and replayed in the simulator."""
    env = LiberoEnv("libero_object-0", protocol="lawm+fresh+lite")
    played = [rollout(env, seed) for seed in range(episodes)]
    told: dict[str, Any] = {"episodes": episodes}
    for k, episode in enumerate(played):
        turned = {name: episode.frames[camera][:, ::-1, ::-1] for camera, name in CAMERAS.items()}
        told |= {f"{name}_{k}": frames for name, frames in turned.items()}
        told |= {f"state_{k}": episode.state_TP[:, : len(HAND)], f"action_{k}": episode.executed_TA}
        told[f"task_{k}"] = episode.text
    np.savez(root / "libero.npz", **told)
    rows = []
    for form, labelled in FORMS.items():
        theirs, out = root / f"libero-{form}", root / f"imported-{form}"
        side(python, "write_libero", str(theirs), str(root / "libero.npz"), form, str(labelled))
        source = ("import", "lerobot", str(theirs), "--out", str(out))
        if lawm([*source, "--robot", "libero", "--workers", "1"]):
            raise SystemExit("lawm import lerobot failed")
        where = f"LIBERO through LeRobot, {form}s labelled {labelled} Hz"
        rows += as_played(where, EpisodeStore.open(out), played, told)
        again = replayed(env, EpisodeStore.open(out))
        done = f"{sum(again)} of {sum(e.success for e in played)}"
        rows.append(row(where, "episodes that succeed again, replayed", done, all(again) and bool(again)))
    env.close()
    return rows


def as_played(
    where: str, store: EpisodeStore, played: list[Any], told: dict[str, Any]
) -> list[dict[str, Any]]:
    """What was imported beside what was played."""
    numbers = range(len(played))
    assert store.robot is not None
    lengths, texts = [e.length for e in store.episodes], [e.text for e in store.episodes]
    rows = [
        row(where, "lengths differ", *differing(lengths, [len(e.action_TA) for e in played])),
        row(where, "instructions differ", *differing(texts, [e.text for e in played])),
        row(where, "frames a second", store.fps, store.fps == FPS),
        row(where, "the card's flip", store.robot["flip"], store.robot["flip"] == "rotate_180"),
    ]
    for name, found in (("state", store.state), ("action", store.actions)):
        found_ND = np.concatenate([found(k) for k in numbers])
        told_ND = np.concatenate([told[f"{name}_{k}"] for k in numbers])
        rows.append(row(where, f"{name}, largest error", *largest(found_ND, told_ND, 0)))
    for camera, name in CAMERAS.items():
        images = np.concatenate([store.frames(k, camera) for k in numbers])
        drawn = np.concatenate([told[f"{name}_{k}"] for k in numbers])
        rows.append(row(where, f"{camera}, mean error to what was drawn", *mean(images, drawn, CODEC)))
    return rows


def replayed(env: LiberoEnv, store: EpisodeStore) -> list[bool]:
    """Which episodes succeed again with their commands alone."""
    again = []
    for k in range(len(store.episodes)):
        env.reset(seed=k)
        again.append(any(env.step(command)[2] for command in store.actions(k)))
    return again


def write_ours(path: Path, episodes: int, labelled: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    states, actions = (("x", "y", "grip"), ("x", "grip")) if labelled else (None, None)
    truth: dict[str, list[np.ndarray]] = {
        k: [] for k in ("state", "action", "time", "episode", "task", "front", "wrist")
    }
    cameras = {"front": (SIZE, SIZE), "wrist": (SIZE, SIZE)}
    robot = {"embodiment": "our_arm", "relative_to": [0, None]} if labelled else None
    with StoreWriter(
        path, fps=FPS, cameras=cameras, state_names=states, action_names=actions, robot=robot
    ) as writer:
        for e in range(episodes):
            length = int(rng.integers(30, 70))
            frames = np.full((length, SIZE, SIZE, 3), 50, np.uint8)
            y, x, vy, vx = rng.uniform(10, 40), rng.uniform(10, 40), *rng.uniform(-0.8, 0.8, 2)
            for t in range(length):
                y, x = np.clip([y + vy, x + vx], 0, SIZE - 14)
                frames[t, int(y) : int(y) + 14, int(x) : int(x) + 14] = (200, 60 + 5 * e, 90)
            steps = np.arange(length, dtype=np.float32)
            state = np.stack([steps, np.full(length, e, np.float32), rng.normal(size=length)], 1).astype(
                np.float32
            )
            action = np.stack([steps + 0.5, np.sign(np.sin(steps))], 1).astype(np.float32)
            views = {"front": frames, "wrist": frames[:, ::-1]} if labelled else {"front": frames}
            text = f"our task {e % 3}" if labelled or e else ""
            labels = (state, action) if labelled else ()
            writer.add_episode(views, *labels, text=text, embodiment="our_arm", split="train")
            values: dict[str, np.ndarray] = {
                "state": state,
                "action": action,
                "time": steps / FPS,
                "front": frames,
                "wrist": frames[:, ::-1],
            }
            values |= {"episode": np.full(length, e), "task": np.full(length, text)}
            for key, value in values.items():
                truth[key].append(value)
    return {key: np.concatenate(value) for key, value in truth.items()}


def largest(a: np.ndarray, b: np.ndarray, most: float) -> tuple[Any, bool]:
    if np.shape(a) != np.shape(b):
        return f"shapes {np.shape(a)} and {np.shape(b)}", False
    error = float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())
    return error, error <= most


def mean(a: np.ndarray, b: np.ndarray, most: float) -> tuple[Any, bool]:
    if np.shape(a) != np.shape(b):
        return f"shapes {np.shape(a)} and {np.shape(b)}", False
    error = float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())
    return error, error <= most


def differing(a: Any, b: Any) -> tuple[int, bool]:
    count = int((np.asarray(a) != np.asarray(b)).sum())
    return count, count == 0


if __name__ == "__main__":
    answer(main, Args)
