"""Progress for long work: a bar with a rate and an estimate on a terminal, silence elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Bar:
    """What a stage tells about its progress. `note` is shown after the bar, e.g. a success rate."""

    def __init__(self) -> None:
        self.done = 0.0
        self.started = time.monotonic()

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.done += amount

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)


def interactive() -> bool:
    """True where someone watches; of several processes of one launch, only the first may draw."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(what: str, total: float | None = None, *, unit: str = "", done: float = 0) -> Iterator[Bar]:
    """`with progress("collect", 100) as bar: bar.advance()`. `done` was finished by an earlier run."""
    if not interactive():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(what, total=total, completed=int(done), rate="", note="")

        class Shown(Bar):
            def advance(self, amount: float = 1, note: str | None = None) -> None:
                super().advance(amount, note)
                display.update(task, advance=amount, rate=f"{self.rate:.1f} {unit}/s")
                if note is not None:
                    display.update(task, note=note)

        yield Shown()


def say(message: str) -> None:
    """One line for the person at the keyboard (standard error, so that output can be piped)."""
    print(message, file=sys.stderr, flush=True)
