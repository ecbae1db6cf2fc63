"""Where LIBERO's files are, and how its packages are imported without questions, noise or traces.

`prepare()` comes before any import of `libero` or `robosuite`. Left alone, `libero.libero` asks questions on
standard input and writes `~/.libero`, and robosuite logs to a fixed file in /tmp and warns about macros.

`python -m lawm_policy.sim.libero_assets` (`make libero` runs it) downloads the assets, that is the meshes and
textures that LIBERO's wheel lacks, or says what is left to do.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, cast

from lawm_policy.config import cache_folder
from lawm_policy.console import progress, say
from lawm_policy.sim.rendering import NO_BACKEND, choose_backend
from lawm_policy.types import UserError

# Other versions give other numbers: MuJoCo above 3.3.2 renders and settles differently.
PINNED = {"hf-libero": "0.1.4", "robosuite": "1.4.0", "bddl": "1.0.1", "mujoco": "3.3.2"}
ANY_VERSION = "LAWM_LIBERO_ANY_VERSION"
GIVEN = "LAWM_LIBERO_ASSETS"
INSTALL = "make libero"
PIP = f"(without a clone: pip install 'WHEEL[libero]', then --no-deps hf-libero=={PINNED['hf-libero']})"
REPOSITORY = "lerobot/libero-assets"  # a dataset; its root is the assets folder
CHECKSUMS = "lawm-checksums.json"  # beside the assets, written when all of them have been verified
STAND_INS = "STAND_INS.txt"
POINTER = b"version https://git-lfs"  # what Git leaves in a large file's place where LFS is not installed
NEEDED = Path(__file__).with_name("libero_files.txt")


Facts = tuple[int, str]  # size in bytes, checksum


class NoHub(UserError):
    """The hub did not answer, or refused."""


@dataclass(frozen=True)
class Assets:
    """What lies in a folder of assets."""

    folder: Path
    missing: tuple[str, ...]
    damaged: tuple[str, ...]  # not the size, or not the content, that the hub told; or none at all
    approximated: bool
    verified: bool  # against the hub's checksums, now or (by size alone) when they were downloaded
    pointers: bool = False  # what is damaged was cloned without Git LFS

    @property
    def state(self) -> Literal["complete", "approximated", "missing", "damaged"]:
        if self.missing:
            return "missing"
        if self.damaged:
            return "damaged"
        return "approximated" if self.approximated else "complete"

    @property
    def usable(self) -> bool:
        return not self.missing and not self.damaged

    def __str__(self) -> str:
        if not self.folder.is_dir():
            return f"no folder {self.folder}"
        if wrong := self.missing or self.damaged:
            shown = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            hint = " (Git LFS pointers: `git lfs pull` there)" if self.pointers else ""
            return f"{len(wrong)} files {self.state} in {self.folder}: {shown}{hint}"
        notes = [f"see its {STAND_INS}"] if self.approximated else []
        notes += [] if self.verified else ["no checksums"]
        return f"{self.state} in {self.folder}" + (f" ({', '.join(notes)})" if notes else "")


def versions() -> dict[str, str | None]:
    """What is installed of what decides LIBERO's numbers; None where it is missing."""
    return {name: _version(name) for name in PINNED}


def check_versions() -> None:
    found = versions()
    if missing := [name for name, version in found.items() if version is None]:
        raise UserError(f"expected LIBERO to be installed, found no {', '.join(missing)}: {INSTALL} {PIP}")
    wrong = [name for name, pinned in PINNED.items() if found[name] != pinned]
    if wrong and not os.environ.get(ANY_VERSION):
        expected = ", ".join(f"{name} {PINNED[name]}" for name in wrong)
        present = ", ".join(f"{name} {found[name]}" for name in wrong)
        raise UserError(
            f"expected {expected} for LIBERO's numbers, found {present}: {INSTALL}, "
            f"or {ANY_VERSION}=1 to run all the same"
        )


def assets_folder() -> Path:
    """`$LAWM_LIBERO_ASSETS`, else the folder in our cache that `make libero` downloads to."""
    if given := os.environ.get(GIVEN):
        return Path(given).expanduser().absolute()
    return cache_folder().absolute() / "libero-assets"


def remedy() -> str:
    """What to type where assets are not usable."""
    if os.environ.get(GIVEN):
        return f"mend that folder, or unset {GIVEN} and run {INSTALL}"
    return f"{INSTALL} (without a clone: python -m lawm_policy.sim.libero_assets)"


def examine(folder: Path, *, thorough: bool = False) -> Assets:
    """Looks at names, and at sizes where the hub's are known (milliseconds); `thorough` also at contents."""
    needed = _needed()
    try:
        files = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        record = {name: (size, checksum) for name, (size, checksum) in files.items()}
    except FileNotFoundError:
        record = {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged: download again, verified
        record = {CHECKSUMS: (-1, "")}
    missing = [name for name in sorted({*needed, *record}) if not (folder / name).is_file()]
    damaged = [
        name
        for name, (size, checksum) in record.items()
        if name not in missing and not _intact(folder / name, size, checksum if thorough else None)
    ]
    unknown = [name for name in needed if name not in record and name not in missing]  # copied by hand
    starts = {name: _start(folder / name, len(POINTER)) for name in unknown}
    damaged += [name for name, start in starts.items() if start in (b"", POINTER)]
    approximated, pointers = (folder / STAND_INS).is_file(), POINTER in starts.values()
    return Assets(folder, tuple(missing), tuple(damaged), approximated, bool(record), pointers)


def _needed() -> list[str]:
    return [line for line in NEEDED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _start(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:  # as good as empty
        return b""


def described() -> dict[str, str | None]:
    """What decides how things look, for the protocol: stand-ins give other pixels than the hub's files."""
    folder = assets_folder()
    try:
        revision = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        revision = None
    return {"state": examine(folder).state, "revision": revision}


def check_ready() -> Path:
    """The assets folder; UserError where LIBERO or its assets are not as they must be. Imports nothing."""
    check_versions()
    assets = examine(assets_folder())
    if not assets.usable:
        raise UserError(f"expected LIBERO's assets, found {assets}: {remedy()}")
    return assets.folder


def prepare() -> Path:
    """Makes `libero` and `robosuite` importable in this process, silently; returns the assets folder.

    Cheap when called again. Raises UserError where LIBERO or its assets are not as they must be.
    """
    assets = check_ready()
    backend = choose_backend()
    os.environ["LIBERO_CONFIG_PATH"] = str(_config_folder(assets))
    for name in (
        "bddl",
        "libero",
        "robosuite",
    ):  # escapes that Python 3.12 and later remark on, once compiled
        warnings.filterwarnings("ignore", category=SyntaxWarning, module=re.escape(str(_package(name))))
    if "robosuite" not in sys.modules:
        _quieten_robosuite(backend)
    import libero.libero

    libero.libero._assets_path_cache = str(assets)  # the configuration's `assets` is not read
    return assets


def _config_folder(assets: Path) -> Path:
    """A folder with the config.yaml that LIBERO reads, named by its content: never changed once written."""
    root = _package("libero") / "libero"
    places = {"bddl_files": root / "bddl_files", "init_states": root / "init_files", "assets": assets}
    places |= {"benchmark_root": root, "datasets": cache_folder().absolute() / "libero-datasets"}
    text = json.dumps({key: str(path) for key, path in places.items()}, indent=1)  # JSON is YAML
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache_folder().absolute() / "libero-config" / name
    if not (folder / "config.yaml").exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "config.yaml", text)
        except OSError as error:
            raise UserError(f"expected to write {folder}, found {error.strerror}: set LAWM_CACHE") from error
    return folder


def _quieten_robosuite(backend: str) -> None:
    """Its errors stay; its advice on macros, and its log in /tmp that belongs to whoever came first, go."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    spec = importlib.util.spec_from_file_location("robosuite.macros", _package("robosuite") / "macros.py")
    assert spec and spec.loader
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    # Left on, it would overwrite MUJOCO_GL with egl.
    macros.MUJOCO_GPU_RENDERING = backend not in (NO_BACKEND, "glfw")  # type: ignore[attr-defined]
    sys.modules["robosuite.macros"] = macros
    import robosuite

    robosuite.macros = macros


def fetch(folder: Path) -> Assets:
    """Downloads what is missing or damaged, and verifies everything; goes on where an earlier run stopped."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # a bar for each of hundreds of files; ours shows the whole
    # The base stands for lost connections: httpx's or requests', whichever the hub's client is built on.
    failures = (OSError, cast("type[Exception]", HfHubHTTPError.__bases__[0]))
    try:
        with _lock(folder):
            revision, wanted = _listing()
            todo = [name for name, facts in wanted.items() if not _intact(folder / name, *facts)]
            _download(folder, revision, {name: wanted[name] for name in todo})
            _write(folder / CHECKSUMS, json.dumps({"revision": revision, "files": wanted}, indent=1))
            shutil.rmtree(
                folder / ".cache", ignore_errors=True
            )  # the hub client's notes, and what it left half
    except failures as error:
        raise _what_to_do(folder, error) from error
    return examine(folder)


def _listing() -> tuple[str, dict[str, Facts]]:
    import huggingface_hub

    info = huggingface_hub.HfApi().dataset_info(REPOSITORY, files_metadata=True, timeout=20)
    wanted: dict[str, Facts] = {}
    for file in info.siblings or ():
        path = PurePosixPath(file.rfilename)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"expected files inside {REPOSITORY}, found {file.rfilename}: report it there")
        if not file.rfilename.startswith("."):  # .gitattributes and the like
            wanted[file.rfilename] = (file.size or 0, (file.lfs.sha256 if file.lfs else file.blob_id) or "")
    return info.sha or "main", wanted


def _download(folder: Path, revision: str, todo: dict[str, Facts]) -> None:
    import huggingface_hub

    total = sum(size for size, _ in todo.values())
    if todo:
        say(f"Downloading LIBERO's assets: {len(todo)} files, {total / 1e6:.0f} MB, to {folder}")
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"expected {total} bytes free in {folder}, found {free}: free some, or set LAWM_CACHE"
        )

    def download(name: str) -> int:
        for again in (False, True):  # what arrives damaged is asked for once more
            (folder / name).unlink(missing_ok=True)
            huggingface_hub.hf_hub_download(
                REPOSITORY,
                name,
                repo_type="dataset",
                revision=revision,
                local_dir=folder,
                force_download=again,
            )
            if _intact(folder / name, *todo[name]):
                return todo[name][0]
        (folder / name).unlink()
        raise UserError(
            f"expected {name} from the hub with checksum {todo[name][1]}, found other content twice: "
            f"run {INSTALL} again later"
        )

    pool, wait = ThreadPoolExecutor(8), True
    try:
        with progress("LIBERO's assets", total / 1e6, unit="MB") as bar:
            for size in pool.map(download, todo):
                bar.advance(size / 1e6)
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


def _what_to_do(folder: Path, error: Exception) -> UserError:
    """What to do where the download cannot be done from here."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return UserError(f"expected to write {folder}, found {error.strerror}: mend that, or set LAWM_CACHE")
    said = (str(error).strip().splitlines() or [""])[0]
    assets = examine(folder)
    begun = len(assets.missing) < len(_needed())
    go_on = f"{INSTALL} goes on where it stopped ({assets}); or " if begun else ""
    return NoHub(
        f"expected LIBERO's assets from the hub, found {type(error).__name__} {said}: "
        f"{go_on}elsewhere run `hf download {REPOSITORY} --repo-type dataset --local-dir libero-assets` "
        f"(pip install huggingface_hub), and copy that folder to {folder}, or set {GIVEN} to it"
    )


def _intact(path: Path, size: int, checksum: str | None) -> bool:
    """Git's hash for small files, SHA-256 for large ones; without a checksum, the size has to do."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    if checksum is None:
        return True
    digest = hashlib.sha256() if len(checksum) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest() == checksum


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One download at a time; the kernel frees a dead process's lock."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _package(name: str) -> Path:
    """Its folder, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"expected the package {name}, found none: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    """What `make libero` ends with."""
    try:
        check_versions()
        assets = examine(assets_folder(), thorough=True)
        if not os.environ.get(GIVEN) and not (assets.usable and assets.verified):
            assets = _fetch_or_do_without(assets)
        if not assets.usable:
            raise UserError(f"expected all of LIBERO's assets, found {assets}: {remedy()}")
    except UserError as error:
        say(f"libero: {error}")
        return 2
    except KeyboardInterrupt:
        say(f"libero: interrupted: {INSTALL} goes on where it stopped")
        os._exit(130)  # at once: an ordinary end waits for the downloads that are under way
    say(f"LIBERO's assets: {assets}")
    return 0


def _fetch_or_do_without(assets: Assets) -> Assets:
    """A folder that was copied here has no checksums yet; without a network its names have to do."""
    try:
        return fetch(assets.folder)
    except NoHub:
        if not assets.usable:
            raise
        return assets


if __name__ == "__main__":
    sys.exit(main())
