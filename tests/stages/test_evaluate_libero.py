"""`lawm eval` on LIBERO: the same episodes for any number of workers, and the protocol in every result."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_suite import witnessed

from lawm_policy import cli
from lawm_policy.sim import protocol
from lawm_policy.sim.libero_assets import ANY_VERSION, PINNED
from lawm_policy.stages import evaluate
from lawm_policy.stages.evaluate import EvaluateArgs
from lawm_policy.types import UserError

pytestmark = pytest.mark.libero


def arguments(out, policy="ReachDown", **more):
    common = {"suite": "libero_policies:short_suite", "tasks": "2,5", "episodes": 2, "workers": 0}
    return EvaluateArgs(out=out, policy_factory=f"libero_policies:{policy}", **({"run": ""} | common | more))


def episodes(out):
    return sorted((replace(r, seconds=0.0) for r in protocol.read(out)), key=lambda r: r.episode)


@pytest.mark.slow
def test_workers_change_nothing_and_the_protocol_is_told(tmp_path):
    seen = {name: str(tmp_path / f"seen-{name}") for name in ("here", "two")}
    assert evaluate.run(arguments(tmp_path / "here", run=seen["here"])) == 0
    assert evaluate.run(arguments(tmp_path / "two", run=seen["two"], workers=2, video=1)) == 0
    looks = witnessed(seen["here"])
    assert looks == witnessed(seen["two"]) and len(looks) == 4, "each from a state of its own"
    here = episodes(tmp_path / "here")
    assert here == episodes(tmp_path / "two") and len(here) == 4
    assert [(r.task, r.init_state) for r in here[:2]] == [("libero_object-2", 0), ("libero_object-2", 1)]
    assert all(r.steps == 24 and r.success is False for r in here) and len({r.start for r in here}) == 4
    told = json.loads((tmp_path / "here" / "summary.json").read_text())["protocol"]
    assert told["libero"]["name"] == "lawm" and told["libero"]["visuals"] == "lite"
    assert told["settle_steps"] == 5 and told["control"]["embodiment"] == "panda"
    assert {name: told["versions"][name] for name in PINNED} == PINNED
    assert (tmp_path / "two" / "video" / "libero_object-5-0-0.mp4").stat().st_size > 2000


@pytest.mark.slow
def test_a_policy_of_joint_commands_is_played_with_joint_commands(tmp_path):
    assert evaluate.run(arguments(tmp_path / "e", "HoldStill", tasks="2", episodes=1)) == 0
    told = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert told["protocol"]["control"]["command"] == "joint"
    assert len(told["policy"]["robot"]["action_names"]) == 8


def test_what_cannot_be_played_is_refused_before_anything_is_written(tmp_path):
    for more, said in (
        ({"suite": "libero_object", "episodes": 51}, "ask for fewer --episodes"),
        ({"suite": "libero_object", "split": "val"}, "expected --split test"),
        ({"suite": "libero_object@openvlm"}, "did you mean 'openvla'"),
        ({"tasks": "11"}, "0-9, found '11'"),
        ({"distractors": 2, "suite": "libero_object"}, "no distractors"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate.run(arguments(tmp_path / "e", **more))
        assert not (tmp_path / "e").exists(), more


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "e"
    assert evaluate.run(with_fault(out, "well")) == 0
    return out


def with_fault(out, fault, **more):
    suite, policy = "fault_policies:suite", "fault_policies:policy"
    return EvaluateArgs(
        fault, out, suite=suite, policy_factory=policy, tasks="1", episodes=2, workers=1, **more
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["memory", "context"])
def test_a_worker_without_memory_or_opengl_costs_its_episode_alone(undisturbed, tmp_path, fault):
    out, flag = tmp_path / "e", tmp_path / "flag"
    assert evaluate.run(with_fault(out, f"{fault}:{flag}")) in (0, 1) and flag.exists()
    hit = [r for r in protocol.read(out) if r.error]
    assert len(hit) <= 1 and all(r.success is None and "\n" not in r.error for r in hit)
    assert evaluate.run(with_fault(out, f"{fault}:{flag}", resume=True)) == 0
    assert episodes(out) == episodes(undisturbed)


@pytest.mark.slow
def test_another_mujoco_is_refused_or_played_and_told(tmp_path, monkeypatch, capsys):
    facts = tmp_path / "site" / "mujoco-3.4.0.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True)
    facts.write_text("Metadata-Version: 2.1\nName: mujoco\nVersion: 3.4.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    out = tmp_path / "e"
    command = [
        "eval",
        str(tmp_path / "seen"),
        "--suite",
        "libero_policies:short_suite",
        "--tasks",
        "2",
        "--episodes",
        "1",
    ]
    command += ["--policy-factory", "libero_policies:ReachDown", "--workers", "0", "--out", str(out)]
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "found mujoco 3.4.0" in err and not out.exists()
    monkeypatch.setenv(ANY_VERSION, "1")
    assert cli.main(command) == 0
    told = json.loads((out / "summary.json").read_text())["protocol"]
    assert told["versions"]["mujoco"] == "3.4.0"
