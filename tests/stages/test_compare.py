"""Pairs are pairs: by task, initial state and seed, under one protocol."""

import json

import pytest

from lawm_policy.sim.protocol import Record
from lawm_policy.stages import compare
from lawm_policy.stages.compare import CompareArgs
from lawm_policy.types import UserError

PROTOCOL = {"suite": "tabletop", "execute": 8, "visuals": {"distractors": 0}, "held_out": ["push"]}


def evaluation(folder, successes, execute=8, distractors=0, **states):
    """`successes`: task -> string of 1, 0 and e (an error), one a state, written in reverse order."""
    folder.mkdir(parents=True)
    lines = [
        Record(
            "tabletop",
            task,
            200_000 + i,
            0,
            None if c == "e" else c == "1",
            9,
            "X" if c == "e" else None,
            0.1,
            "s",
        )
        for task, outcomes in successes.items()
        for i, c in enumerate(outcomes)
    ]
    told = {**PROTOCOL, "execute": execute, "visuals": {"distractors": distractors}}
    (folder / "summary.json").write_text(json.dumps({"protocol": told}))
    (folder / "episodes.jsonl").write_text("".join(json.dumps(vars(r)) + "\n" for r in reversed(lines)))
    return folder


def test_pairs_by_cell_not_by_line(tmp_path):
    a = evaluation(tmp_path / "a", {"pick": "1010" * 5, "push": "0" * 20})
    b = evaluation(tmp_path / "b", {"push": "1" * 20, "pick": "1010" * 5})
    found = compare.compare([a], [b])
    assert (found["pairs"], found["only_a"], found["only_b"]) == (40, 0, 20)
    assert found["rate_a"] == 0.25 and found["rate_b"] == 0.75
    assert found["difference"]["value"] == 0.5 and found["difference"]["low"] > 0.3
    assert found["p_value"] == pytest.approx(2 / 2**20)
    assert found["tasks"]["pick"]["p_value"] == 1 and found["tasks"]["pick"]["to_decide"] is None
    assert found["tasks"]["push"]["held_out"] and not found["tasks"]["pick"]["held_out"]
    assert found["verdict"].startswith("B is better than A")


def test_errors_and_missing_episodes_are_left_out_and_counted(tmp_path, capsys):
    a = evaluation(tmp_path / "a", {"pick": "11e0"})
    b = evaluation(tmp_path / "b", {"pick": "1e001"})
    assert compare.run(CompareArgs(str(a), str(b))) == 0
    printed = capsys.readouterr()
    assert "left out: 2 pairs with an error, 0 episodes only in A, 1 only in B" in printed.err
    assert "Undecided" in printed.out and "chosen beforehand" in printed.out


def test_a_start_that_is_no_episode_is_no_error(tmp_path, capsys):
    a = evaluation(tmp_path / "a", {"pick": "1010"})
    lines = (a / "episodes.jsonl").read_text().splitlines()
    told = json.loads(lines[0]) | {"success": None, "error": "BrokenPremise: the bowl fell over"}
    (a / "episodes.jsonl").write_text("\n".join([json.dumps(told), *lines[1:]]) + "\n")
    compare.run(CompareArgs(str(a), str(a)))
    said = capsys.readouterr().err
    assert "left out: 0 pairs with an error" in said and "1 pairs whose start is no episode" in said


def test_pairs_that_did_not_begin_alike_are_refused_or_told(tmp_path, capsys):
    a, b, unmarked = (evaluation(tmp_path / name, {"pick": "1010"}) for name in "abc")
    for folder, marks in ((a, "wxyz"), (b, "wxyq")):
        lines = map(json.loads, (folder / "episodes.jsonl").read_text().splitlines())
        told = [json.dumps(line | {"start": marks[line["init_state"] - 200_000]}) for line in lines]
        (folder / "episodes.jsonl").write_text("\n".join(told) + "\n")
    with pytest.raises(UserError, match="found 1 of 4 that began apart, as pick 200003: evaluate both"):
        compare.run(CompareArgs(str(a), str(b)))
    capsys.readouterr()
    assert compare.run(CompareArgs(str(a), str(b), across=True)) == 0
    assert "Not alike! starts: 1 of 4 that began apart, as pick 200003" in capsys.readouterr().out
    for other in (a, unmarked):  # a simulator that cannot tell, or an evaluation of before
        assert compare.compare([a], [other])["protocols_differ"] == []


def test_several_seeds(tmp_path, capsys):
    for seed, (a, b) in enumerate([("1000", "1110"), ("0000", "1100"), ("1100", "1111")]):
        evaluation(tmp_path / "a" / str(seed), {"pick": a * 5})
        evaluation(tmp_path / "b" / str(seed), {"pick": b * 5})
    compare.run(CompareArgs(str(tmp_path / "a"), str(tmp_path / "b"), json=tmp_path / "out.json"))
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["seeds"] == [0.5, 0.5, 0.5] and found["over_seeds"] == {
        "value": 0.5,
        "low": 0.5,
        "high": 0.5,
    }
    assert found["pairs"] == 60 and "Student's t over 3 seeds" in found["verdict"]
    listed = ",".join(str(tmp_path / "a" / str(s)) for s in range(3))
    assert compare.evaluations(listed) == compare.evaluations(str(tmp_path / "a"))


def test_table_is_plain_and_whole_when_piped(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    name = "put_the_red_block_in_the_blue_bowl_and_close_the_drawer"
    a, b = evaluation(tmp_path / "a", {name: "10" * 30}), evaluation(tmp_path / "b", {name: "11" * 29 + "01"})
    compare.run(CompareArgs(str(a), str(b)))
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith(name))
    assert "\x1b" not in out and row.split()[1:4] == ["50.0%", "98.3%", "+48.3"]
    assert row.split()[-4:-1] == ["1", "30", "<0.001"]


def test_refusals(tmp_path):
    a = evaluation(tmp_path / "a", {"pick": "10"})
    faster = evaluation(tmp_path / "faster", {"pick": "10"}, execute=4)
    for sides in ((f"{a},{a}", f"{a},{faster}"), (f"{a},{faster}", f"{a},{a}")):  # also of later seeds
        with pytest.raises(UserError, match="execute: 8 and 4"):
            compare.run(CompareArgs(*sides))
    for b, message in [
        (evaluation(tmp_path / "b", {"pick": "10"}, distractors=2), "visuals.distractors: 0 and 2"),
        (evaluation(tmp_path / "c", {"pick": "10"}, execute=4), "execute: 8 and 4"),
        (evaluation(tmp_path / "d", {"push": "10"}), "episodes in common, found none"),
        (tmp_path / "nowhere", "found no summary.json"),
        (f"{a},{a}", "as many evaluations on both sides, found 1 and 2"),
        (" , ", "expected evaluations"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            compare.run(CompareArgs(str(a), str(b)))
        assert "\n" not in str(caught.value)
    (tmp_path / "a" / "summary.json").write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        compare.run(CompareArgs(str(a), str(a)))
    for text in ("[]", '{"protocol": []}', '{"protocol": {}, "policy": []}'):  # --resume reads both
        (tmp_path / "a" / "summary.json").write_text(text)
        with pytest.raises(UserError, match=r"summary.json, found .*: evaluate again"):
            compare.run(CompareArgs(str(a), str(a)))


def test_across_protocols_is_allowed_by_a_flag_and_marked(tmp_path, capsys):
    a = evaluation(tmp_path / "a", {"pick": "10"})
    b = evaluation(tmp_path / "b", {"pick": "11"}, execute=4, distractors=2)
    assert compare.run(CompareArgs(str(a), str(b), across=True, json=tmp_path / "found.json")) == 0
    told = ["execute: 8 and 4", "visuals.distractors: 0 and 2"]
    assert json.loads((tmp_path / "found.json").read_text())["protocols_differ"] == told
    printed = capsys.readouterr().out
    assert all(f"Not alike! {line}" in printed for line in told)
    assert compare.compare([a], [a], across=True)["protocols_differ"] == []
    assert "Their protocols differ" in printed
    for folder, initial in ((a, "fresh"), (b, "wide:3")):
        summary = json.loads((folder / "summary.json").read_text())
        summary["protocol"]["libero"] = {"initial": initial}
        (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"the same starts, found other libero\.initial"):
        compare.compare([a], [b], across=True)
