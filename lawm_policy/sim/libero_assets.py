"""Where LIBERO's files are, and how its packages are imported without questions, noise or traces.

`prepare()` comes before any import of `libero` or `robosuite`. Left alone, `libero.libero` asks questions on
standard input and writes `~/.libero`, and robosuite logs to a fixed file in /tmp and warns about macros.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

from lawm_policy.sim.rendering import NO_BACKEND, choose_backend
from lawm_policy.types import UserError

# Other versions give other numbers: MuJoCo above 3.3.2 renders and settles differently.
PINNED = {"hf-libero": "0.1.4", "robosuite": "1.4.0", "bddl": "1.0.1", "mujoco": "3.3.2"}
ANY_VERSION = "LAWM_LIBERO_ANY_VERSION"
INSTALL = "make libero"


def versions() -> dict[str, str | None]:
    """What is installed of what decides LIBERO's numbers; None where it is missing."""
    return {name: _version(name) for name in PINNED}


def assets_folder() -> Path:
    """`$LAWM_LIBERO_ASSETS`, else the folder in our cache that `make libero` downloads to."""
    if given := os.environ.get("LAWM_LIBERO_ASSETS"):
        return Path(given).expanduser().absolute()
    return _cache_root() / "libero-assets"


def prepare() -> Path:
    """Makes `libero` and `robosuite` importable in this process, silently; returns the assets folder.

    Cheap when called again. Raises UserError where LIBERO or its assets are not as they must be.
    """
    check_versions()
    assets = assets_folder()
    if not (assets / "scenes").is_dir():
        raise UserError(
            f"expected LIBERO's assets in {assets}, found none: {INSTALL}, or set LAWM_LIBERO_ASSETS"
        )
    backend = choose_backend()
    os.environ["LIBERO_CONFIG_PATH"] = str(_config_folder(assets))
    if "robosuite" not in sys.modules:
        _quieten_robosuite(backend)
    import libero.libero

    libero.libero._assets_path_cache = str(assets)  # the configuration's `assets` is not read
    return assets


def check_versions() -> None:
    found = versions()
    if missing := [name for name, version in found.items() if version is None]:
        raise UserError(f"expected LIBERO to be installed, found no {', '.join(missing)}: {INSTALL}")
    wrong = [f"{name} {found[name]}" for name, pinned in PINNED.items() if found[name] != pinned]
    if wrong and not os.environ.get(ANY_VERSION):
        expected = ", ".join(f"{name} {PINNED[name]}" for name in (w.split()[0] for w in wrong))
        raise UserError(
            f"expected {expected} for LIBERO's numbers, found {', '.join(wrong)}: {INSTALL}, "
            f"or {ANY_VERSION}=1 to run all the same"
        )


def _config_folder(assets: Path) -> Path:
    """A folder with the config.yaml that LIBERO reads, named by its content: never changed once written."""
    spec = importlib.util.find_spec("libero")
    assert spec and spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations))) / "libero"
    places = {"bddl_files": root / "bddl_files", "init_states": root / "init_files", "assets": assets}
    places |= {"benchmark_root": root, "datasets": _cache_root() / "libero-datasets"}
    text = json.dumps({key: str(path) for key, path in places.items()}, indent=1)  # JSON is YAML
    folder = _cache_root() / "libero-config" / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (folder / "config.yaml").exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"config.{os.getpid()}.part"
            part.write_text(text, encoding="utf-8")
            os.replace(part, folder / "config.yaml")
        except OSError as error:
            raise UserError(f"expected to write {folder}, found {error.strerror}: set LAWM_CACHE") from error
    return folder


def _quieten_robosuite(backend: str) -> None:
    """Its errors stay; its advice on macros, and its log in /tmp that belongs to whoever came first, go."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    package = importlib.util.find_spec("robosuite")
    assert package and package.submodule_search_locations
    path = Path(next(iter(package.submodule_search_locations))) / "macros.py"
    spec = importlib.util.spec_from_file_location("robosuite.macros", path)
    assert spec and spec.loader
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    # It would overwrite MUJOCO_GL with egl.
    macros.MUJOCO_GPU_RENDERING = backend not in (NO_BACKEND, "glfw")  # type: ignore[attr-defined]
    sys.modules["robosuite.macros"] = macros
    import robosuite

    robosuite.macros = macros


def _cache_root() -> Path:
    from lawm_policy.data.cache import cache_folder

    return cache_folder().parent


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
