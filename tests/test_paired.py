"""One policy played in several ways: LIBERO's protocols, and the controls beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import libero_protocols
import paired
import pytest
from timing import panda_policy
from tiny_policy import CONFIG

from lawm_policy.sim.matching import check_match
from lawm_policy.sim.suites import libero_suite
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.types import UserError


@pytest.fixture
def lite_policy(monkeypatch):
    """An untrained policy that learnt from `lawm collect`: lite images."""
    policy = panda_policy(CONFIG)
    policy.robot = {**policy.robot, "visuals": "lite"}
    monkeypatch.setattr(libero_protocols, "load_policy", lambda run: policy)
    return policy


def protocols(tmp_path, monkeypatch, played):
    monkeypatch.setattr(libero_protocols, "play", played)
    libero_protocols.main(libero_protocols.Args("RUN", "libero_goal", tmp_path / "out", quick=True))
    return json.loads((tmp_path / "out/result.json").read_text())


def test_presets_draw_images_as_the_policy_learnt_from(tmp_path, monkeypatch, lite_policy):
    grids = []
    lost = {"success %": None, "episodes": 0, "no_episode": 20}  # of a way in which no start is an episode

    def played(grid, base, than):
        grids.append(grid)
        return lost if len(grids) == 2 else {"episodes": 20, "no_episode": 0}

    result = protocols(tmp_path, monkeypatch, played)
    assert {grid.suite.partition("@")[2] for grid in grids} == {
        f"{preset}+lite" for preset in libero_protocols.PRESETS
    }
    assert result["targets"][0]["value"] == 100 / len(grids) and "lite images" in result["notes"]
    lite_policy.robot["flip"] = "rotate_180"
    with pytest.raises(UserError, match="not turned"):
        protocols(tmp_path, monkeypatch, played)


SUMMED = ("successes", "episodes", "no_episode", "rate", "low", "high")


def test_controls_are_named_by_what_they_lack_and_play_the_same(tmp_path, monkeypatch):
    made = {
        "whole": CONFIG,
        "blind": replace(CONFIG, sees=False),
        "both": replace(CONFIG, sees=False, hears=False),
        "deaf": replace(CONFIG, hears=False),
    }
    monkeypatch.setattr(paired, "load_policy", lambda run: panda_policy(made[run]))
    assert paired.lacking(["deaf", "blind"]) == {"no-language": "deaf", "blind": "blind"}
    for runs, said in ((["whole"], "sees and hears"), (["blind", "both"], "second one that is blind")):
        with pytest.raises(UserError, match=said):
            paired.lacking(runs)
    grids = []

    def play(grid):
        grids.append(grid)
        return {"success %": 7.0, "95% interval": (1, 9), "no_episode": 0}

    unlike, paired_play = [None, "BrokenPremise: it fell"], paired.play
    monkeypatch.setattr(paired, "evaluate", lambda grid: 1)
    monkeypatch.setattr(paired, "read", lambda out: [SimpleNamespace(error=e) for e in unlike])
    monkeypatch.setattr(paired, "read_summary", lambda out: {"all": dict.fromkeys(SUMMED, 0)})
    asked = EvaluateArgs("RUN", tmp_path / "light-2", suite="libero_goal@lawm+light:2", episodes=3)
    assert paired_play(asked)["success %"] is None, "no start was an episode"
    unlike.append("worker died")
    with pytest.raises(SystemExit, match="worker died: the row is not counted"):
        paired_play(asked)
    monkeypatch.setattr(paired, "play", play)
    row = paired.controls(asked, {"blind": "B"})
    assert row == {"blind: success %": 7.0, "blind: 95% interval": (1, 9)}
    assert grids == [replace(asked, run="B", out=tmp_path / "light-2-blind")]


@pytest.mark.libero
@pytest.mark.slow
def test_a_policy_of_lite_images_belongs_to_every_preset(lite_policy):
    for way in libero_protocols.ways()[:4]:
        policy = getattr(libero_protocols, way.factory.partition(":")[2])("RUN")
        check_match(libero_suite(f"libero_goal@{way.preset}+lite"), policy)
