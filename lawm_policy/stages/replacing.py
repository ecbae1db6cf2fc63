"""`--force`: what lies at `--out` stays there until what replaces it is complete.

The new one is written to `.NAME.lawm-new` beside it. A command that fails or is killed leaves the earlier one
as it was: `--resume` goes on with the new one, `--force` begins it anew.
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


@contextmanager
def replacing(out: Path, *, resume: bool, force: bool) -> Iterator[Path]:
    """The folder to write to: `out`, or one beside it where `force` finds something at `out`, or `resume` a
    replacement that was begun. That takes `out`'s place at the end; who removes it leaves `out` as it was."""
    real, new, old = _places(out)
    taken = real.is_dir() and any(real.iterdir())
    if new.exists() and not (resume or force):
        raise UserError(
            f"expected nothing at {new}, found what was to replace {out}: "
            "add --resume to go on with it or --force to begin anew"
        )
    if not (new.exists() if resume else force and taken):
        if new.exists():
            shutil.rmtree(new)
        yield out
        return
    if real.is_mount():
        raise UserError(f"expected a folder that --force can move, found a mount at {out}: empty it yourself")
    check_writable(new)
    lock = StoreLock(real) if real.exists() else None  # against whoever writes to it, or replaces it too
    try:
        if resume:
            say(f"{out}: going on with what is to replace it, in {new}")
        elif new.exists():
            shutil.rmtree(new)
        try:
            yield new
        except BaseException:
            if new.exists() and taken:
                say(f"{out} is as it was; what was to replace it is in {new}")
            raise
        if new.exists():
            if real.exists():
                os.replace(real, old)
            os.replace(new, real)
            sync(real.parent)
            settle(out)
        elif taken:
            say(f"{out} is as it was")
    finally:
        if lock is not None:
            lock.release()


def _places(out: Path) -> tuple[Path, Path, Path]:
    """Of what is there, of what is to replace it, and of the first while they are exchanged."""
    real = out.resolve()  # a link stays one
    return real, real.with_name(f".{real.name}.lawm-new"), real.with_name(f".{real.name}.lawm-old")
