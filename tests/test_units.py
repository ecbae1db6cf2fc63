"""What the loop of a study promises: what fails stops only who waits for it, nothing is made twice."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import units
from units import STOPPED, StudyArgs, Unit, Units, work_through

from lawm_policy.types import UserError


@dataclass(frozen=True)
class Pieces(Units):
    script: ClassVar[str] = "pieces"


@pytest.fixture
def study(tmp_path):
    return Pieces(tmp_path / "out", tmp_path / "work")


@pytest.fixture
def args(study):
    return StudyArgs(study.out, study.work)


def test_a_unit_waits_for_its_stage_and_for_what_it_goes_on_from():
    def unit(name, after=""):
        return Unit(name, 1, dict, after)

    def following(pending, *running):
        found = units._next([unit(*p) for p in pending], [unit(n) for n in running], ("data", "tune"))
        return found and found.name

    assert following([["data/b"]], "data/a") == following([["data/b"]], "tune/x") == "data/b"
    assert following([["tune/x"]], "data/a") is following([["x/0"]], "tune/x") is following([]) is None
    assert following([["tune/x"], ["data/b"]]) == "data/b", "an earlier stage first"
    second = ["x/1", "x/0"]
    assert following([second], "x/0") is None and following([second], "y/0") == "x/1"
    assert following([second, ["y/0"]], "x/0") == "y/0", "nobody waits behind who waits"
    assert following([second, ["x/0"]]) == "x/0"


def test_what_was_made_on_another_request_is_refused(study):
    made = []
    study.once("data", lambda: made.append(1), ("libero_goal", 50))
    study.once("data", lambda: made.append(2), ("libero_goal", 50))
    assert made == [1]
    with pytest.raises(SystemExit, match=r"another request, \('libero_goal', 50\)"):
        study.once("data", lambda: made.append(3), ("libero_goal", 80))


def test_a_unit_that_fails_stops_only_those_that_wait_for_it(study, args, capsys):
    def fail():
        raise RuntimeError("a worker died")

    def refuse():
        raise SystemExit("its cell is not counted")

    done = []
    made = [
        Unit("data/a", 1, fail, readers=("pretrain/*",)),
        Unit("pretrain/x", 1, lambda: done.append("x") or {}),
        Unit("data/b", 1, refuse),
        Unit("data/b2", 1, lambda: done.append("b2") or {}, "data/b"),
        Unit("data/c", 1, lambda: done.append("c") or {}),
    ]
    with pytest.raises(SystemExit, match="2 units failed: data/a, data/b"):
        work_through(study, args, lambda: made, ("data", "pretrain"))
    assert done == ["c"] and study.result("data/c") is not None
    said = capsys.readouterr().out
    assert "data/a failed: RuntimeError: a worker died" in said and "its cell is not counted" in said


def test_a_unit_that_is_told_to_stop_stops_all(study, args):
    def stop():
        raise SystemExit(STOPPED)

    made = [Unit("data/a", 1, stop), Unit("data/b", 1, dict)]
    with pytest.raises(SystemExit) as stopped:
        work_through(study, args, lambda: made, ("data",))
    assert stopped.value.code == STOPPED and study.result("data/b") is None


def test_what_is_done_is_kept_and_what_matches_nothing_is_refused(study, args):
    made = [Unit("data/a", 1, dict)]
    with pytest.raises(UserError, match="expected --only to match units that --plan lists, found 'dat/a'"):
        work_through(study, replace(args, only="dat/a"), lambda: made, ())
    assert work_through(study, args, lambda: made, ())
    with pytest.raises(UserError, match=r"expected no finished units in .*, found 1: give --resume"):
        work_through(study, args, lambda: made, ())
    assert work_through(study, replace(args, resume=True), lambda: made, ())


def test_what_is_lost_is_made_again_where_somebody_will_miss_it(study, args):
    """A work folder may be gone: its data are, what they were for may be done."""
    data, weights = study.work / "data.done", study.work / "weights"
    made = [
        Unit("data/a", 1, dict, leaves=data, readers=("pretrain/*",)),
        Unit("pretrain/x", 1, dict, leaves=weights, readers=("*/n1/x/*",)),
        Unit("s/n1/x/0", 1, dict),
    ]

    def left(**asked):
        return [unit.name for unit in units._wanted(study, replace(args, **asked), lambda: made)[1]]

    for unit in made:
        study.finish(unit.name, 0.0, {})
    assert left() == [], "nobody will miss them"
    study.result_path("s/n1/x/0").unlink()
    assert left() == [unit.name for unit in made]
    assert left(only="data/*") == ["data/a"], "whoever asks"
    weights.mkdir(parents=True)
    assert left() == ["s/n1/x/0"]
    weights.rmdir()
    data.touch()
    assert left() == ["pretrain/x", "s/n1/x/0"]


ONCE = """
import sys, time
from pathlib import Path
from units import Units

def do():
    with (work / "made").open("a") as file:
        file.write("once ")
    time.sleep(0.5)

work = Path(sys.argv[1])
Units(work, work).once("thing", do)
"""


def test_units_side_by_side_make_what_both_need_once(tmp_path):
    code = [sys.executable, "-c", ONCE, str(tmp_path)]
    places = {"PYTHONPATH": ":".join([str(Path(units.__file__).parent), *filter(None, sys.path)])}
    both = [subprocess.Popen(code, env=places | {"PATH": ""}) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert (tmp_path / "made").read_text() == "once " and (tmp_path / "thing.done").exists()
