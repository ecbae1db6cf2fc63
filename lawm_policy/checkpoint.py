"""Checkpoints: folders of safetensors and JSON with a SHA-256 manifest, written atomically.

    step-00000100/
      model.safetensors  optimizer.safetensors ...    one file a group of tensors
      meta.json                                       kind, configuration, statistics, ...
      README.md                                       the model card
      manifest.json                                   size and SHA-256 of each file above

A folder appears under its name only when complete (written aside, synced, renamed); `last` and
`best` are relative links, replaced atomically. No pickle is written or read, ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lawm_policy.runs import read_record
from lawm_policy.types import UserError

FORMAT = 1
MANIFEST = "manifest.json"
COPY_AGAIN = "copy the checkpoint again"
ARCHITECTURE = "use the architecture of the checkpoint"


def _bad(expected: str, found: str, do: str = COPY_AGAIN) -> UserError:
    return UserError(f"expected {expected}, found {found}: {do}")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. Tensors are read when asked for."""

    folder: Path
    meta: dict[str, Any]
    sha256: str  # of the manifest, hence of every file

    @property
    def kind(self) -> str:
        return str(self.meta.get("kind", ""))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(p.stem for p in self.folder.glob("*.safetensors")))

    def tensors(self, name: str = "model") -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise _bad(f"{path.name} in {self.folder}", ", ".join(self.names), "use another checkpoint")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _bad(f"safetensors in {path}", f"something else ({error})") from None
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                found = f"NaN or infinity in {key}"
                raise _bad(f"finite numbers in {path}", found, "use an earlier checkpoint")
        return tensors


def save(
    folder: str | Path, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any], card: str
) -> str:
    """Writes a checkpoint at `folder` (replacing one of the same name) and returns its SHA-256."""
    folder = Path(folder)
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed here
    aside.mkdir(parents=True)
    try:
        for name, group in tensors.items():
            _save_file(group, aside / f"{name}.safetensors")
        (aside / "meta.json").write_text(json.dumps(meta, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(card.rstrip() + "\n", encoding="utf-8")
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(aside.iterdir())}
        manifest = (
            json.dumps({"format": FORMAT, "kind": meta.get("kind", ""), "files": files}, indent=1) + "\n"
        )
        (aside / MANIFEST).write_text(manifest, encoding="utf-8")
        for path in aside.iterdir():
            _sync(path)
        _sync(aside)
        if folder.exists():
            gone = folder.with_name(f".{folder.name}.replaced")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            aside.rename(folder)
            shutil.rmtree(gone)
        else:
            aside.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # e.g. disk full: leave the room to others
        raise
    return hashlib.sha256(manifest.encode()).hexdigest()


def load(folder_or_run: str | Path, kind: str | None = None, *, which: str = "last") -> Checkpoint:
    """The checkpoint at a folder, or the `last` or `best` one of a run, after checking every file.

    `kind` is what the caller can use ("pretrained", "finetuned"); another kind is refused.
    """
    folder = resolve(folder_or_run, which)
    manifest = _read_json(folder / MANIFEST)
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict):
        raise _bad(
            f"a manifest of format {FORMAT} in {folder}", "another", "use a checkpoint of this version"
        )
    present = {p.name for p in folder.iterdir()} - {MANIFEST}
    for name in sorted(files):
        if name not in present:
            raise _bad(f"{name} in {folder}", "it missing")
    for name in sorted(present):
        if name.endswith(".safetensors"):
            _check_header(folder / name)
            if name not in files:
                raise _bad(f"only tensors that {MANIFEST} lists in {folder}", name, "remove it")
    for name, entry in sorted(files.items()):
        path = folder / name
        size = path.stat().st_size
        entry = entry if isinstance(entry, dict) else {}
        if size != entry.get("bytes"):
            raise _bad(f"{entry.get('bytes')} bytes in {path}", str(size))
        if sha256_of(path) != entry.get("sha256"):
            raise _bad(f"{path} as written", "changed bytes (SHA-256)")
    meta = _read_json(folder / "meta.json")
    found = meta.get("kind", "")
    if kind is not None and found != kind:
        do = "fine-tune it first" if (found, kind) == ("pretrained", "finetuned") else "give another run"
        raise _bad(f"a {kind} checkpoint", f"a {found or 'nameless'} one in {folder}", do)
    return Checkpoint(folder, meta, sha256_of(folder / MANIFEST))


def resolve(folder_or_run: str | Path, which: str = "last") -> Path:
    """The checkpoint folder that a path to a checkpoint or to a run means."""
    path = Path(folder_or_run)
    if not path.exists():
        raise _bad("a checkpoint or run", f"nothing at {path}", "check the path")
    if not path.is_dir():
        raise _bad("a checkpoint or run folder", f"a file at {path}", "give its folder")
    if (path / MANIFEST).is_file():
        return path
    link = path / "checkpoints" / which
    if (link / MANIFEST).is_file():
        return link.resolve()
    if (path / "checkpoints").is_dir():
        raise _bad(f"a finished checkpoint `{which}` in {path}", "none", "run the training with --resume")
    if (path / "meta.json").is_file():
        raise _bad(f"{MANIFEST} in {path}", "it missing")
    raise _bad("a checkpoint or run folder", f"neither in {path}", "check the path")


# The checkpoints of a run ----------------------------------------------------------------------


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def point(run: Path, name: str, step: int) -> None:
    """Makes `checkpoints/<name>` a link to the checkpoint of `step`, atomically."""
    link = run / "checkpoints" / name
    aside = link.with_name(f".{name}.writing")
    aside.unlink(missing_ok=True)
    aside.symlink_to(step_folder(run, step).name)
    os.replace(aside, link)
    _sync(link.parent)


def prune(run: Path, keep_last: int) -> None:
    """Removes all but the newest `keep_last` checkpoints; what `last` or `best` mean always stays."""
    folder = run / "checkpoints"
    linked = {(folder / name).resolve().name for name in ("last", "best") if (folder / name).is_symlink()}
    for old in sorted(folder.glob("step-*"))[: -max(keep_last, 1)]:
        if old.name not in linked:
            gone = old.with_name(f".{old.name}.replaced")
            old.rename(gone)  # first out of sight: a kill in the middle leaves no half checkpoint
            shutil.rmtree(gone)
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)


# Initialising one model from another -----------------------------------------------------------


@dataclass(frozen=True)
class InitReport:
    """Which of a module's tensors came from pretraining, and the name of every other."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]  # declared finetune_only
    unexplained: tuple[str, ...] = ()  # in the module, neither given nor declared
    unused: tuple[str, ...] = ()  # given, not in the module

    def __str__(self) -> str:
        text = f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.fresh)} tensors from pretraining"
        groups: dict[str, int] = {}
        for name in self.fresh:
            top = name.partition(".")[0]
            groups[top] = groups.get(top, 0) + 1
        text += "; fresh: " + (", ".join(f"{k} ({n})" for k, n in groups.items()) or "none")
        return text + (f"; unused: {len(self.unused)}" if self.unused else "")


def init_from(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    prefix: str = "",
    finetune_only: Sequence[str] = (),
    where: str | Path = "the checkpoint",
) -> InitReport:
    """Copies `tensors` (those under `prefix`, which is taken off) into `module`.

    Every tensor of the module must come from there, or start with a name in `finetune_only`.
    """
    given = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    own = dict(module.state_dict())
    declared = {n for n in own if any(n == f or n.startswith(f"{f.rstrip('.')}.") for f in finetune_only)}
    loaded = tuple(n for n in own if n in given and n not in declared)
    report = InitReport(
        loaded=loaded,
        fresh=tuple(n for n in own if n in declared),
        unexplained=tuple(n for n in own if n not in given and n not in declared),
        unused=tuple(n for n in given if n not in loaded),
    )
    if not loaded:
        raise _bad(f"tensors that fit under {prefix!r}", f"none in {where}", ARCHITECTURE)
    if report.unexplained:
        names = ", ".join(report.unexplained[:3]) + (", ..." if len(report.unexplained) > 3 else "")
        found = f"{len(report.unexplained)} neither ({names}) in {where}"
        raise _bad("every tensor from pretraining or declared finetune_only", found, ARCHITECTURE)
    check_shapes({n: own[n] for n in loaded}, given, where)
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(given[name])
    return report


def load_exactly(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path = "the checkpoint"
) -> None:
    """Copies `tensors` into `module`; another architecture is refused with one line."""
    own = module.state_dict()
    for name in own:
        if name not in tensors:
            raise _bad(f"the tensor {name} in {where}", "none", ARCHITECTURE)
    for name in tensors:
        if name not in own:
            raise _bad(f"no tensor {name}", f"one in {where}", ARCHITECTURE)
    check_shapes(own, tensors, where)
    module.load_state_dict(dict(tensors))


def check_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str | Path) -> None:
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            expected, found = tuple(tensor.shape), tuple(given[name].shape)
            raise _bad(f"shape {expected} for {name}", f"{found} in {where}", ARCHITECTURE)


# Nested state (optimisers) as tensors + JSON ---------------------------------------------------


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Nested dicts, lists and scalars with tensors inside, as named tensors and a JSON skeleton."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"tensor": path}
        if isinstance(value, Mapping):
            return {"items": [[k, walk(v, f"{path}.{k}" if path else str(k))] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            return {"list": [walk(v, f"{path}.{i}") for i, v in enumerate(value)]}
        assert value is None or isinstance(value, (bool, int, float, str)), f"{path}: {type(value)}"
        return value

    return tensors, walk(state, "")


def unflatten(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    if not isinstance(skeleton, dict):
        return skeleton
    if "tensor" in skeleton:
        return tensors[skeleton["tensor"]]
    if "items" in skeleton:
        return {k: unflatten(tensors, v) for k, v in skeleton["items"]}
    return [unflatten(tensors, v) for v in skeleton["list"]]


# Files -----------------------------------------------------------------------------------------


def _save_file(group: Mapping[str, Tensor], path: Path) -> None:
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in group.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in storages else tensor  # the format has no shared memory
        storages.add(storage)
    try:
        save_file(plain, path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _bad(f"{path.name} in {path.parent}", "it missing")
    return read_record(path, COPY_AGAIN)


def _check_header(path: Path) -> None:
    """Refuses a file that only bears the name of safetensors (e.g. a pickle) without reading on."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    length = struct.unpack("<Q", head[:8])[0] if len(head) == 9 else 0
    if len(head) < 9 or head[8:] != b"{" or length > size - 8:
        raise _bad(f"safetensors in {path}", "another format", "only safetensors are read, never pickle")
