"""Simulators in worker processes: jobs in, results out, whatever happens to a worker.

A worker is a fresh (spawned) process, here or on a Ray cluster, so it owns its GL context, its policy and
its threads. It calls `setup(**arguments)` once, which returns the function that does one job. Where that
function is a generator, what it yields are questions: whoever called `run_jobs` answers them, those of many
workers at once; one who never answers ends the run. A worker's death or silence costs one retry of one job,
never the run. An exception in a job is that job's error, and costs the worker a new set-up (after `close` of
what it had), but where the exception says that it is `harmless`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from threading import Thread
from typing import Any

from lawm_policy.sim.crews import Crew, Desk, LocalCrew, Lost, Message, Worker, one_line
from lawm_policy.types import UserError

ATTEMPTS = 2  # a worker that dies or hangs may have been unlucky; twice is the job's fault
SPARES = 2  # workers hired for those lost while they set up, where others have set up before
Answer = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of job number `index`: `error` is one line, or None beside a `result`."""

    index: int
    result: Any = None
    error: str | None = None


class SetupError(RuntimeError):
    """A worker could not begin: the fault is in the set-up, not in any one job."""


def cuda_in_use() -> bool:
    """Whether this process may open no simulator: OpenGL and CUDA do not go together."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def check_workers(workers: int | str) -> None:
    """Refuses, before anything is made, what `run_jobs` would refuse."""
    if isinstance(workers, str):
        from lawm_policy.sim.crews_ray import cluster

        cluster(workers)
    elif workers < 0:
        raise UserError(f"expected --workers of at least 0, found {workers}")


def run_jobs(
    setup: str,
    arguments: Mapping[str, Any],
    jobs: Sequence[Any],
    *,
    workers: int | str,
    job_seconds: float = 600.0,
    setup_seconds: float = 300.0,
    kind: Callable[[Any], Hashable] | None = None,
    answer: Answer | None = None,
) -> Iterator[Outcome]:
    """Does `jobs` with `setup` ("module:function"); yields each outcome as it ends, in any order.

    `workers=0` does them here, one after another: for a debugger; "ray://HOST:PORT" on a Ray cluster. Where
    a worker is faster at the `kind` of job that it has done before, it gets jobs of that kind first, and then
    of a kind that nobody has done.
    """
    kinds = [kind(job) if kind else None for job in jobs]
    if workers == 0:
        desk = Desk(setup, arguments)
        try:
            for index in sorted(range(len(jobs)), key=lambda index: kinds.index(kinds[index])):
                said, value = desk.tell(("job", jobs[index]))
                while said == "question":
                    [told] = _answers(answer, [value])
                    said, value = desk.tell(told)
                yield Outcome(index, **{said: value})
        finally:
            desk.close()
        return
    with _crew(workers) as crew:
        pool = _Pool(crew, setup, arguments, jobs, kinds, job_seconds, setup_seconds, answer)
        try:
            yield from pool.run()
        finally:
            pool.close()


def _answers(answer: Answer | None, questions: list[Any]) -> list[Message]:
    """What to tell those who asked. A fault of the one who answers is an error of the job that asked, once it
    is known which did."""
    try:
        if answer is None:
            raise RuntimeError("nobody answers questions here")
        return [("answer", value) for _, value in zip(questions, answer(questions), strict=True)]
    except Exception as error:
        if len(questions) > 1:
            return [told for question in questions for told in _answers(answer, [question])]
        return [("fault", one_line(error))]


@contextlib.contextmanager
def _crew(workers: int | str) -> Iterator[Crew]:
    if isinstance(workers, int):
        yield LocalCrew(workers)
        return
    from lawm_policy.sim.crews_ray import ray_crew

    with ray_crew(workers) as crew:
        yield crew


class _Pool:
    def __init__(
        self,
        crew: Crew,
        setup: str,
        arguments: Mapping[str, Any],
        jobs: Sequence[Any],
        kinds: Sequence[Hashable],
        job_seconds: float,
        setup_seconds: float,
        answer: Answer | None,
    ) -> None:
        self.crew, self.setup, self.arguments, self.jobs, self.kinds = crew, setup, arguments, jobs, kinds
        self.job_seconds, self.setup_seconds, self.answer = job_seconds, setup_seconds, answer
        self.waiting = deque(range(len(jobs)))
        self.attempts = [0] * len(jobs)
        self.left = len(jobs)
        self.spares = 0
        self.workers: list[Worker] = []

    def run(self) -> Iterator[Outcome]:
        for _ in range(self.crew.size(len(self.jobs))):
            self._hire()
        while self.left:
            soonest = min((w.deadline for w in self.workers if w.busy), default=time.monotonic() + 1)
            speaking = self.crew.speaking(self.workers, max(0.0, soonest - time.monotonic()))
            asking: list[tuple[Worker, Any]] = []
            for worker in list(self.workers):
                if worker in speaking:
                    outcome = self._hear(worker, asking)
                elif worker.busy and time.monotonic() > worker.deadline:
                    outcome = self._lost(worker, hung=True)
                else:
                    continue
                if outcome is not None:
                    self.left -= 1
                    yield outcome
            if asking:
                try:
                    answers = self._answers_in_time([question for _, question in asking])
                except TimeoutError:
                    limit = f"within {self.job_seconds:.0f} s"
                    for worker, _ in asking:
                        assert worker.index is not None
                        yield Outcome(worker.index, error=f"no answer {limit}")
                    raise UserError(
                        f"expected the policy to answer {limit}, found that it hangs: mend it, or give more "
                        "--job-seconds, and --resume"
                    ) from None
                for (worker, _), told in zip(asking, answers, strict=True):
                    worker.deadline = time.monotonic() + self.job_seconds  # it was not silent: it waited
                    worker.tell(told)

    def _answers_in_time(self, questions: list[Any]) -> list[Message]:
        """In a thread of its own, which is left behind where it hangs: nobody can end it."""
        answers: Future[list[Message]] = Future()

        def think() -> None:
            try:
                answers.set_result(_answers(self.answer, questions))
            except BaseException as error:
                answers.set_exception(error)

        Thread(target=think, daemon=True).start()
        return answers.result(self.job_seconds)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()

    def _hire(self) -> None:
        self.workers.append(self.crew.hire(self.setup, self.arguments, self.setup_seconds))

    def _hear(self, worker: Worker, asking: list[tuple[Worker, Any]]) -> Outcome | None:
        try:
            said, value = worker.hear()
        except Lost as how:
            return self._lost(worker, hung=False, how=str(how))
        outcome = None
        if said == "question":
            asking.append((worker, value))
            return None
        if said == "mistake":
            raise UserError(value)
        if said == "failed":
            raise SetupError(value)
        if said == "ready":
            worker.ready, self.spares = True, SPARES
        elif worker.index is not None:
            outcome = Outcome(worker.index, **{said: value})
        worker.index = None
        if self.waiting:
            self._give(worker)
        return outcome

    def _give(self, worker: Worker) -> None:
        index = self._next(worker)
        self.waiting.remove(index)
        self.attempts[index] += 1
        worker.done.add(self.kinds[index])
        worker.index = index
        worker.deadline = time.monotonic() + self.job_seconds
        worker.tell(("job", self.jobs[index]))

    def _next(self, worker: Worker) -> int:
        """The first job of a kind that it has done, else that nobody has done, else the first."""
        known = set[Hashable]().union(*(w.done for w in self.workers))
        own = (index for index in self.waiting if self.kinds[index] in worker.done)
        new = (index for index in self.waiting if self.kinds[index] not in known)
        return next(chain(own, new, self.waiting))

    def _lost(self, worker: Worker, hung: bool, how: str = "") -> Outcome | None:
        ended = worker.end()
        limit = self.job_seconds if worker.ready else self.setup_seconds
        what = f"worker said nothing for {limit:.0f} s" if hung else f"worker died with {how or ended}"
        self.workers.remove(worker)
        if not worker.ready:
            if not self.workers:  # else the others go on without it: while jobs wait, none of them is idle
                if not self.spares:
                    raise SetupError(f"{what} while it set up")
                self.spares -= 1
                self._hire()
            return None
        index = worker.index
        outcome = None
        if index is not None and self.attempts[index] < ATTEMPTS:
            self.waiting.appendleft(index)
        elif index is not None:
            outcome = Outcome(index, error=f"{what}, {ATTEMPTS} times")
        if self.waiting:
            idle = next((other for other in self.workers if not other.busy), None)
            self._give(idle) if idle else self._hire()
        return outcome
