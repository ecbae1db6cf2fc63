"""`--force`: what lies at `--out` stays there until what replaces it is complete.

The new one is written to `.NAME.lawm-new` beside it, so that there has to be room for both. A command that
fails or is killed leaves the earlier one as it was; `--resume --force` goes on with the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lawm_policy.console import say
from lawm_policy.data.layout import sync
from lawm_policy.data.store_writer import StoreLock
from lawm_policy.runs import check_writable
from lawm_policy.types import UserError


def settle(out: Path) -> None:
    """Ends an exchange that was killed on its way. Call it before asking what there is at `out`."""
    real, new, old = _places(out)
    if not old.exists():
        return
    if not real.exists():
        os.replace(new if new.exists() else old, real)
    if old.exists():
        shutil.rmtree(old)


class Target:
    """Where to write: `out`, or what is to take its place, which it does when it is `complete`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.complete = False


@contextmanager
def replacing(out: Path, *, resume: bool, force: bool) -> Iterator[Target]:
    """`out` itself, unless `force` finds something there. What removes the folder leaves no trace."""
    real, new, old = _places(out)
    if not (force and real.is_dir() and any(real.iterdir()) and (new.exists() or not resume)):
        yield Target(out)
        return
    if real.is_mount() or Path.cwd().is_relative_to(real):
        found = "a mount" if real.is_mount() else "the folder that this was called in"
        raise UserError(f"expected a folder that --force can move, found {found} at {out}: empty it yourself")
    check_writable(new)
    lock = StoreLock(real)  # against whoever writes to it, or replaces it too
    try:
        if new.exists() and not resume:
            shutil.rmtree(new)
        target, kept = Target(new), f"; --resume --force goes on with what was to replace it, in {new}"
        try:
            yield target
        except BaseException:
            if new.exists():
                say(f"{out} is as it was{kept}")
            raise
        if target.complete:
            os.replace(real, old)
            os.replace(new, real)
            sync(real.parent)
            settle(out)
        else:
            say(f"{out} is as it was{kept if new.exists() else ''}")
    finally:
        lock.release()


def _places(out: Path) -> tuple[Path, Path, Path]:
    """Of what is there, of what is to replace it, and of the first while they are exchanged."""
    real = out.resolve()  # a link stays one
    if not real.name:
        raise UserError(f"expected a folder with a name for --out, found {out}: give another")
    return real, real.with_name(f".{real.name}.lawm-new"), real.with_name(f".{real.name}.lawm-old")
