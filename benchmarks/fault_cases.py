"""The material of `faults.py` and of its small version in the tests: tiny data, tiny runs, bad requests."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from lawm_policy.checkpoint import sha256_of
from lawm_policy.data.store import StoreWriter

Lawm = Callable[[list[str]], int]  # runs one command, returns its exit status


@dataclass(frozen=True)
class Material:
    """Where everything lies, by the names that commands use."""

    root: Path

    @property
    def places(self) -> dict[str, Path]:
        names = (
            "videos",
            "demos",
            "store",
            "other_robot",
            "one_camera",
            "pretrained",
            "finetuned",
            "other_finetuned",
            "foreign",
            "empty",
        )
        return {name: self.root / name for name in names}

    def argv(self, text: str, out: Path) -> list[str]:
        return shlex.split(text.format(out=out, missing=self.root / "missing", **self.places))


def build(root: Path, lawm: Lawm, steps: int = 20, episodes: int = 12) -> Material:
    """Collects, imports, pretrains and finetunes at the smallest size; what exists is kept."""
    made = Material(root)
    root.mkdir(parents=True, exist_ok=True)
    tasks = f"--tasks push_red,open_drawer --episodes {episodes} --workers 0 --size 32"
    train = f"--train.steps {steps} --train.save_every 2 --train.log_every 1"
    commands = {
        "videos": f"collect tabletop --kind videos {tasks} --fps 10 --out {{videos}}",
        "demos": f"collect tabletop {tasks} --out {{demos}}",
        "store": "import videos {videos} --out {store} --size 32 --workers 1",
        "pretrained": f"pretrain debug --data {{store}} --out {{pretrained}} {train}",
        "finetuned": f"finetune debug --data {{demos}} --init {{pretrained}} --out {{finetuned}} {train}",
        "other_finetuned": f"finetune debug --data {{other_robot}} --out {{other_finetuned}} {train}",
    }
    if not made.places["empty"].exists():
        _stores(made.places["one_camera"], cameras=("front",), labelled=False)
        _stores(made.places["other_robot"], cameras=("front", "wrist"), labelled=True)
        made.places["foreign"].mkdir()
        (made.places["foreign"] / "holiday.txt").write_text("nothing of this program's")
        (made.places["foreign"] / "clip.mp4").write_bytes(b"not a video at all" * 100)
        made.places["empty"].mkdir()
    for name, command in commands.items():
        done = root / f".{name}.done"
        if not done.exists():
            shutil.rmtree(made.places[name], ignore_errors=True)
            status = lawm(made.argv(command, root / "unused"))
            assert status == 0, f"lawm {command}: exit status {status}"
            done.touch()
    return made


def _stores(path: Path, cameras: tuple[str, ...], labelled: bool) -> None:
    """A square that wanders: the smallest video in which something moves."""
    names = ("a", "b", "c") if labelled else None
    sizes = {camera: (32, 32) for camera in cameras}
    with StoreWriter(path, fps=20, cameras=sizes, state_names=names, action_names=names) as writer:
        for episode in range(12):
            frames = np.zeros((60, 32, 32, 3), np.uint8)
            for t in range(60):
                frames[t, 4 + episode : 12 + episode, t // 3 : t // 3 + 8] = 255
            values = np.linspace(0, 1, 60 * 3, dtype=np.float32).reshape(60, 3) if labelled else None
            writer.add_episode({c: frames for c in cameras}, values, values, text="move", task="move")


# Requests that must be refused -----------------------------------------------------------------


class Case(NamedTuple):
    name: str
    command: str  # with {places} and {out}
    said: str  # in the line that answers
    environment: tuple[tuple[str, str], ...] = ()


BAD_REQUESTS = (
    Case("unknown verb", "pretrian", "did you mean 'pretrain'"),
    Case("unknown option", "pretrain debug --data {store} --out {out} --ressume", "did you mean '--resume'"),
    Case("no arguments", "pretrain", "expected CONFIG"),
    Case("no output", "pretrain debug --data {store}", "expected --out"),
    Case("unknown configuration", "pretrain lamw --data {store} --out {out}", "did you mean 'lawm'"),
    Case("missing file of configuration", "pretrain x/y.yaml --data {store} --out {out}", "found nothing at"),
    Case(
        "unknown key",
        "pretrain debug --data {store} --out {out} --train.stesp 3",
        "did you mean 'train.steps'",
    ),
    Case(
        "unknown section", "pretrain debug --data {store} --out {out} --trian.steps 3", "did you mean 'train'"
    ),
    Case(
        "type of an override",
        "pretrain debug --data {store} --out {out} --set train.lr=fast",
        "expected a number",
    ),
    Case("range of an override", "pretrain debug --data {store} --out {out} --train.steps 0", "steps >= 1"),
    Case(
        "size that no halving brings to the grid",
        "pretrain debug --data {store} --out {out} --recipe.policy.size 96",
        "expected recipe.policy.size among 32, 64",
    ),
    Case(
        "a key that follows from another",
        "pretrain debug --data {store} --out {out} --data.size 64",
        "expected data.size=32, which follows from recipe.policy.size, found 64",
    ),
    Case("output in no place", "pretrain debug --data {store} --out /proc/x", "give another --out"),
    Case(
        "half a number",
        "pretrain debug --data {store} --out {out} --train.steps 2.5",
        "expected a whole number",
    ),
    Case("choice", "pretrain debug --data {store} --out {out} --recipe.source magic", "found 'magic'"),
    Case(
        "override without value",
        "pretrain debug --data {store} --out {out} --train.steps",
        "expected a value",
    ),
    Case("missing data", "pretrain debug --data {missing} --out {out}", "missing"),
    Case("empty data", "pretrain debug --data {empty} --out {out}", "empty"),
    Case("foreign data", "pretrain debug --data {foreign} --out {out}", "foreign"),
    Case("a file as data", "pretrain debug --data {foreign}/holiday.txt --out {out}", "holiday.txt"),
    Case("a run as data", "pretrain debug --data {pretrained} --out {out}", "pretrained"),
    Case("existing output", "pretrain debug --data {store} --out {pretrained}", "--force"),
    Case("output is a file", "pretrain debug --data {store} --out {foreign}/holiday.txt", "holiday.txt"),
    Case("force on foreign files", "pretrain debug --data {store} --out {foreign} --force", "other files"),
    Case(
        "another configuration",
        "pretrain debug --data {store} --out {pretrained} --resume --train.lr 1",
        "train.",
    ),
    Case("other data", "pretrain debug --data {demos} --out {pretrained} --resume", "resume"),
    Case("video-only data", "finetune debug --data {store} --out {out}", "expected"),
    Case("missing init", "finetune debug --data {demos} --init {missing} --out {out}", "found nothing at"),
    Case("controller from scratch", "finetune debug --data {demos} --out {out} --train controller", "--init"),
    Case("missing camera", "finetune debug --data {one_camera} --out {out}", "expected"),
    Case("too many demonstrations", "finetune debug --data {demos} --out {out} --demos 1000", "1000"),
    Case("no demonstrations", "finetune debug --data {demos} --out {out} --demos 0", "expected"),
    Case(
        "nothing to execute",
        "finetune debug --data {demos} --out {out} --policy.execute 0",
        "policy.execute >= 1",
    ),
    Case(
        "more to execute than a chunk has",
        "finetune debug --data {demos} --out {out} --policy.execute 7",
        "policy.execute <= 6",
    ),
    Case(
        "a key that follows from another",
        "finetune debug --data {demos} --out {out} --data.commands_per_latent 3",
        "follows from policy.controller.commands_per_latent, found 3",
    ),
    Case(
        "a key that follows from the start",
        "finetune debug --data {demos} --init {pretrained} --out {out} --policy.policy.latent 4",
        "expected policy.policy.latent=8, which follows from --init, found 4",
    ),
    Case(
        "a head that --head decides",
        "finetune debug --data {demos} --out {out} --head fresh --policy.head controller",
        "follows from --head",
    ),
    Case(
        "another rate than the start's",
        "finetune debug --data {demos} --init {pretrained} --out {out} --data.hz 10 "
        "--policy.controller.commands_per_latent 2",
        "expected data.hz=5.0, as in the run to start from, found 10.0",
    ),
    Case(
        "another controller than the start's",
        "finetune debug --data {demos} --init {finetuned} --out {out} --policy.controller.width 32",
        "expected policy.controller.width=64, as in the run to start from, found 32",
    ),
    Case(
        "another robot than the start's",
        "finetune debug --data {other_robot} --init {finetuned} --out {out}",
        "found a, b, c: give demonstrations of that robot",
    ),
    Case("negative draw", "finetune debug --data {demos} --out {out} --draw -1", "draw >= 0, found -1"),
    Case("another robot", "eval {other_finetuned} --tasks push_red --out {out}", "found ['a', 'b', 'c']"),
    Case("wrong kind", "eval {pretrained} --suite tabletop --out {out}", "expected a finetuned"),
    Case("missing run", "eval {missing} --suite tabletop --out {out}", "found nothing at"),
    Case("data as run", "eval {store} --suite tabletop --out {out}", "expected a checkpoint or run"),
    Case("unknown suite", "eval {finetuned} --suite tabeltop --out {out}", "tabletop"),
    Case("unknown task", "eval {finetuned} --tasks push_rde --out {out}", "push_red"),
    Case("no episodes", "eval {finetuned} --episodes 0 --out {out}", "episodes"),
    Case("more than a chunk has", "eval {finetuned} --execute 25 --out {out}", "expected 1 to 24 commands"),
    Case(
        "negative seed", "eval {finetuned} --seed-base -5 --out {out}", "--seed-base of at least 0, found -5"
    ),
    Case("output in no place", "eval {finetuned} --out /proc/x", "give another --out"),
    Case("output in use", "eval {finetuned} --tasks push_red --episodes 1 --out {demos}", "found"),
    Case("missing videos", "import videos {missing} --out {out}", "found nothing"),
    Case("no videos", "import videos {empty} --out {out}", "found none"),
    Case("no readable video", "import videos {foreign} --out {out}", "found none"),
    Case("odd size", "import videos {videos} --out {out} --size 33", "size"),
    Case("unknown kind of source", "import vidoes {videos} --out {out}", "videos"),
    Case("existing store", "import videos {videos} --out {store}", "--force"),
    Case("unknown task", "collect tabletop --tasks push_rde --episodes 1 --out {out}", "push_red"),
    Case("unknown embodiment", "collect tabletop --embodiment arm66 --episodes 1 --out {out}", "arm6"),
    Case("unknown suite", "collect tabeltop --episodes 1 --out {out}", "tabletop"),
    Case(
        "fewer than none", "collect tabletop --episodes -1 --out {out}", "--episodes of at least 0, found -1"
    ),
    Case("output in no place", "collect tabletop --episodes 1 --out /proc/x", "give another --out"),
    Case("output in no place", "import videos {videos} --out /proc/x", "give another --out"),
    Case("no OpenGL", "collect tabletop --episodes 1 --out {out}", "OpenGL", (("MUJOCO_GL", "disable"),)),
    Case(
        "no room for the cache",
        "pretrain debug --data {store} --out {out}",
        "expected the cache limit to hold",
        (("LAWM_CACHE_GB", "0"), ("LAWM_CACHE", "{fresh}")),
    ),
    Case("missing data", "inspect {missing}", "missing"),
    Case("foreign data", "inspect {foreign}", "foreign"),
    Case("sheet in no place", "inspect {store} --sheet /proc/x.png", "give another --sheet"),
    Case("sheet that is no picture", "inspect {store} --sheet {out}.txt", "ends in .png"),
    Case("file in no place", "inspect {store} --json {foreign}/holiday.txt/x", "give another --json"),
    Case("file in no place", "compare {missing} {missing} --json /proc/x", "give another --json"),
    Case("page in no place", "report {pretrained} --out /proc/x.html", "give another --out"),
    Case("page that is a folder", "report {pretrained} --out {empty}", "found the folder"),
    Case("missing evaluation", "compare {missing} {missing}", "missing"),
    Case("a store as evaluation", "compare {store} {demos}", "expected"),
    Case("missing results", "report {missing} --out {out}.html", "/missing"),
    Case("page that is no page", "report {pretrained} --out {out}.pdf", "ends in .html"),
)


# Files damaged as disks, copies and people damage them -------------------------------------------


def flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def truncate(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def remove(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def noise(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(rng.bytes(path.stat().st_size))


def pickled(path: Path, rng: np.random.Generator) -> None:
    # os.mkdir("pickle-was-run"), should anything ever unpickle it
    path.write_bytes(b"cos\nmkdir\n(S'pickle-was-run'\ntR.")


def not_a_number(path: Path, rng: np.random.Generator) -> None:
    tensors = load_file(path)
    name = _one_of(tensors, rng)
    tensors[name].flat[rng.integers(tensors[name].size)] = np.nan
    _write_with_manifest(tensors, path)


def other_shape(path: Path, rng: np.random.Generator) -> None:
    """Another architecture."""
    tensors = load_file(path)
    name = _one_of(tensors, rng)
    tensors[name] = np.concatenate([tensors[name], tensors[name]])
    _write_with_manifest(tensors, path)


def _one_of(tensors: dict[str, np.ndarray], rng: np.random.Generator) -> str:
    return str(
        rng.choice(sorted(n for n, t in tensors.items() if t.dtype == np.float32 and t.ndim and t.size))
    )


def _write_with_manifest(tensors: dict[str, np.ndarray], path: Path) -> None:
    save_file(tensors, path)
    manifest = path.parent / "manifest.json"
    told = json.loads(manifest.read_text())
    told["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest.write_text(json.dumps(told))


DAMAGE = {"flipped bit": flip, "truncated": truncate, "missing": remove, "noise": noise, "a pickle": pickled}


def files_below(folder: Path) -> Iterator[Path]:
    yield from sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file and its hash: to see that a refused request changed nothing."""
    return {str(p.relative_to(folder)): sha256_of(p) for p in files_below(folder)}
