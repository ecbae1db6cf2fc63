"""LIBERO's 130 tasks: instructions, problem files, and the initial states stored with them."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lawm_policy.sim.libero_protocol import split_task
from lawm_policy.types import UserError

TITLES = Path(__file__).with_name("libero_titles.txt")


@dataclass(frozen=True)
class LiberoTask:
    """One task. `title` is LIBERO's own name, which its files carry."""

    name: str  # libero_object-3
    suite: str
    title: str
    problem: Path  # .bddl
    states: Path  # .pruned_init

    @property
    def instruction(self) -> str:
        """The title in words, as every published evaluation gives it (the .bddl's own sentence differs)."""
        return in_words(self.title)


def libero_task(name: str) -> LiberoTask:
    suite, index = split_task(name)
    root = package_folder()
    title = titles()[suite][index]
    return LiberoTask(
        name=name,
        suite=suite,
        title=title,
        problem=root / "bddl_files" / suite / f"{title}.bddl",
        states=root / "init_files" / suite / f"{title}.pruned_init",
    )


def package_folder() -> Path:
    """Where `libero.libero` lies. Looks, and does not import."""
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        from lawm_policy.sim.libero_assets import INSTALL

        raise UserError(f"expected LIBERO to be installed, found no package `libero`: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def read_states(path: Path) -> np.ndarray:
    """(N, 1 + nq + nv) float64: time, positions and velocities of each stored initial state.

    The files are pickles; only NumPy arrays may come out of them, and no code runs.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_array_parts()):
            states = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # pickle.UnpicklingError, and whatever a made-up file provokes
        raise _refused(path, f"{type(error).__name__}: {error}") from None
    if not isinstance(states, np.ndarray) or states.ndim != 2 or states.dtype != np.float64:
        raise _refused(path, f"{type(states).__name__} {getattr(states, 'shape', '')}".strip())
    if not len(states) or not np.isfinite(states).all():
        raise _refused(path, f"numbers that are not finite, or none, in {states.shape}")
    return states


def _refused(path: Path, found: str) -> UserError:
    line = " ".join(found.split())
    return UserError(
        f"expected arrays of initial states in {path}, found {line[:120]}: nothing of it was run; "
        "install hf-libero again"
    )


def _array_parts() -> list[Any]:
    """What a pickled float64 array consists of, and nothing more."""
    rebuild: Any = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    # NumPy 1 wrote it under another module's name.
    old = (rebuild, "numpy.core.multiarray._reconstruct")
    return [rebuild, old, np.ndarray, np.dtype, np.dtypes.Float64DType]


@cache
def titles() -> dict[str, list[str]]:
    """Each suite's tasks, known without LIBERO too: what is imported has one name wherever that is done."""
    found: dict[str, list[str]] = {}
    for line in TITLES.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            suite, title = line.split()
            found.setdefault(suite, []).append(title)
    return found


def task_titled(title: str) -> str | None:
    """libero_object-3; None for what is none of LIBERO's. No two tasks have one title."""
    return next((f"{s}-{known.index(title)}" for s, known in titles().items() if title in known), None)


def in_words(title: str) -> str:
    """KITCHEN_SCENE3_turn_on_the_stove -> turn on the stove"""
    return re.sub(r"^[A-Z_0-9]*SCENE\d+_", "", title).replace("_", " ")
