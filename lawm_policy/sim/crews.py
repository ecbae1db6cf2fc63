"""The two ends of a worker: the desk where the work is done, and the crew's end that tells and hears it.

A local worker is a spawned process behind a pipe; `crews_ray.py` has those of a Ray cluster.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sysconfig
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import isgenerator
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from lawm_policy.types import UserError

# told: job, answer, fault; said: ready, mistake, failed, question, result, error
Message = tuple[str, Any]


class Lost(Exception):
    """A worker is gone; the text says how, where that is known."""


def load_function(spec: str) -> Any:
    """The function that "module:function" names."""
    module, colon, name = spec.partition(":")
    try:
        if not colon:
            raise AttributeError("no colon")
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f'expected "module:function", found {spec!r} ({error})') from error


def one_line(error: BaseException) -> str:
    """`Type: message (file:line)`, the place being the last one outside the standard library."""
    frames = traceback.extract_tb(error.__traceback__)
    library = sysconfig.get_path("stdlib")
    packages = sysconfig.get_path("purelib")
    ours = [f for f in frames if not f.filename.startswith(library) or f.filename.startswith(packages)]
    last = (ours or frames)[-1:]
    place = "".join(f" ({os.path.basename(frame.filename)}:{frame.lineno})" for frame in last)
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


# --- where the work is done ---------------------------------------------------------------------


class Desk:
    """A worker's own end, wherever it sits: is told one thing, says one thing."""

    def __init__(self, setup: str, arguments: Mapping[str, Any]) -> None:
        self._setup, self._arguments = setup, dict(arguments)
        self._work: Any = load_function(setup)(**arguments)
        self._asking: Generator[Any, Any, Any] | None = None

    def tell(self, message: Message) -> Message:
        told, value = message
        try:
            if told == "job":
                self._asking = None
                if self._work is None:
                    self._work = load_function(self._setup)(**self._arguments)
                done = self._work(value)
                if not isgenerator(done):
                    return "result", done
                self._asking = done
                return "question", next(done)
            assert self._asking is not None
            if told == "fault":
                return "question", self._asking.throw(RuntimeError(value))
            return "question", self._asking.send(value)
        except Exception as error:
            if isinstance(error, StopIteration) and self._asking is not None:
                return "result", error.value
            line, spoilt = one_line(error), not getattr(error, "harmless", False)
        if spoilt:  # what a failed job leaves behind must not reach the next one (and the error held it)
            self.close()
        return "error", line

    def close(self) -> None:
        """Lets go of what it holds (simulators, GL contexts) now: not when the collector comes by."""
        getattr(self._work, "close", lambda: None)()
        self._work = self._asking = None
        gc.collect()


def open_desk(setup: str, arguments: Mapping[str, Any]) -> tuple[Desk | None, Message]:
    """The desk, and the first thing that a worker says."""
    try:
        return Desk(setup, arguments), ("ready", None)
    except UserError as error:
        return None, ("mistake", str(error))
    except Exception as error:
        traceback.print_exc()
        return None, ("failed", one_line(error))


# --- who does it --------------------------------------------------------------------------------


class Worker(ABC):
    """The parent's end of one worker. `index` is the job it is at, None while it has none."""

    def __init__(self, setup_seconds: float) -> None:
        self.ready = False
        self.done: set[Hashable] = set()  # kinds of jobs
        self.index: int | None = None
        self.deadline = time.monotonic() + setup_seconds

    @property
    def busy(self) -> bool:
        return self.index is not None or not self.ready

    @abstractmethod
    def tell(self, message: Message) -> None:
        """A job, or what answers its question."""

    @abstractmethod
    def hear(self) -> Message:
        """What it said, or `Lost`."""

    @abstractmethod
    def end(self) -> str:
        """Kills it if need be; says how it ended."""


class Crew(Protocol):
    """Hires workers of one kind."""

    def size(self, jobs: int) -> int: ...

    def hire(self, setup: str, arguments: Mapping[str, Any], setup_seconds: float) -> Worker: ...

    def speaking(self, workers: Sequence[Any], timeout: float) -> list[Worker]:
        """Those that have said something, or are gone."""
        ...


class LocalWorker(Worker):
    def __init__(self, setup: str, arguments: Mapping[str, Any], setup_seconds: float) -> None:
        super().__init__(setup_seconds)
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, setup, dict(arguments)), daemon=True)
        with _single_threaded_children():
            self.process.start()
        theirs.close()  # else its death would not end the pipe

    def tell(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # dead already: its closed pipe is read next
            self.pipe.send(message)

    def hear(self) -> Message:
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            raise Lost from None
        return message

    def end(self) -> str:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


@dataclass(frozen=True)
class LocalCrew:
    workers: int

    def size(self, jobs: int) -> int:
        return min(self.workers, jobs)

    def hire(self, setup: str, arguments: Mapping[str, Any], setup_seconds: float) -> Worker:
        return LocalWorker(setup, arguments, setup_seconds)

    def speaking(self, workers: Sequence[LocalWorker], timeout: float) -> list[Worker]:
        ready = wait([worker.pipe for worker in workers], timeout=timeout)
        return [worker for worker in workers if worker.pipe in ready]


def _serve(pipe: Connection, setup: str, arguments: dict[str, Any]) -> None:
    """A local worker's life. It ends when the parent's end of the pipe closes, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    desk, first = open_desk(setup, arguments)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        pipe.send(first)
        while desk is not None:
            pipe.send(desk.tell(pipe.recv()))


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """One thread a worker: several would fight for the cores, and sums depend on their number."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
