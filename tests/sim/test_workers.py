import os
import time

import pytest

from lawm_policy.sim import workers as pool
from lawm_policy.sim.crews import Lost, Worker, load_function
from lawm_policy.sim.workers import SetupError, run_jobs
from lawm_policy.types import UserError


def collect(jobs, workers, log="", **more):
    outcomes = list(run_jobs("fake_suite:squares", {"log": str(log)}, jobs, workers=workers, **more))
    assert sorted(o.index for o in outcomes) == list(range(len(jobs)))  # none lost, none doubled
    return {jobs[o.index]: o for o in outcomes}


@pytest.mark.parametrize("workers", [0, 2])
def test_results_and_errors(workers, tmp_path):
    found = collect([1, 2, -1, 3, 4, 5], workers, tmp_path / "log")
    assert [found[x].result for x in (1, 2, 3, 4, 5)] == [
        1,
        4,
        9,
        16,
        25,
    ]  # nothing leaks from the failed job
    assert found[-1].error.startswith("ValueError: negative -1 (fake_suite.py:")
    pids = {int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()}
    assert len(pids) <= max(1, workers) and (os.getpid() in pids) == (workers == 0)


def test_the_dead_and_the_hung_are_replaced(tmp_path):
    found = collect([1, 1000, 2, 2000, 3000, 3], 2, tmp_path / "log", job_seconds=1.0)
    assert [found[x].result for x in (1, 2, 3)] == [1, 4, 9]
    assert found[1000].error == "worker died with status 3, 2 times"
    assert found[2000].error == "worker said nothing for 1 s, 2 times"
    assert found[3000].result == 9_000_000  # its second attempt


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_ends_a_kind_of_job_before_it_begins_another(tmp_path, workers):
    jobs = [k + 10 * kind for k in range(1, 7) for kind in range(3)]
    found = collect(jobs, workers, tmp_path / "log", kind=lambda job: job // 10)
    assert [found[x].result for x in jobs] == [x * x for x in jobs]
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    for worker in {pid for pid, _ in log}:
        kinds = [int(job) // 10 for pid, job in log if pid == worker]
        begun = [k for i, k in enumerate(kinds) if k not in kinds[:i]]
        assert kinds == sorted(kinds, key=begun.index)


@pytest.mark.parametrize("workers", [0, 3])
def test_questions_of_many_workers_are_answered_together(workers):
    sizes = []

    def answer(questions):
        sizes.append(len(questions))
        if len(sizes) == 1:
            time.sleep(1.0 if workers else 0.0)  # meanwhile the others ask
        if 7 in questions:
            raise ValueError("seven")
        return [q + 1 for q in questions]

    jobs = [1, 2, 3, 4, 5, 6] if workers else [1, 7, 3]
    found = {
        jobs[o.index]: o for o in run_jobs("fake_suite:asking", {}, jobs, workers=workers, answer=answer)
    }
    assert all(found[x].result == (x + 1) * (1 - x) for x in jobs if x != 7)
    assert workers or found[7].error.startswith("RuntimeError: ValueError: seven")
    assert max(sizes) <= max(1, workers) and (max(sizes) > 1 or not workers)
    [short] = run_jobs("fake_suite:asking", {}, [1], workers=workers, answer=lambda questions: [])
    assert short.error.startswith("RuntimeError: ValueError: zip()"), "an answer that is missing is an error"
    [alone] = run_jobs("fake_suite:asking", {}, [1], workers=workers)
    assert "nobody answers questions here" in alone.error


def test_whose_question_has_no_answer_is_found_among_many():
    def answer(questions):
        if 7 in questions:
            raise ValueError("seven")
        return [q + 1 for q in questions]

    first, guilty, last = pool._answers(answer, [1, 7, 3])
    assert (first, last) == (("answer", 2), ("answer", 4))
    assert guilty[0] == "fault" and guilty[1].startswith("ValueError: seven")


def test_who_waits_for_answers_is_not_silent():
    """Three questions, each answered within the limit and all together not."""

    def answer(questions):
        time.sleep(0.7)
        return [q + 1 for q in questions]

    [found] = run_jobs("fake_suite:asking", {}, [2], workers=1, answer=answer, job_seconds=1.0)
    assert found.result == -3 and found.error is None


def test_here_too_a_kind_of_job_is_ended_before_the_next_begins(tmp_path):
    jobs = [1, 11, 2, 12, 3]
    found = run_jobs("fake_suite:squares", {}, jobs, workers=0, kind=lambda job: job // 10)
    assert [jobs[outcome.index] for outcome in found] == [1, 2, 3, 11, 12]


def test_setup_faults_end_the_run():
    with pytest.raises(UserError, match="expected a run, found none"):
        list(run_jobs("fake_suite:mistaken", {}, [1, 2], workers=1))
    with pytest.raises(SetupError, match="KeyError: 'missing part'"):
        list(run_jobs("fake_suite:faulty", {}, [1], workers=1))
    with pytest.raises(SetupError, match="status 7 while it set up"):
        list(run_jobs("fake_suite:dead", {}, [1], workers=1))


class Tale:
    """A crew that does what is told of it ("A ready, A dies"), but what those do who are not there or idle.
    Workers have names in the order of hiring."""

    def __init__(self, size, told):
        self.size, self.hired = lambda jobs: size, 0
        self.told = [tuple(words.split()) for words in told.split(", ")]

    def hire(self, *_):
        self.hired += 1
        return Told("ABCDEF"[self.hired - 1], self)

    def speaking(self, workers, timeout):
        there = {worker.name: worker for worker in workers if worker.busy}
        while self.told and self.told[0][0] not in there:
            self.told.pop(0)
        assert self.told, "all wait for ever"
        return [there[self.told[0][0]]]


class Told(Worker):
    def __init__(self, name, tale):
        super().__init__(100.0)
        self.name, self.tale = name, tale

    def tell(self, message):
        pass

    def hear(self):
        _, does = self.tale.told.pop(0)
        if does == "dies":
            raise Lost("a sigh")
        return does, self.name if does == "result" else None

    def end(self):
        return "status 1"


def told(monkeypatch, size, jobs, words):
    tale = Tale(size, words)
    monkeypatch.setattr(pool, "LocalCrew", lambda workers: tale)
    found = sorted(run_jobs("nothing:here", {}, range(jobs), workers=size), key=lambda o: o.index)
    return [o.result or o.error for o in found], tale.hired


def test_a_job_of_a_dead_worker_goes_to_an_idle_one(monkeypatch):
    """If it went to a new worker only, nobody would do it once that one died."""
    tale = "A ready, B ready, B result, A dies, C dies, B result"
    assert told(monkeypatch, 2, 2, tale) == (["B", "B"], 2)


def test_a_worker_lost_in_its_set_up_is_replaced_while_nobody_else_is_there(monkeypatch):
    assert told(monkeypatch, 1, 1, "A ready, A dies, B dies, C dies, D ready, D result") == (["D"], 4)
    with pytest.raises(SetupError, match="worker died with a sigh while it set up"):
        told(monkeypatch, 1, 1, "A ready, A dies, B dies, C dies, D dies")
    with pytest.raises(SetupError, match="while it set up"):  # nobody has ever set up
        told(monkeypatch, 2, 3, "A dies, B dies")
    assert told(monkeypatch, 2, 2, "A dies, B ready, B result, B result") == (["B", "B"], 2)


def test_no_jobs_no_workers():
    assert list(run_jobs("fake_suite:dead", {}, [], workers=3)) == []


def test_load_function():
    assert load_function("os.path:join") is os.path.join
    for spec in ("os.path", "os.path:nothing", "no.such.module:x"):
        with pytest.raises(UserError, match='expected "module:function"'):
            load_function(spec)
