"""Progress for long work: a bar with a rate and an estimate on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = 60.0  # seconds between two lines where no terminal is


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


class Lines(Bar):
    """For a log file."""

    def __init__(self, what: str, total: float | None, unit: str, done: float):
        super().__init__()
        self.what, self.total, self.unit, self.before = what, total, unit, done
        self.note, self.said = "", self.started

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        super().advance(amount)
        self.note = self.note if note is None else note
        if time.monotonic() - self.said >= QUIET:
            self.said = time.monotonic()
            say(str(self))

    def __str__(self) -> str:
        here = self.before + self.done
        of = "" if self.total is None else f" of {self.total:.0f}"
        parts = [f"{self.what}: {here:.0f}{of} {self.unit}".rstrip()]
        if self.total is not None and self.done:
            parts.append(f"{(self.total - here) / self.rate / 60:.0f} minutes left")
        return ", ".join([*parts, *filter(None, [self.note])])


def interactive() -> bool:
    """True where someone watches; of several processes of one launch, only the first may draw."""
    return sys.stderr.isatty() and _first()


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(what: str, total: float | None = None, *, unit: str = "", done: float = 0) -> Iterator[Bar]:
    """`with progress("collect", 100) as bar: bar.advance()`. `done` was finished by an earlier run."""
    if not interactive():
        yield Lines(what, total, unit, done) if _first() else Bar()
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
