"""What the studies' tables and plans promise: open rows stay open, and what proves nothing is told so."""

import fnmatch
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import campaign
import harness
import label_efficiency
import libero_arms
import libero_experts
import libero_gpu
import libero_robustness
import libero_study
import libero_table
import libero_units
import pytest
import torch
from libero_units import FULL, LiberoStudy
from made_stores import made_store
from units import STOPPED

from lawm_policy import checkpoint
from lawm_policy.data.clips import ClipDataset
from lawm_policy.data.store import EpisodeStore
from lawm_policy.stages import collect_libero
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.stages.pretrain import clip_config
from lawm_policy.types import UserError

STUDIES = ("label_efficiency", "libero_study", "libero_gpu")

PILOT = {  # percent of 100
    ("libero_object", 10): 98,
    ("libero_object", 5): 95,
    ("libero_object", 3): 90,
    ("libero_object", 1): 50,
    ("libero_goal", 10): 70,
    ("libero_goal", 5): 40,
    ("libero_goal", 3): 20,
    ("libero_spatial", 10): 10,
}


@pytest.fixture
def study(tmp_path):
    return LiberoStudy(tmp_path / "out", tmp_path / "work", FULL)


def write(study, unit, successes, **more):
    path = study.result_path(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"successes": successes, **more}))


def write_cell(study, unit, marks, **more):
    """A cell of the table: the same marks for each kind of start, if not said otherwise."""
    kinds = ("wide", "fresh", "stored")
    more = {"beside": dict.fromkeys(kinds[1:], marks), "starts": dict.fromkeys(kinds, "a1"), **more}
    write(study, unit, marks, libero="1.0", protocols={kind: {"execute": 8} for kind in kinds}, **more)


def pilot(study):
    for suite in FULL.suites:
        for n in libero_arms.PILOT_NS:
            if (won := PILOT.get((suite, n))) is not None:
                write(study, f"pilot/{suite}/n{n}", {"t": "1" * won + "0" * (100 - won)})


def test_the_pilot_chooses_where_scratch_is_neither_lost_nor_perfect(study):
    args = libero_arms.Args()
    assert libero_arms.judged(study, args) is None
    pilot(study)
    assert libero_arms.judged(study, args) == {"libero_goal": 5, "libero_object": 1}
    assert libero_arms.judged(study, replace(args, judge="libero_spatial:3")) == {"libero_spatial": 3}
    for words in ("libero_gaol:3", "libero_goal", "libero_goal:0", "libero_goal:11"):
        with pytest.raises(UserError, match="expected --judge as"):
            libero_arms.asked_for(words)


def test_every_unit_is_short_and_known_beforehand(study):
    """The plan before the pilot is as long as the one after it, but for what the pilot need not try."""
    args = libero_arms.Args(plan=True)
    before = list(libero_study.units(study, args))
    pilot(study)
    after = list(libero_study.units(study, args))
    lost = ("pilot/libero_goal/n1", *(f"pilot/libero_spatial/n{n}" for n in (5, 3, 1)))
    assert [u.minutes for u in before if u.name not in lost] == [u.minutes for u in after]
    assert not {u.name for u in after} & set(lost), "scratch is lost with more"
    assert all(0 < u.minutes <= 45 for u in after)
    names = [u.name for u in after]
    assert len(set(names)) == len(names) and {u.after for u in after} <= {"", *names}
    assert sum(name.startswith("tune/libero_goal/n5/") for name in names) == 9, "three trials an arm"
    others = {u.name for u in libero_study.units(study, replace(args, judge="libero_goal:3"))}
    assert not others & {name for name in names if name.startswith("tune/")}, "of another n: chosen anew"
    seeds = {arm.name: arm.seeds for arm in libero_arms.arms("inverse-kl")}
    assert [seeds[name] for name in ("scratch", "inverse-kl", "supervised")] == [5] * 3
    assert [seeds[name] for name in ("blind", "no-language")] == [3] * 2


def test_a_blind_policy_that_is_nearly_as_good_proves_that_nothing_is_shown(study):
    pilot(study)
    for arm, won in (("scratch", 5), ("blind", 4), ("inverse-kl-blind", 3)):
        for seed in (0, 1):
            marks = {"t": "1" * won + "0" * (10 - won) + "-"}
            beside = {"fresh": {"t": "1" * 10}, "stored": marks}
            write_cell(study, f"libero_goal/n5/{arm}/{seed}", marks, beside=beside)
    rows = libero_table.cell_rows(study, libero_arms.Args(), "libero_goal", "wide", {"libero_goal": 5})
    told = {row["arm"]: row for row in rows}
    assert told["scratch"]["mean"] == 50 and told["scratch"]["states"] == 10, "one is no episode"
    assert told["scratch"]["verdict"].startswith("proves nothing: blind 10.0")
    assert told["supervised"] == {
        **{key: told["supervised"][key] for key in ("suite", "n", "start", "arm", "says")},
        "seeds": 0,
        "verdict": "not run",
    }


def test_every_trial_of_tuning_is_told(study):
    write(study, "tune/libero_goal/n5/scratch/2", {"t": "1100", "u": "0-00"})
    rows = libero_table.tuning_rows(study, libero_arms.Args(), {"libero_goal": 5, "libero_object": 1})
    assert [(row["arm"], row["says"], row["states"]) for row in rows] == [
        ("scratch (tuning)", "train.lr 2e-3", 7)
    ]
    assert rows[0]["mean"] == pytest.approx(200 / 7)


def test_what_sees_is_compared_with_blind_over_shared_seeds_and_without_the_headroom():
    def at(*rates):
        return {seed: {"successes": {"t": "1" * r + "0" * (10 - r)}} for seed, r in enumerate(rates)}

    rows = [{"arm": "scratch", "mean": 60.0}]

    def verdict(**found):
        found = {name.replace("_", "-"): there for name, there in found.items()}
        return libero_table.with_verdict(rows, found, "inverse-kl")[0]["verdict"]

    assert verdict(scratch=at(6), blind=at(1)) == "blind 50.0 points below the best"
    waits = "open: who is blind has not been run beside it"
    assert verdict(scratch=at(6)) == verdict(blind=at(6)) == verdict(scratch={}, blind=at(6)) == waits
    assert verdict(scratch=at(6), blind=at(1), inverse_kl=at(7), inverse_kl_blind={}) == waits
    shared = verdict(scratch=at(3, 3, 9, 9, 9), blind=at(2, 2))
    assert shared == "proves nothing: blind 10.0 points below the best"
    assert verdict(scratch=at(3), supervised=at(9), blind=at(2)).startswith("proves nothing: blind 10.0")
    four = {"scratch": at(4), "blind": at(1), "inverse_kl": at(6), "inverse_kl_blind": at(5)}
    assert verdict(**four) == "proves nothing: blind 10.0 points below the best", "it is no other's margin"


def test_pretrainings_are_told_apart_by_the_weights_that_are_begun_from(tmp_path):
    """Those of `best`, or of `last` where nothing was validated; not by when or where they were saved."""

    def pretrained(name, value, seconds, best):
        run = tmp_path / name
        meta = {"kind": "pretrained", "seconds": seconds}
        for step, shift in ((1, 0.0), (2, 1.0)):
            weights = {"model": {"w": torch.full((2,), value + shift)}}
            checkpoint.save(checkpoint.step_folder(run, step), weights, meta, "card")
        checkpoint.point(run, "last", 2)
        if best:
            checkpoint.point(run, "best", 1)
        return campaign.weights_hash(run)

    first = pretrained("a", 3.0, 10, True)
    assert first == pretrained("b", 3.0, 99, True) == pretrained("c", 2.0, 10, False)
    assert first != pretrained("d", 4.0, 10, True) and len(first) == 16


def test_units_that_were_played_with_other_settings_share_no_row(study):
    for seed, rate in enumerate(("1e-3", "1e-3", "5e-4")):
        write_cell(study, f"libero_goal/n5/scratch/{seed}", {"t": "1"}, settings={"train.lr": rate})
    with pytest.raises(SystemExit, match=r"libero_goal/n5/scratch: units of several settings"):
        libero_table.cells(study, libero_arms.Args(), "libero_goal", 5, "wide")


def test_cells_that_began_from_other_states_are_no_pairs(study):
    for arm, mark in (("scratch", "a1"), ("blind", "b2")):
        starts = {"wide": mark, "fresh": "c3", "stored": "d4"}
        write_cell(study, f"libero_goal/n5/{arm}/0", {"t": "1"}, starts=starts)
    assert libero_table.cells(study, libero_arms.Args(), "libero_goal", 5, "stored")["scratch"]
    with pytest.raises(SystemExit, match="libero_goal/n5, wide: units of several protocols or states"):
        libero_table.cells(study, libero_arms.Args(), "libero_goal", 5, "wide")


def test_a_verdict_waits_for_all_seeds_and_names_pretrainings(study):
    for seed in range(5):
        for arm in ("scratch", "inverse-kl", "supervised", "blind", "inverse-kl-blind")[
            : 3 if seed > 2 else 5
        ]:
            won = {"scratch": 4, "blind": 1, "inverse-kl-blind": 2}.get(arm, 9)
            marks = {"t": "1" * won + "0" * (12 - won)}
            start = f"weights-{seed // 4}" if arm == "inverse-kl" else None
            write_cell(study, f"libero_goal/n5/{arm}/{seed}", marks, start=start)
    cases, args = {"libero_goal": 5}, libero_arms.Args()

    def found():
        rows = libero_table.cell_rows(study, args, "libero_goal", "wide", cases)
        return rows, libero_table.targets(study, args, cases, rows, [])

    rows, targets = found()
    assert {row["arm"]: row.get("pretrainings") for row in rows}["inverse-kl"] == 2
    assert targets[0].value > 15 and targets[2].value == pytest.approx(100 * (9 - 2) / 12)
    study.result_path("libero_goal/n5/scratch/3").unlink()
    assert {target.value for target in found()[1]} == {None}


def test_what_pretraining_adds_is_counted_in_pairs():
    args = libero_gpu.Args(recipe="lawm", seeds=3)
    whole = {("lawm", 50): {0: 80.0, 1: 50.0, 2: 70.0}, ("scratch", 50): {0: 70.0, 1: 45.0, 2: 55.0}}
    *_, gain, low = libero_gpu.targets(whole, args, (50,))
    assert gain.value == pytest.approx(10) and gain.interval[0] == low.value < 0
    del whole["scratch", 50][1]
    assert [target.value for target in libero_gpu.targets(whole, args, (50,))][1:] == [None, None]


def test_the_plan_says_what_every_unit_leaves_and_who_reads_it(study):
    args = libero_arms.Args(judge="libero_goal:1")
    every = list(libero_study.units(study, args))
    names = [unit.name for unit in every]
    assert len(names) == len(set(names))
    for k, unit in enumerate(every):
        if unit.name.startswith(libero_study.STAGES[:2]):
            assert unit.leaves is not None
        for pattern in unit.readers:
            found = [i for i, name in enumerate(names) if fnmatch.fnmatch(name, pattern)]
            assert all(i > k or names[i].startswith("pretrain/") for i in found), (unit.name, pattern)
        heard = any(fnmatch.filter(names[k:], pattern) for pattern in unit.readers)
        assert heard or unit.leaves is None or "stores/demos" in unit.name, unit.name


def test_what_ended_in_an_error_is_marked_by_whose_doing_it_was(tmp_path, monkeypatch):
    """A state that is no episode is nobody's; any other error leaves no cell."""
    errors = [None, "BrokenPremise: it fell"]

    def evaluate(grid):
        lines = [
            {"task": "t", "init_state": k, "error": error, "success": None if error else True}
            for k, error in reversed(list(enumerate(errors)))
        ]
        grid.out.mkdir(exist_ok=True)
        (grid.out / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (grid.out / "summary.json").write_text(json.dumps({"complete": len(errors) < 5}))
        return 1

    monkeypatch.setattr(campaign, "evaluate", evaluate)
    grid = EvaluateArgs("run", tmp_path / "played", suite="tabletop")
    assert campaign.played(grid) == {"t": "1-"}
    errors.append("worker died")
    with pytest.raises(SystemExit, match="worker died: the cell is not counted"):
        campaign.played(grid)
    errors[2:] = [None, None, None]
    with pytest.raises(SystemExit, match=str(STOPPED)):
        campaign.played(grid)


def test_the_table_learns_from_demonstrations_that_tuning_never_saw(study, monkeypatch, tmp_path):
    learnt, played = [], []
    fitted = campaign.Fitted(tmp_path / "run", {})
    monkeypatch.setattr(LiberoStudy, "demo_store", lambda study, suite, kind: kind)
    monkeypatch.setattr(
        LiberoStudy, "fit", lambda study, name, arm, store, *_: learnt.append(store) or fitted
    )
    monkeypatch.setattr(
        LiberoStudy, "_play", lambda *words: played.append((words[3], words[5])) or {"t": "1"}
    )
    monkeypatch.setattr(libero_units, "how_played", lambda run, starts: {"libero": "mujoco 3"})
    scratch, kinds = libero_arms.arms("inverse-kl")[0], (("val", {"wide": 20}), ("test", study.sizes.states))
    cells = [study.cell(scratch, "libero_goal", 10, 0, split, states, ()) for split, states in kinds]
    assert learnt == ["demos", "draws"]
    assert played == [("wide", "val"), *((start, "test") for start in ("wide", "fresh", "stored"))]
    assert cells[0]["beside"] == {} and cells[1]["libero"] == "mujoco 3"
    first, last = (
        (seed, seed + collect_libero.SCENES * max(p.episodes for p in study.demo_parts("libero_goal", kind)))
        for kind, (seed, _) in libero_units.KINDS.items()
        if kind != "fifty"
    )
    assert first[1] <= last[0] and last[1] <= libero_units.KINDS["fifty"][0], "nor states in common"
    assert 0.9 * study.sizes.draws >= 2 * 10, "two draws of ten can be apart"


def test_settings_are_chosen_on_validation_states_and_by_all_trials(study):
    arm = libero_arms.arms("inverse-kl")[0]
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
    rows[1] |= {"success %": 20.0, libero_robustness.LOST: -60.0}
    told = libero_robustness.heat(rows)
    assert "| camera | ░░░ 20% | not run | not run |" in told


# The scripts, as people call them.


@pytest.fixture
def called(tmp_path, monkeypatch):
    """A study's script with its options; --out and --work in tmp_path."""
    monkeypatch.setattr(libero_gpu.libero_assets, "check_ready", lambda: None)
    speeds = libero_gpu.Speeds(0.2, 0.1, 0.01, libero_gpu.device_here())
    for out in ("out", "out-quick", "out-official"):
        (tmp_path / out).mkdir()
        (tmp_path / out / "speeds.json").write_text(json.dumps(vars(speeds)))

    def call(name, *options):
        script = importlib.import_module(name)
        folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *folders, *options])
        with pytest.raises(SystemExit) as stop:
            harness.answer(script.main, script.Args)
        return stop.value.code

    return call


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_prints_its_plan_and_its_open_table(name, called, tmp_path, capsys):
    assert called(name, "--plan") is None
    *lines, left = capsys.readouterr().out.splitlines()
    assert len(lines) > 50 and "core-hours left" in left
    assert not (tmp_path / "work").exists(), "a plan makes nothing"
    assert called(name, "--table") is None
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert {target["met"] for target in result["targets"]} == {None}, "nothing was run"


@pytest.mark.parametrize("name", STUDIES[:2])
def test_a_quick_study_shares_nothing_with_a_full_one(name, called, tmp_path, monkeypatch, capsys):
    for study in (label_efficiency.Study, LiberoStudy):
        monkeypatch.setattr(study, "pretraining", lambda self, start: self.work / f"pretrain-{start}")
    monkeypatch.setattr(label_efficiency, "make_pretraining", lambda study, start: {})
    monkeypatch.setattr(LiberoStudy, "pretraining_slice", slice_of_none)
    assert called(name, "--quick", "--only", "pretrain/inverse-kl*") is None
    done = sorted(path.name for path in (tmp_path / "out-quick/units").iterdir())
    assert done and not (tmp_path / "out/units").exists()
    capsys.readouterr()
    called(name, "--plan", "--only", "pretrain/inverse-kl*")
    assert "done" not in capsys.readouterr().out


def slice_of_none(study, start, last):
    (study.work / f"pretrain-{start}").mkdir(parents=True, exist_ok=True)
    study.mark(f"pretrain-{start}").touch()
    return {}


def test_a_unit_that_leaves_nothing_is_not_run_for_ever(called, monkeypatch):
    monkeypatch.setattr(LiberoStudy, "pretraining_slice", lambda study, start, last: {})
    said = called("libero_study", "--quick", "--only", "pretrain/supervised*")
    assert said.startswith("pretrain/supervised/0 was run and") and said.endswith("is not there")


def test_a_unit_of_the_published_setting_says_how_it_is_made_again(called, tmp_path, monkeypatch):
    monkeypatch.setattr(libero_gpu.GpuStudy, "data", lambda study, suite: {})
    assert not called("libero_gpu", "--only", "data/libero_goal", "--datasets", "HERE", "--workers", "3")
    made = json.loads((tmp_path / "out-official/units/data__libero_goal.json").read_text())
    assert "--recipe lawm --seeds 3 --workers 3 --datasets HERE --only" in made["versions"]["command"]


def test_the_published_setting_learns_from_what_a_store_does_not_hold_out(called, tmp_path, capsys):
    called("libero_gpu", "--plan", "--datasets", "HERE")
    names = capsys.readouterr().out
    assert all(f"n{n}/libero_10/scratch/2" in names for n in (45, 10, 5)) and "n50/" not in names
    called("libero_gpu", "--plan")
    assert "n50/libero_10/scratch/2" in capsys.readouterr().out


def test_the_published_setting_wants_all_of_a_suite_before_it_pretrains(tmp_path, monkeypatch):
    """Half of a download, or an expert who gave up, is known here and not days later."""
    store = made_store(tmp_path / "store", episodes=12)
    few = libero_gpu.GpuStudy(tmp_path / "out", tmp_path / "work", libero_gpu.Args())
    monkeypatch.setattr(libero_gpu.GpuStudy, "store", lambda study, suite: store)
    tasks = sorted({e.task for e in EpisodeStore.open(store).episodes})
    monkeypatch.setattr(libero_gpu, "choose", lambda suite, words: tasks)
    with pytest.raises(UserError, match=f"expected 50 training demonstrations.*of {tasks[0]}"):
        few.data("libero_goal")
    assert sum(few.data("libero_90")["training demonstrations"].values()) > 0
    monkeypatch.setattr(libero_gpu, "choose", lambda suite, words: [*tasks, "libero_90-7"])
    with pytest.raises(UserError, match="found 0 of libero_90-7"):
        few.data("libero_90")


def test_who_begins_without_pretraining_has_the_same_architecture():
    begins = {arm.name: dict(arm.overrides) for arm in libero_gpu.arms("lawm", 3)}
    for name in ("scratch", "blind", "no-language"):
        assert (
            begins[name].items()
            >= {"policy.policy.components": "1", "policy.policy.density": "false"}.items()
        )
    steps = [
        dict(libero_gpu.GpuStudy(Path(), Path(), libero_gpu.Args(recipe=r)).pretrain_overrides)
        for r in ("lawm", "inverse-kl")
    ]
    assert int(steps[0]["train.steps"]) == sum(
        int(steps[1][f"{phase}.steps"]) for phase in ("world", "train")
    )


def test_label_free_pretraining_reads_no_command(study, tmp_path, monkeypatch):
    store = made_store(tmp_path / "store", size=64)
    asked = []
    monkeypatch.setattr(LiberoStudy, "pool", lambda self, part: store)
    monkeypatch.setattr(libero_units, "pretrain", lambda cfg, *args, **more: asked.append(cfg))
    monkeypatch.setattr(libero_units, "to_its_end", lambda result: None)
    study._pretrain("inverse-kl", tmp_path / "run")

    def read(*args):
        raise AssertionError("a command was read")

    for name in ("actions", "state"):
        monkeypatch.setattr(EpisodeStore, name, read)
    monkeypatch.setenv("LAWM_CACHE", str(tmp_path / "cache"))
    assert len(ClipDataset(store, clip_config(asked[0])))
    with pytest.raises(AssertionError, match="a command was read"):  # that it would be noticed
        ClipDataset(store, replace(clip_config(asked[0]), trim_still=True))


def test_experts_are_judged_over_episodes_and_long_suites_over_tasks():
    def task(name, percent, broken, failed):
        said = {"%": percent, ": broken": broken, ": failed": failed}
        told = {
            f"{kind}{' ' * (key == '%')}{key}": v for kind in libero_experts.KINDS for key, v in said.items()
        }
        return {"task": name, "instruction": "do it"} | told

    rows = [task("libero_goal-0", 100.0, [3], []), task("libero_goal-1", 50.0, [], list(range(10)))]
    rows += [task("libero_10-0", 80.0, [], [1, 2, 3, 4]), task("libero_10-1", 45.0, [], list(range(11)))]
    rows += [{"task": "libero_goal", "demonstrations a minute": pace} for pace in (7.0, 6.0)]
    found = {target.name: target for target in libero_experts.judge(rows, [0, 19])}
    goal = found["libero_goal, stored states: success, %"]
    assert goal.value == pytest.approx(100 * 29 / 39) and goal.interval[0] < goal.value < goal.interval[1]
    assert found["libero_10, fresh states: tasks at 80% or more, %"].value == 50.0
    [pace] = [target.value for name, target in found.items() if "a minute" in name]
    assert pace == 6.0
