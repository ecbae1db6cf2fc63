"""What the studies' tables and plans promise: open rows stay open, and what proves nothing is told so."""

import json
from dataclasses import replace

import campaign
import libero_robustness
import libero_study
import pytest
from campaign import Unit
from libero_units import FULL, LiberoStudy

from lawm_policy.types import UserError

PILOT = {  # percent of 100
    ("libero_object", 1): 50,
    ("libero_object", 3): 90,
    ("libero_goal", 3): 20,
    ("libero_goal", 5): 40,
    ("libero_spatial", 10): 10,
}


@pytest.fixture
def study(tmp_path):
    return LiberoStudy(tmp_path / "out", tmp_path / "work", FULL)


def write(study, unit, successes, **more):
    path = study.result_path(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"successes": successes, **more}))


def pilot(study):
    for suite in FULL.suites:
        for n in libero_study.PILOT_NS:
            won = PILOT.get((suite, n), 0)
            write(study, f"pilot/{suite}/n{n}", {"t": "1" * won + "0" * (100 - won)})


def test_the_pilot_chooses_where_scratch_is_neither_lost_nor_perfect(study):
    args = libero_study.Args()
    assert libero_study.judged(study, args) is None
    pilot(study)
    assert libero_study.judged(study, args) == {"libero_goal": 5, "libero_object": 1}
    assert libero_study.judged(study, replace(args, judge="libero_spatial:3")) == {"libero_spatial": 3}
    for words in ("libero_gaol:3", "libero_goal", "libero_goal:0", "libero_goal:11"):
        with pytest.raises(UserError, match="expected --judge as"):
            libero_study.asked_for(words)


def test_every_unit_is_short_and_known_beforehand(study):
    """The plan before the pilot is as long as the one after it."""
    args = libero_study.Args(plan=True)
    before = list(libero_study.units(study, args))
    pilot(study)
    after = list(libero_study.units(study, args))
    assert [u.minutes for u in before] == [u.minutes for u in after]
    assert all(0 < u.minutes <= 45 for u in after)
    names = [u.name for u in after]
    assert len(set(names)) == len(names) and {u.after for u in after} <= {"", *names}
    assert sum(name.startswith("tune/libero_goal/") for name in names) == 9, "three trials an arm"


def test_a_blind_policy_that_is_nearly_as_good_proves_that_nothing_is_shown(study):
    pilot(study)
    for arm, won in (("scratch", 5), ("blind", 4)):
        for seed in (0, 1):
            marks = {"t": "1" * won + "0" * (10 - won) + "-"}
            beside = {"fresh": {"t": "1" * 10}, "stored": marks}
            write(study, f"libero_goal/n5/{arm}/{seed}", marks, beside=beside)
    rows = libero_study.cell_rows(study, libero_study.Args(), "libero_goal", 5, "wide")
    told = {row["arm"]: row for row in rows}
    assert told["scratch"]["mean"] == 50 and told["scratch"]["verdict"].startswith(
        "proves nothing: blind 10.0"
    )
    assert told["supervised"] == {
        **{key: told["supervised"][key] for key in ("suite", "n", "start", "arm", "says")},
        "seeds": 0,
        "verdict": "not run",
    }
    apart = [{"arm": "scratch", "mean": 60.0}, {"arm": "blind", "mean": 10.0}]
    assert libero_study.with_verdict(apart)[0]["verdict"] == "blind 50.0 points below the best"
    assert libero_study.with_verdict(apart[:1])[0]["verdict"] == "open: blind not run"


def test_a_unit_waits_for_its_stage_and_for_what_it_goes_on_from():
    def unit(name, after=""):
        return Unit(name, 1, dict, after)

    def ready(name, *running, after=""):
        return campaign._ready(unit(name, after), [unit(n) for n in running], ("data", "tune"))

    assert ready("data/b", "data/a") and ready("data/b", "tune/x") and ready("x/0")
    assert not ready("tune/x", "data/a") and not ready("x/0", "tune/x")
    assert not ready("x/1", "x/0", after="x/0") and ready("x/1", "y/0", after="x/0")


def test_settings_are_chosen_on_validation_states_and_by_all_trials(study):
    arm = libero_study.arms("inverse-kl")[0]
    names = [f"tune/s/scratch/{k}" for k in range(3)]
    for name, marks in zip(names[:2], ("0110-", "0111-"), strict=True):
        write(study, name, {"t": marks})
    with pytest.raises(SystemExit, match="not all done"):
        study.choose(arm, names)
    write(study, names[2], {"t": "1110-"})
    assert study.choose(arm, names) == arm.trials[1], "ties go to the earlier"


def test_what_was_not_run_stays_open_in_the_table_of_perturbations():
    rows = [{"axis": "unperturbed", "grade": "", "success %": 80.0}]
    rows += [{"axis": a, "grade": g} for a in libero_robustness.AXES for g in libero_robustness.GRADES]
    rows[1]["success %"] = 20.0
    told = libero_robustness.heat(rows)
    assert "| camera | ░░░ 20% | not run | not run |" in told
