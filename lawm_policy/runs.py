"""Run folders: what may be written where, and what made it (versions, data, hardware)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lawm_policy
from lawm_policy import config as configuration
from lawm_policy.types import UserError

PACKAGES = (
    "accelerate",
    "av",
    "bddl",
    "gymnasium",
    "hf-libero",
    "mujoco",
    "numpy",
    "pyarrow",
    "robosuite",
    "safetensors",
    "torch",
    "transformers",
)
CONFIG, VERSIONS = "config.yaml", "versions.json"
WORLD = "world"  # in a pretraining run, the run of what learnt before the policy


def check_out(
    out: str | Path, *, resume: bool = False, force: bool = False, marker: str = "versions.json"
) -> Path:
    """Refuses an output folder that holds something, unless it is to be resumed or overwritten.

    Writes nothing, so that a stage can call it first and still refuse its other arguments. `marker`
    is a file that shows the folder to be a former output, which may be overwritten.
    """
    out = Path(out)
    if not _first_process():
        return out
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder for the output, found a file at {out}: give another --out")
    if out.is_dir() and any(out.iterdir()):
        if force and not (out / marker).is_file():  # never remove what this program did not make
            raise UserError(
                f"expected {marker} in {out} to overwrite it, found other files: give another --out"
            )
        if not (resume or force):
            former = ", --resume or --force" if (out / marker).is_file() else ""
            raise UserError(f"expected a new folder at {out}, found files in it: give another --out{former}")
    check_writable(out)
    return out


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuses a folder that cannot be written or made. Asked of a file without a name, that leaves nothing:
    permissions do not say it all."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(
            f"expected a folder that can be written at {there}, found that it cannot ({error.strerror}): "
            f"give another {option}"
        ) from None


def check_file(path: Path, option: str, *, force: bool) -> None:
    """Refuses a file to be written that exists, unless it is to be replaced, or that cannot be made."""
    if path.is_dir():
        raise UserError(f"expected a file for {option}, found the folder {path}: give a name in it")
    if path.exists() and not force:
        raise UserError(f"expected a new file, found {path}: add --force or choose another {option}")
    check_writable(path.absolute().parent, option)


def open_run(
    out: str | Path,
    config: Any,
    *,
    data: Mapping[str, str] | None = None,
    seeds: Mapping[str, int] | None = None,
    asked: Mapping[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
) -> Path:
    """Creates the folder with `config.yaml` and `versions.json`; a resumed run must ask for the same.

    `data` maps each store's name to its fingerprint, and the run that it starts from to its hash. `asked` is
    what else decides the result.
    """
    out = check_out(out, resume=resume, force=force)
    if not _first_process():
        return out
    if force and not resume and out.exists():
        shutil.rmtree(out)
    fingerprints, asked = dict(data or {}), dict(asked or {})
    if (out / VERSIONS).is_file():
        _check_same(out, config, fingerprints, asked)
        return out
    others = [p for p in out.iterdir() if p.name != CONFIG and p.name[0] != "."] if out.is_dir() else []
    if others:
        raise UserError(f"expected a run at {out} to resume, found other files: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    record = versions(data=fingerprints, seeds=seeds) | {"asked": asked}
    write_text(out / CONFIG, configuration.dump(config))
    write_text(out / VERSIONS, json.dumps(record, indent=1) + "\n")
    return out


def read_record(path: Path, do: str) -> dict[str, Any]:
    """The JSON object that a stage wrote at `path`. Found damaged, the error says what to `do`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"expected JSON in {path}, found something else ({error}): {do}") from None
    if not isinstance(found, dict):
        raise UserError(f"expected a JSON object in {path}, found a {type(found).__name__}: {do}")
    return found


def _check_same(out: Path, config: Any, fingerprints: Mapping[str, str], asked: Mapping[str, Any]) -> None:
    """A run goes on as what it is, or not at all."""
    try:
        texts = {name: (out / name).read_text(encoding="utf-8") for name in (CONFIG, VERSIONS)}
        found, record = (
            configuration.parse_yaml(texts[name], str(out / name)) for name in (CONFIG, VERSIONS)
        )
        data = list(record["data"].values())
        key = configuration.difference(found, configuration.parse_yaml(configuration.dump(config), "it"))
        before = record.get("asked", asked)  # runs of before did not write it down
        key = key or configuration.difference(before, asked)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"expected a run's record in {out}, found it damaged ({reason}): give another --out"
        ) from None
    if key:
        raise UserError(
            f"expected the configuration of {out} to resume it, found another {key}: give another --out"
        )
    if data != list(fingerprints.values()):  # the same stores, wherever they lie now
        raise UserError(
            f"expected the data of {out} and the run that it starts from to resume it, found others: "
            "give another --out"
        )


def versions(
    *, data: Mapping[str, str] | None = None, seeds: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Everything that made a result: packages, commit, data, seeds, command line, hardware."""
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "lawm_policy": lawm_policy.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": packages,
        "data": dict(data or {}),
        "seeds": dict(seeds or {}),
        "command": " ".join(["lawm", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hardware": hardware(),
    }


def commit() -> str | None:
    """The commit of the clone this runs from (`+` where its files differ, other than results of benchmarks),
    None when installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:  # a repository without a commit
        return None
    code = ["--untracked-files=no", "--", ".", ":!benchmarks/results"]
    dirty = subprocess.run([*git, "status", "--porcelain", *code], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory, graphics card."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus: list[str] = []
    if "torch" in sys.modules:  # without torch nothing used a GPU
        cuda = sys.modules["torch"].cuda
        gpus = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_gb": round(memory, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _first_process() -> bool:
    """False in all but one of the processes that a launcher started; the one looks after the folder."""
    return os.environ.get("RANK", "0") == "0"


def write_text(path: Path, text: str) -> None:
    """Replaces `path` atomically: a reader sees the old text or the new, also after a crash."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
