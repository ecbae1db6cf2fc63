"""However an evaluation ended - killed, twice at once, disk full - resuming loses and doubles no episode."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from evaluations import arguments, episodes

from lawm_policy.sim import protocol
from lawm_policy.stages import evaluate
from lawm_policy.types import UserError

TESTS = Path(__file__).parents[1]


def test_resume_plays_errors_again(tmp_path):
    out, flag = tmp_path / "e", tmp_path / "flag"
    args = arguments(out, "Bad", f"raise_once:{flag}", episodes=2, workers=0)
    assert evaluate.run(args) == 1
    before = json.loads((out / "summary.json").read_text())
    assert evaluate.run(replace(args, resume=True)) == 0
    told = json.loads((out / "summary.json").read_text())
    assert len(episodes(out)) == 6 and told["all"]["errors"] == 0
    assert told["earlier"] == [before["versions"]] and told["seconds"] >= before["seconds"]


def test_a_half_line_is_played_again_and_the_grid_may_grow(whole, tmp_path):
    out = tmp_path / "e"
    evaluate.run(arguments(out, workers=0))
    path = out / "episodes.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(protocol.read(out)) == 8
    assert evaluate.run(arguments(out, workers=0, episodes=6, resume=True)) == 0
    assert episodes(out) == episodes(whole)


def killed_and_resumed(out, moments, count):
    """Runs the command, kills it (and its workers) at each moment, then lets it end."""
    command = [
        *(sys.executable, "-m", "lawm_policy", "eval", "x", "--suite", "fake_suite:suite", "--resume"),
        *(
            "--policy-factory",
            "fake_suite:slow",
            "--episodes",
            str(count),
            "--workers",
            "2",
            "--out",
            str(out),
        ),
    ]
    environment, path = {**os.environ, "PYTHONPATH": str(TESTS)}, out / "episodes.jsonl"
    for moment in moments:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(path.read_bytes().splitlines() if path.exists() else []) < moment:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, env=environment, timeout=120).returncode == 0


@pytest.mark.slow
def test_killed_and_resumed_loses_and_doubles_nothing(whole, tmp_path):
    killed_and_resumed(tmp_path / "e", [2, 7], 6)
    assert [replace(r, checkpoint_sha256="") for r in episodes(tmp_path / "e")] == [
        replace(r, checkpoint_sha256="") for r in episodes(whole)
    ]


def test_force_replaces(tmp_path):
    evaluate.run(arguments(tmp_path / "e", workers=0))
    evaluate.run(arguments(tmp_path / "e", workers=0, episodes=1, force=True, execute=2))
    assert len(episodes(tmp_path / "e")) == 3


def test_resume_erases_nothing(tmp_path):
    out = tmp_path / "e"
    evaluate.run(arguments(out, workers=0, episodes=1))
    before = (out / "episodes.jsonl").read_bytes()
    evaluate.run(arguments(out, workers=0, episodes=2, resume=True, force=True))
    played = (out / "episodes.jsonl").read_bytes()
    assert played.startswith(before) and len(episodes(out)) == 6
    (out / "summary.json").unlink()
    line = (
        f"expected summary.json in {out}, which says what was played, found episodes.jsonl alone: "
        "put it back, or choose another --out"
    )
    with pytest.raises(UserError) as error:
        evaluate.run(arguments(out, workers=0, episodes=2, resume=True))
    assert str(error.value) == line and (out / "episodes.jsonl").read_bytes() == played
    (out / "episodes.jsonl").write_bytes(b"")  # killed before the first episode
    assert evaluate.run(arguments(out, workers=0, episodes=1, resume=True)) == 0


def test_two_at_once_are_refused(tmp_path):
    import fcntl

    out = tmp_path / "e"
    evaluate.run(arguments(out, workers=0, episodes=1))
    with open(out / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another evaluation writing"):
            evaluate.run(arguments(out, resume=True))


def test_a_full_disk_is_no_half_line(monkeypatch):
    record = protocol.Record("s", "t", 0, 0, True, 1, None, 0.1, "x")
    monkeypatch.setattr(os, "write", lambda _, data: len(data) - 1)
    with pytest.raises(OSError, match="No space left"):
        protocol.append(0, record)


@pytest.mark.parametrize(
    "line", ['{"suite": "x"}', "[]", "\x00", '{"task": 3, "init_state": 1, "seed": 0, "suite": "s"}', "null"]
)
def test_foreign_lines_are_refused_with_their_number(tmp_path, line):
    record = protocol.Record("s", "t", 0, 0, True, 1, None, 0.1, "x")
    (tmp_path / "episodes.jsonl").write_text(f"{json.dumps(vars(record))}\n{line}\n")
    with pytest.raises(UserError, match="line 2"):
        protocol.read(tmp_path)
    wrong = json.dumps({**vars(record), "success": "yes"})
    (tmp_path / "episodes.jsonl").write_text(f"{wrong}\n")
    with pytest.raises(UserError, match="success is 'yes'"):
        protocol.read(tmp_path)
