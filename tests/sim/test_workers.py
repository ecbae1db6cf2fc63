import os

import pytest

from lawm_policy.sim.crews import load_function
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
        if 7 in questions:
            raise ValueError("seven")
        return [q + 1 for q in questions]

    jobs = [1, 2, 3, 4, 5, 6] if workers else [1, 7, 3]
    found = {
        jobs[o.index]: o for o in run_jobs("fake_suite:asking", {}, jobs, workers=workers, answer=answer)
    }
    assert all(found[x].result == (x + 1) * (1 - x) for x in jobs if x != 7)
    assert workers or found[7].error.startswith("RuntimeError: ValueError: seven")
    assert max(sizes) <= max(1, workers)
    [short] = run_jobs("fake_suite:asking", {}, [1], workers=workers, answer=lambda questions: [])
    assert short.error.startswith("RuntimeError: ValueError: zip()"), "an answer that is missing is an error"
    [alone] = run_jobs("fake_suite:asking", {}, [1], workers=workers)
    assert "nobody answers questions here" in alone.error


def test_setup_faults_end_the_run():
    with pytest.raises(UserError, match="expected a run, found none"):
        list(run_jobs("fake_suite:mistaken", {}, [1, 2], workers=1))
    with pytest.raises(SetupError, match="KeyError: 'missing part'"):
        list(run_jobs("fake_suite:faulty", {}, [1], workers=1))
    with pytest.raises(SetupError, match="status 7 while it set up"):
        list(run_jobs("fake_suite:dead", {}, [1], workers=1))


def test_no_jobs_no_workers():
    assert list(run_jobs("fake_suite:dead", {}, [], workers=3)) == []


def test_load_function():
    assert load_function("os.path:join") is os.path.join
    for spec in ("os.path", "os.path:nothing", "no.such.module:x"):
        with pytest.raises(UserError, match='expected "module:function"'):
            load_function(spec)
