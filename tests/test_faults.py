"""What campaigns of faults count as survived: nothing that did not strike, and nothing that is not there."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fault_bench
import fault_processes
import libero_faults
import numpy as np
import pytest
from fault_bench import FaultArgs, Stage, code_hash, ended, in_turn, run_trials, too_small
from fault_processes import PAGE, Answer, NotStruck, kill_at_random
from libero_faults import BATCH, PLAY, SAID, LiberoBench, LiberoMaterial, judged, wrongly_imported

from lawm_policy.sim.protocol import Record
from lawm_policy.types import UserError

RNG = np.random.default_rng(0)


def told(out):
    result = json.loads((out / "result.json").read_text())
    rows = {row["campaign"]: row for row in result["rows"]}
    return rows, {target["name"].split(":")[0]: target["value"] for target in result["targets"]}


def run(tmp_path, plan, code="code", **more):
    args = FaultArgs(tmp_path / "out", work=tmp_path, **more)
    run_trials(args, plan, question="Who survives?", notes="", code=code)
    return told(args.out)


def survives(rng, folder):
    return None


def late_twice():
    left = [NotStruck("too late"), NotStruck("too late")]

    def trial(rng, folder):
        assert not any(folder.iterdir())
        (folder / "left").touch()
        if left:
            raise left.pop()

    return trial


def test_a_trial_that_breaks_is_wrong_and_one_that_did_not_strike_is_drawn_again(tmp_path):
    def breaks(rng, folder):
        raise KeyError("no\nepisodes")

    def never(rng, folder):
        raise NotStruck("it had ended")

    rows, values = run(tmp_path, {"a": [survives, breaks], "b": [late_twice()], "c": [never]})
    assert values == {"a": 0.5, "b": 1.0, "c": 0.0}
    assert rows["a"]["first that did not"].startswith("KeyError: 'no\\nepisodes' (test_faults.py:")
    assert (rows["b"]["survived"], rows["b"]["drawn again"]) == (1, 2)
    assert rows["c"]["first that did not"] == "5 draws did not strike: it had ended"
    assert not list(tmp_path.glob("trial-*"))


def test_what_was_not_run_is_open_and_what_was_is_kept(tmp_path):
    plan = {"a": [survives] * 2, "b": [survives]}
    assert run(tmp_path, plan, only="a")[1] == {"a": 1.0, "b": None}
    longer = plan | {"a": [survives] * 3}
    rows, values = run(tmp_path, longer, only="b", resume=True)
    assert values == {"a": None, "b": 1.0} and rows["a"]["tried"] == 2
    assert run(tmp_path, longer, resume=True)[1] == {"a": 1.0, "b": 1.0}
    with pytest.raises(UserError, match="expected work of other"):
        run(tmp_path, longer, code="other", resume=True)


def test_a_campaign_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected --only in a campaign's name \(kill, full\), found 'ful1'"):
        run(tmp_path, {"kill": [survives], "full": [survives]}, only="ful1")


def test_what_other_code_left_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("LAWM_CACHE", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    more = tmp_path / "campaign.py"
    more.write_text("1")
    given = FaultArgs(tmp_path / "out", work=tmp_path / "work")
    (one, first), (again, _) = fault_bench.prepare(given, more), fault_bench.prepare(given, more)
    more.write_text("2")
    other, second = fault_bench.prepare(given, more)
    assert first != second == code_hash([more])
    assert one.work == again.work != other.work and other.work.parent == given.work


def test_a_kill_that_comes_too_late_did_not_strike(tmp_path, monkeypatch):
    def starting(code):
        command = [sys.executable, "-c", code]
        start = lambda argv, log: subprocess.Popen(command, stderr=log.open("wb"))  # noqa: E731
        monkeypatch.setattr(fault_processes, "start", start)
        return kill_at_random([], tmp_path / "sign", 0.01, RNG, tmp_path / "log")

    with pytest.raises(NotStruck):
        starting("")
    assert starting("raise SystemExit('no room')") == "exit status 1: no room\n"
    (tmp_path / "sign").touch()
    began = time.monotonic()
    assert starting("import time; time.sleep(100)") is None and time.monotonic() - began < 50


def test_a_disk_is_full_at_any_line_and_at_the_end(tmp_path):
    """A summary of two pages, 4 lines of 3000 letters: 3 pages."""
    (tmp_path / "summary.json").write_bytes(b"x" * (PAGE + 1))
    (tmp_path / "episodes.jsonl").write_bytes(b"x" * (3 * PAGE - 1))
    (tmp_path / ".lock").touch()
    stage = Stage("", "episodes.jsonl", lambda out: None, played=True)
    sizes = {too_small(tmp_path, stage, RNG) // PAGE for _ in range(200)}
    assert sizes == {3, 4, 5, 6}, "the first line needs 3 pages, a second summary 7"


class Files(fault_bench.Bench):
    """A bench whose command writes lines into `out` as far as `room` goes."""

    def __init__(self, work, monkeypatch, room, keeps=True):
        stage = Stage("eval {out}", "episodes.jsonl", lambda out: sorted(ended(out / "episodes.jsonl")), True)
        super().__init__(fault_bench.Material(work / "material"), work, {"eval": stage})
        self.room, self.keeps = room, keeps
        monkeypatch.setattr(fault_bench, "lawm", self.lawm)
        monkeypatch.setattr(
            fault_bench, "seconds_after", lambda argv, sign, log: self.lawm(argv, log, 9) and 1.0
        )
        monkeypatch.setattr(fault_bench, "too_small", lambda whole, stage, rng: PAGE)
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: None)  # mounts nothing

    def lawm(self, argv, log, room=None):
        path = Path(argv[1]) / "episodes.jsonl"
        resumed = "--resume" in argv
        path.parent.mkdir(exist_ok=True)
        there = path.read_text().splitlines() if path.exists() and self.keeps else []
        room = 9 if resumed else self.room if room is None else room
        new = [json.dumps({"error": None, "n": n}) for n in range(4)]
        lines = [*there, *(line for line in new if line not in there)][:room]
        if resumed and not self.keeps:
            lines = [line.replace("}", ', "seconds": 2}') for line in lines]
        path.write_text("".join(line + "\n" for line in lines))
        return Answer(0 if room > 3 else 2, "expected room on the disk\n")


@pytest.mark.parametrize(
    ("room", "keeps", "wrong"),
    [
        (2, True, None),
        (0, True, "no episode that ended before the disk was full was kept"),
        (2, False, "resumed, but what had ended was played again"),
    ],
)
def test_what_ended_before_the_disk_was_full_is_kept(tmp_path, monkeypatch, room, keeps, wrong):
    bench = Files(tmp_path, monkeypatch, room, keeps)
    (tmp_path / "trial").mkdir()
    assert bench.disk_full("eval")(RNG, tmp_path / "trial") == wrong


def test_a_disk_that_was_large_enough_did_not_strike(tmp_path, monkeypatch):
    bench = Files(tmp_path, monkeypatch, room=9)
    (tmp_path / "trial").mkdir()
    with pytest.raises(NotStruck):
        bench.disk_full("eval")(RNG, tmp_path / "trial")


def test_every_kind_has_its_turn():
    assert in_turn("abc", 2) == ["a", "b", "c"] and in_turn("abc", 4) == ["a", "b", "c", "a"]


# --- LIBERO's -----------------------------------------------------------------------------------

UNDISTURBED = [
    Record("s", f"libero_object-{task}", state, 0, False, 20 + state, None, 1.0, "none")
    for task in (1, 0)
    for state in (0, 1)
]


def with_errors(count, said="expected finite commands, found nan at [0, 0]"):
    """The first `count` records, those of the task in which faults strike first, spoilt."""
    spoilt = [replace(r, success=None, steps=0, error=said) for r in UNDISTURBED[:count]]
    return [*spoilt, *UNDISTURBED[count:]]


def test_the_task_in_which_faults_strike_is_played_before_the_other():
    first = [stage.command.split("--tasks ")[1][0] for stage in map(libero_faults.STAGES.get, (PLAY, BATCH))]
    assert first == ["1", "0"], "one policy for all that hangs ends it"
    assert libero_faults.VICTIM == "libero_object-1"


def test_bystanders_must_all_be_there_as_they_were():
    nan = SAID["nan"]
    for once, count in ((True, 1), (False, 2)):
        found = with_errors(count)
        assert judged(found, UNDISTURBED, nan, once, False) is None
        assert judged(found[:-1], UNDISTURBED, nan, once, False), "one record is gone"
        assert judged([*found, found[-1]], UNDISTURBED, nan, once, False), "one is there twice"
        harmed = [*found[:-1], replace(found[-1], steps=3)]
        assert judged(harmed, UNDISTURBED, nan, once, False) == "libero_object-0 1: ended, 3 steps"
        assert judged(found[:-1] + with_errors(4)[-1:], UNDISTURBED, nan, once, False)
    assert judged(with_errors(2), UNDISTURBED, nan, True, False), "once is one episode"
    assert judged(UNDISTURBED, UNDISTURBED, nan, True, False), "an episode took what is no number"
    assert judged(UNDISTURBED, UNDISTURBED, SAID["kill"], True, False) is None, "it was tried again"
    assert judged(with_errors(1), UNDISTURBED, nan, False, False), "each time is each episode of the task"
    assert judged(with_errors(2, "KeyError"), UNDISTURBED, nan, False, False)
    everywhere = with_errors(4, "expected an OpenGL library")
    assert judged(everywhere, UNDISTURBED, SAID["no-context"], False, False) is None
    assert judged(with_errors(2), UNDISTURBED, SAID["no-context"], False, False)


def test_what_ended_before_all_hung_stays():
    hung = replace(UNDISTURBED[0], success=None, error="no answer within 60 s")
    found = [*UNDISTURBED[2:], hung]
    said = libero_faults.BATCHED["hang"]
    assert judged(found, UNDISTURBED, said, False, True) is None
    assert judged(found[1:], UNDISTURBED, said, False, True) and judged(
        found[:2], UNDISTURBED, said, False, True
    )


def test_a_fault_that_leaves_no_flag_did_not_strike(tmp_path, monkeypatch):
    monkeypatch.setattr(libero_faults, "lawm", lambda argv, log: Answer(0, ""))
    monkeypatch.setattr(LiberoBench, "reference", lambda bench, name: ([], 1.0))
    bench = LiberoBench(LiberoMaterial(tmp_path), tmp_path, libero_faults.STAGES)
    assert "did not strike" in bench.strike("nan", once=True)(RNG, tmp_path)


GOOD = [(f"{file}_demo.hdf5:demo_{k}:c0ffee0{k}", 10 + k) for file in "ab" for k in range(3)]
BAD = [(f"bad_demo.hdf5:demo_{k}:c0ffee0{k}", 10 + k) for k in range(3)]
HOSTILE = "bad_demo.hdf5:demo_1"


@pytest.mark.parametrize(
    ("bad", "reasons", "kind", "right"),
    [
        ([BAD[0], BAD[2]], {HOSTILE: "actions is a link to elsewhere"}, "soft link", True),
        ([BAD[0], BAD[2]], {HOSTILE: "something else"}, "soft link", False),
        ([BAD[0], BAD[2]], {}, "soft link", False),
        (BAD, {HOSTILE: "actions is a link to elsewhere"}, "soft link", False),
        ([BAD[0]], {HOSTILE: "actions is a link to elsewhere"}, "soft link", False),
        ([BAD[0], (BAD[2][0], 99)], {HOSTILE: "actions is a link to elsewhere"}, "soft link", False),
        ([], {"bad_demo.hdf5": "not a readable HDF5 file"}, "truncated", True),
        ([], {}, "truncated", False),
        ([], {}, "missing", True),
        ([BAD[0], BAD[2]], {HOSTILE: "not readable"}, "flipped bit", True),
        ([BAD[0], BAD[2]], {}, "flipped bit", False),
        (BAD, {}, "flipped bit", True),
    ],
)
def test_what_lies_beside_a_bad_demonstration_is_imported(bad, reasons, kind, right):
    said = "actions is a link to elsewhere"
    wrong = wrongly_imported(sorted([*GOOD, *bad]), GOOD, reasons, kind, said)
    assert (wrong is None) == right, wrong
    assert wrongly_imported(sorted([*GOOD[1:], *bad]), GOOD, reasons, kind, said)


@pytest.mark.parametrize("kind", ["soft link", "no images"])  # commands that cannot be read, and that can
def test_an_import_of_a_hostile_demonstration_passes_its_own_check(tmp_path, kind):
    material = LiberoMaterial(tmp_path / "material")
    for file, first in (("a", 0), ("b", 3)):
        libero_faults.write_hdf5(
            material.places["hdf5"] / f"{file}_demo.hdf5", libero_faults.made_demos(first)
        )
    (tmp_path / "trial").mkdir()
    bench = LiberoBench(material, tmp_path, libero_faults.STAGES)
    assert bench.import_bad(kind)(RNG, tmp_path / "trial") is None
