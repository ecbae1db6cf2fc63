"""How the benchmark of LIBERO's experts goes on past a fault, and after a stop."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import libero_experts
import pytest

from lawm_policy.sim import libero_tasks
from lawm_policy.sim.workers import Outcome

RESULTS = Path(libero_experts.__file__).parent / "results" / "libero_experts"


def test_a_fault_is_one_episodes_failure_and_paces_are_measured_once(tmp_path, monkeypatch):
    """A planner that raises in one state of one task: what shared its job is played again."""
    asked, measured = [], []

    def run_jobs(setup, arguments, jobs, workers):
        for index, job in enumerate(jobs):
            asked.append(job)
            if job.task == "libero_goal-1" and job.kind == "fresh" and 1 in job.states:
                yield Outcome(index, error="IndexError: no way to hold it")
            else:
                told = {"success": True, "steps": 9, "executed again": job.kind == "fresh" or None}
                yield Outcome(index, [libero_experts._line(job, state) | told for state in job.states])

    monkeypatch.setattr(libero_experts, "run_jobs", run_jobs)
    monkeypatch.setattr(libero_experts, "check_ready", lambda: None)
    monkeypatch.setattr(libero_experts, "libero_made_with", lambda: "LIBERO")
    monkeypatch.setattr(libero_tasks, "libero_task", lambda task: SimpleNamespace(instruction="do it"))
    monkeypatch.setattr(
        libero_experts, "demonstrations_a_minute", lambda suite, quick: measured.append(suite) or 7.0
    )
    args = {"out": tmp_path, "quick": True, "suites": "libero_goal"}
    libero_experts.main(libero_experts.Args(**args))
    assert [len(job.states) for job in asked] == [2, 2, 2, 2, 1, 1]
    good, bad, pace = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert good["fresh: failed"] == [] and "fresh: failed by a fault" not in good
    assert bad["fresh: failed"] == bad["fresh: failed by a fault"] == [1] and bad["fresh %"] == 50
    assert "no way to hold it" in (tmp_path / "journal.jsonl").read_text()
    targets = {t["name"]: t["met"] for t in json.loads((tmp_path / "result.json").read_text())["targets"]}
    assert targets["check: executed commands replayed, 3 episodes that succeed again, %"]
    libero_experts.main(libero_experts.Args(**args, resume=True))
    assert len(asked) == 6 and measured == ["libero_goal"]
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == [good, bad, pace]


def test_the_committed_result_is_judged_again(tmp_path):
    shutil.copy(RESULTS / "result.json", tmp_path)
    libero_experts.main(libero_experts.Args(tmp_path, table=True))
    before, after = (json.loads((folder / "result.json").read_text()) for folder in (RESULTS, tmp_path))
    assert [t["name"] for t in after["targets"]] == [t["name"] for t in before["targets"]]
    for ours, theirs in zip(after["targets"], before["targets"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"]) and ours["met"] == theirs["met"]
