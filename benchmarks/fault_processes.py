"""Processes that `faults.py` starts, kills and starves."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from lawm_policy import cli

PAGE = mmap.PAGESIZE  # what a small disk gives away at a time
LONGEST = 900  # seconds: a command that takes longer hangs


class NotStruck(Exception):
    """The fault came too late or not at all, which proves nothing: it is to be drawn again."""


class Answer(NamedTuple):
    status: int | None  # None: it hung
    err: str

    def refusal(self, said: str = "") -> str | None:
        """None where this is one line that says `said` and exit status 2, else what was wrong."""
        if self.status != 2 or self.err.count("\n") != 1 or said not in self.err:
            return f"exit status {self.status}: {self.err[-300:]}"
        return None


# Running commands ----------------------------------------------------------------------------------


def start(argv: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """`lawm ...` in a process of its own, as a user starts it."""
    with log.open("wb") as err:
        command = [sys.executable, "-m", "lawm_policy", *argv]
        own = os.environ | environment
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=own)


def lawm(argv: list[str], log: Path, **environment: str) -> Answer:
    child = start(argv, log, **environment)
    try:
        status = child.wait(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        child.kill()
        return Answer(None, log.read_text())
    return Answer(status, log.read_text(errors="replace"))


def _in_child(argv: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["lawm", *argv]
    sys.exit(cli.main(argv))


def lawm_forked(argv: list[str], folder: Path, environment: dict[str, str]) -> Answer:
    """The same, without the seconds that imports take: for the campaigns that only read answers."""
    log = folder.parent / "answer.txt"
    context = multiprocessing.get_context("forkserver")
    child = context.Process(target=_in_child, args=(argv, environment, folder, log))
    child.start()
    child.join(300)
    if child.exitcode is None:
        child.kill()
    return Answer(child.exitcode, log.read_text(errors="replace"))


def kill_at_random(
    argv: list[str], sign: Path, span: float, rng: np.random.Generator, log: Path
) -> str | None:
    """Starts a command and kills it with -9 up to `span` seconds after `sign` exists."""
    child = start(argv, log)
    while not sign.exists() and child.poll() is None:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, span))
    if child.poll() == 0:
        raise NotStruck("it had ended before it was killed")
    if child.poll() is not None:
        return f"exit status {child.poll()}: {log.read_text()[-300:]}"
    family = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    return f"{len(alive)} worker processes outlived it" if alive else None


def seconds_after(argv: list[str], sign: Path, log: Path) -> float:
    """How long the undisturbed command works after `sign` exists."""
    child = start(argv, log)
    while not sign.exists() and child.poll() is None:
        time.sleep(0.002)
    began = time.monotonic()
    assert child.wait() == 0, log.read_text()
    return time.monotonic() - began


WRITER = """
import sys
from pathlib import Path
import torch
from lawm_policy import checkpoint
run = Path(sys.argv[1])
for step in range(1, 100_000):
    group = {str(i): torch.full((250_000,), float(step)) for i in range(4)}
    checkpoint.save(checkpoint.step_folder(run, step), {"model": group}, {"kind": "k"}, "")
    checkpoint.point(run, "last", step)
    checkpoint.prune(run, 2)
    print(step, flush=True)
"""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={max(size, PAGE)}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    """Only root may, and not in every container."""
    try:
        with tempfile.TemporaryDirectory() as place, small_disk(Path(place) / "disk", PAGE):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
