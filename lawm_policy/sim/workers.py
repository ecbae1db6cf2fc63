"""Simulators in worker processes: jobs in, results out, whatever happens to a worker.

A worker is a fresh (spawned) process, so it owns its GL context, its policy and its threads.
It calls `setup(**arguments)` once, which returns the function that does one job. Its death or silence
costs one retry of one job, never the run. An exception in a job is that job's error, and costs the worker a
new set-up (after `close` of what it had), but where the exception says that it is `harmless`.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from multiprocessing.connection import Connection, wait
from typing import Any

from lawm_policy.types import UserError

ATTEMPTS = 2  # a worker that dies or hangs may have been unlucky; twice is the job's fault


@dataclass(frozen=True)
class Outcome:
    """What became of job number `index`: `error` is one line, or None beside a `result`."""

    index: int
    result: Any = None
    error: str | None = None


class SetupError(RuntimeError):
    """A worker could not begin: the fault is in the set-up, not in any one job."""


def run_jobs(
    setup: str,
    arguments: Mapping[str, Any],
    jobs: Sequence[Any],
    *,
    workers: int,
    job_seconds: float = 600.0,
    setup_seconds: float = 300.0,
    kind: Callable[[Any], Hashable] | None = None,
) -> Iterator[Outcome]:
    """Does `jobs` with `setup` ("module:function"); yields each outcome as it ends, in any order.

    `workers=0` does them here, one after another: for a debugger. Where a worker is faster at the `kind` of
    job that it has done before, it gets jobs of that kind first, and then of a kind that nobody has done.
    """
    if workers == 0:
        work = load_function(setup)(**arguments)
        for index, job in enumerate(jobs):
            try:
                outcome = Outcome(index, work(job))
            except Exception as error:
                outcome = Outcome(index, error=one_line(error))
                if not getattr(error, "harmless", False):  # as a worker does: nothing leaks
                    _end(work)
                    work = load_function(setup)(**arguments)
            yield outcome
        _end(work)
        return
    kinds = [kind(job) if kind else None for job in jobs]
    pool = _Pool(setup, arguments, jobs, kinds, min(workers, len(jobs)), job_seconds, setup_seconds)
    try:
        yield from pool.run()
    finally:
        pool.close()


def _end(work: Any) -> None:
    """Lets go of what it holds (simulators, GL contexts) now: not when the collector comes by."""
    close = getattr(work, "close", None)
    if close is not None:
        close()
    gc.collect()


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
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


class _Worker:
    """The parent's end of one process. `index` is the job it is at, None while it has none."""

    def __init__(self, setup: str, arguments: Mapping[str, Any], setup_seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, setup, dict(arguments)), daemon=True)
        with _single_threaded_children():
            self.process.start()
        theirs.close()  # else its death would not end the pipe
        self.ready = False
        self.done: set[Hashable] = set()  # kinds of jobs
        self.index: int | None = None
        self.deadline = time.monotonic() + setup_seconds

    def give(self, index: int, job: Any, seconds: float) -> None:
        self.index = index
        self.deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):  # dead already: its closed pipe is read next
            self.pipe.send((index, job))

    def end(self) -> str:
        """Kills it if need be; says how it ended."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


class _Pool:
    def __init__(
        self,
        setup: str,
        arguments: Mapping[str, Any],
        jobs: Sequence[Any],
        kinds: Sequence[Hashable],
        workers: int,
        job_seconds: float,
        setup_seconds: float,
    ) -> None:
        self.setup, self.arguments, self.jobs, self.kinds = setup, arguments, jobs, kinds
        self.job_seconds, self.setup_seconds = job_seconds, setup_seconds
        self.waiting = deque(range(len(jobs)))
        self.attempts = [0] * len(jobs)
        self.left = len(jobs)
        self.workers = [self._start() for _ in range(workers)]

    def run(self) -> Iterator[Outcome]:
        while self.left:
            soonest = min((w.deadline for w in self.workers if self._busy(w)), default=time.monotonic() + 1)
            ready = wait([w.pipe for w in self.workers], timeout=max(0.0, soonest - time.monotonic()))
            for worker in list(self.workers):
                if worker.pipe in ready:
                    outcome = self._hear(worker)
                elif self._busy(worker) and time.monotonic() > worker.deadline:
                    outcome = self._lost(worker, hung=True)
                else:
                    continue
                if outcome is not None:
                    self.left -= 1
                    yield outcome

    def close(self) -> None:
        for worker in self.workers:
            worker.end()

    def _start(self) -> _Worker:
        return _Worker(self.setup, self.arguments, self.setup_seconds)

    def _busy(self, worker: _Worker) -> bool:
        return worker.index is not None or not worker.ready

    def _hear(self, worker: _Worker) -> Outcome | None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            return self._lost(worker, hung=False)
        outcome = None
        if kind == "mistake":
            raise UserError(value)
        if kind == "failed":
            raise SetupError(value)
        if kind == "ready":
            worker.ready = True
        elif worker.index is not None:
            outcome = Outcome(worker.index, **{kind: value})
        worker.index = None
        if self.waiting:
            index = self._next(worker)
            self.waiting.remove(index)
            self.attempts[index] += 1
            worker.done.add(self.kinds[index])
            worker.give(index, self.jobs[index], self.job_seconds)
        return outcome

    def _next(self, worker: _Worker) -> int:
        """The first job of a kind that it has done, else that nobody has done, else the first."""
        known = set[Hashable]().union(*(w.done for w in self.workers))
        own = (index for index in self.waiting if self.kinds[index] in worker.done)
        new = (index for index in self.waiting if self.kinds[index] not in known)
        return next(chain(own, new, self.waiting))

    def _lost(self, worker: _Worker, hung: bool) -> Outcome | None:
        how = worker.end()
        limit = self.job_seconds if worker.ready else self.setup_seconds
        what = f"worker said nothing for {limit:.0f} s" if hung else f"worker died with {how}"
        if not worker.ready:
            raise SetupError(f"{what} while it set up")
        index = worker.index
        outcome = None
        if index is not None and self.attempts[index] < ATTEMPTS:
            self.waiting.appendleft(index)
        elif index is not None:
            outcome = Outcome(index, error=f"{what}, {ATTEMPTS} times")
        self.workers.remove(worker)
        if self.waiting:
            self.workers.append(self._start())
        return outcome


def _serve(pipe: Connection, setup: str, arguments: dict[str, Any]) -> None:
    """The worker's life. It ends when the parent's end of the pipe closes, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        work = load_function(setup)(**arguments)
    except UserError as error:
        pipe.send(("mistake", str(error)))
        return
    except Exception as error:
        traceback.print_exc()
        pipe.send(("failed", one_line(error)))
        return
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        pipe.send(("ready", None))
        while True:
            _, job = pipe.recv()
            try:
                answer, spoilt = ("result", work(job)), False
            except Exception as error:
                answer, spoilt = ("error", one_line(error)), not getattr(error, "harmless", False)
            pipe.send(answer)
            if spoilt:  # what a failed job leaves behind must not reach the next one
                _end(work)
                del work
                work = load_function(setup)(**arguments)


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
