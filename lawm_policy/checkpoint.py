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
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lawm_policy.types import UserError

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. Tensors are read when asked for."""

    folder: Path
    meta: dict[str, Any]
    sha256: str  # of the manifest, hence of every file
    _verify: bool = field(default=True, repr=False)

    @property
    def kind(self) -> str:
        return str(self.meta.get("kind", ""))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(p.stem for p in self.folder.glob("*.safetensors")))

    def tensors(self, name: str = "model") -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise UserError(f"expected {path.name} in {self.folder}, found {', '.join(self.names)}: use another checkpoint")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"expected safetensors in {path}, found something else ({error}): copy the checkpoint again") from None
        if self._verify:
            for key, tensor in tensors.items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise UserError(f"expected finite numbers in {path}, found NaN or infinity in {key}: use an earlier checkpoint")
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
            save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, aside / f"{name}.safetensors")
        (aside / "meta.json").write_text(json.dumps(meta, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(card.rstrip() + "\n", encoding="utf-8")
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(aside.iterdir())}
        manifest = json.dumps({"format": FORMAT, "kind": meta.get("kind", ""), "files": files}, indent=1) + "\n"
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


def load(folder_or_run: str | Path, kind: str | None = None, *, which: str = "last", verify: bool = True) -> Checkpoint:
    """The checkpoint at a folder, or the `last` or `best` one of a run, after checking every file.

    `kind` is what the caller can use ("pretrained", "finetuned"); another kind is refused.
    """
    folder = resolve(folder_or_run, which)
    manifest = _read_json(folder / MANIFEST)
    files = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict):
        raise UserError(f"expected a manifest of format {FORMAT} in {folder}, found another: use a checkpoint of this version")
    present = {p.name for p in folder.iterdir()} - {MANIFEST}
    for name in sorted(files):
        if name not in present:
            raise UserError(f"expected {name} in {folder}, found it missing: copy the checkpoint again")
    for name in sorted(present):
        if name.endswith(".safetensors"):
            _check_header(folder / name)
        if name not in files:
            raise UserError(f"expected only listed files in {folder}, found {name}: remove it")
    for name, entry in sorted(files.items()):
        path = folder / name
        size = path.stat().st_size
        if size != entry.get("bytes"):
            raise UserError(f"expected {entry.get('bytes')} bytes in {path}, found {size}: copy the checkpoint again")
        if verify and sha256_of(path) != entry.get("sha256"):
            raise UserError(f"expected {path} as written, found changed bytes (SHA-256): copy the checkpoint again")
    meta = _read_json(folder / "meta.json")
    found = meta.get("kind", "")
    if kind is not None and found != kind:
        raise UserError(f"expected a {kind} checkpoint, found a {found or 'nameless'} one in {folder}: give another run")
    return Checkpoint(folder, meta, sha256_of(folder / MANIFEST), verify)


def resolve(folder_or_run: str | Path, which: str = "last") -> Path:
    """The checkpoint folder that a path to a checkpoint or to a run means."""
    path = Path(folder_or_run)
    if not path.exists():
        raise UserError(f"expected a checkpoint or run, found nothing at {path}: check the path")
    if not path.is_dir():
        raise UserError(f"expected a checkpoint or run folder, found a file at {path}: give its folder")
    if (path / MANIFEST).is_file():
        return path
    link = path / "checkpoints" / which
    if (link / MANIFEST).is_file():
        return link.resolve()
    if (path / "checkpoints").is_dir():
        raise UserError(f"expected a finished checkpoint `{which}` in {path}, found none: run the training with --resume")
    if (path / "meta.json").is_file():
        raise UserError(f"expected {MANIFEST} in {path}, found it missing: copy the checkpoint again")
    raise UserError(f"expected a checkpoint or run folder, found neither in {path}: check the path")


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
    module: nn.Module, tensors: Mapping[str, Tensor], *, prefix: str = "", finetune_only: Sequence[str] = ()
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
        raise UserError(f"expected tensors under {prefix or 'any name'!r} for the policy, found none that fit: give a checkpoint of the same architecture")
    if report.unexplained:
        names = ", ".join(report.unexplained[:3]) + (", ..." if len(report.unexplained) > 3 else "")
        raise UserError(f"expected every tensor from pretraining or declared finetune_only, found {len(report.unexplained)} neither ({names}): use the architecture of the checkpoint")
    check_shapes({n: own[n] for n in loaded}, given)
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(given[name])
    return report


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path = "the checkpoint") -> None:
    """Copies `tensors` into `module`; another architecture is refused with one line."""
    own = module.state_dict()
    for name in own:
        if name not in tensors:
            raise UserError(f"expected the tensor {name} in {where}, found none: use the architecture of the checkpoint")
    for name in tensors:
        if name not in own:
            raise UserError(f"expected no tensor {name}, found one in {where}: use the architecture of the checkpoint")
    check_shapes(own, tensors)
    module.load_state_dict(dict(tensors))


def check_shapes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            raise UserError(f"expected shape {tuple(tensor.shape)} for {name}, found {tuple(given[name].shape)}: use the architecture of the checkpoint")


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
        raise UserError(f"expected {path.name} in {path.parent}, found it missing: copy the checkpoint again")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"expected JSON in {path}, found {error}: copy the checkpoint again") from None
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object in {path}, found {type(value).__name__}: copy the checkpoint again")
    return value


def _check_header(path: Path) -> None:
    """Refuses a file that only bears the name of safetensors (e.g. a pickle) without reading on."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    length = struct.unpack("<Q", head[:8])[0] if len(head) == 9 else 0
    if len(head) < 9 or head[8:] != b"{" or length > size - 8:
        raise UserError(f"expected safetensors in {path}, found another format: only safetensors are read, never pickle")
