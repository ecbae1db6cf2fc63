"""`lawm collect libero_...`, and the whole way from its demonstrations to an evaluation."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lawm_policy.cli import main
from lawm_policy.data.store import EpisodeStore
from lawm_policy.sim import libero_experts
from lawm_policy.sim.libero_assets import described
from lawm_policy.sim.libero_premise import BrokenPremise, Diverged
from lawm_policy.sim.libero_robot import STATE, panda_card
from lawm_policy.sim.protocol import SPLITS
from lawm_policy.stages import collect, collect_libero
from lawm_policy.stages.collect import CollectArgs
from lawm_policy.types import UserError


def ask(out, **more):
    defaults = {"suite": "libero_object", "out": out, "tasks": "0", "episodes": 2, "size": 64, "workers": 0}
    return CollectArgs(**{**defaults, **more})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": "10"}, "0-9, found '10'"),
        ({"size": 96}, "--size 64, 128 or 256"),
        ({"size": 0}, "found 0"),
        ({"embodiment": "hand"}, "--embodiment panda"),
        ({"play": 2}, "--play with tabletop alone, found it with libero_object demos"),
        ({"play_seconds": 2.0}, "--play-seconds with tabletop alone"),
        ({"caption_rate": 0.5}, "--caption-rate with videos alone"),
        ({"episodes": 0}, "found none: give --episodes$"),
        ({"command": "joint"}, "--set data.command=joint"),
        ({"protocol": "lawm+lite"}, "the stored states are what everybody tests on"),
        ({"protocol": "lawn+fresh"}, "did you mean 'lawm'"),
        ({"seed": SPLITS["val"] - 1}, "where validation begins"),
    ],
)
def test_mistakes_write_nothing(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        collect.run(ask(tmp_path / "out", **arguments))
    assert not (tmp_path / "out").exists()


def test_a_collection_goes_on_under_the_protocol_it_began_with(tmp_path):
    """Fresh and wide states have the same robot card: a store of both would look like one."""

    def begin(protocol):
        asked = collect_libero.resolved(ask(tmp_path, protocol=protocol))
        collect._check_request(tmp_path, asked, {})

    begin("lawm+fresh+lite")
    begin("lawm+fresh+lite")
    with pytest.raises(UserError, match=r"protocol.*lawm\+fresh\+lite.*lawm\+wide:3\+lite"):
        begin("lawm+wide:3+lite")


def test_a_scene_that_is_given_up_is_replaced_by_one_that_is_nobody_elses(tmp_path, monkeypatch):
    """Of three episodes the second's first scene defeats the expert and its next is broken; the third has
    four that defeat him, the simulation in the first. No other collection draws those scenes, whatever its
    --seed, and no evaluation."""
    far = collect_libero.ELSEWHERE
    asked = collect_libero.resolved(ask(tmp_path, episodes=3, seed=10))
    played = []

    def rollout(env, scene, attempt, frame_stride):
        played.append((scene, attempt))
        if scene == 11 + far:
            raise BrokenPremise("it fell over")
        if scene == 12:
            raise Diverged("after 3 steps")
        return SimpleNamespace(success=scene == 10 or (scene, attempt) == (11 + 2 * far, 1), scene=scene)

    monkeypatch.setattr(libero_experts, "rollout", rollout)
    monkeypatch.setattr(collect_libero, "open_env", lambda args, task: task)
    perform = collect_libero.performer(asked, attempts=2)
    first, second, third = (perform(slot) for slot in collect_libero.check(asked))
    assert (first.episode.scene, first.failures, first.attempt) == (10, 0, 0)
    assert (second.episode.scene, second.failures, second.attempt) == (11 + 2 * far, 3, 1)
    assert third[:2] == (None, 8) and played[-1] == (12 + 3 * far, 1), "four scenes, twice each"
    assert far > max(SPLITS.values()) + 100_000


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    out = tmp_path_factory.mktemp("libero") / "demos"
    assert collect.run(ask(out, episodes=5, size=64)) == 0
    return out


@pytest.mark.libero
@pytest.mark.slow
def test_demonstrations_are_complete(demos):
    store = EpisodeStore.open(demos)
    assert {e.task for e in store.episodes} == {"libero_object-0"} and len(store.episodes) >= 4
    assert store.episodes[0].text == "pick up the alphabet soup and place it in the basket"
    assert store.robot == panda_card("ee", ("front", "wrist"), "none", "lite") and store.state_names == STATE
    assert store.fps == 20 and store.cameras == {"front": (64, 64), "wrist": (64, 64)}
    assert store.episodes[0].source == "panda-libero_object-0-000000 scene 0 attempt 0"
    made_with = json.loads((demos / collect.REQUEST).read_text())["made_with"]
    assert made_with["versions"]["robosuite"] == "1.4.0" and made_with["assets"] == described()
    for episode in store.episodes:
        state, action = store.state(episode.index), store.actions(episode.index)
        assert np.abs(action).max() <= 1 and set(np.unique(action[:, -1])) == {-1.0, 1.0}
        still = np.abs(np.diff(state[:, :3], axis=0)).max(axis=1) < 2e-4
        runs = np.diff(np.flatnonzero(np.diff(np.r_[0, still, 0])))[::2]
        assert max(runs, default=0) <= 12, "no waits that images do not explain"
    first = store.frames(0, "front")
    assert first.std() > 10 and np.abs(first[0].astype(int) - first[-1]).max() > 40


@pytest.mark.libero
@pytest.mark.slow
def test_from_demonstrations_to_an_evaluation_with_joint_commands(demos, tmp_path, monkeypatch):
    monkeypatch.setenv("LAWM_CACHE", str(tmp_path / "cache"))
    small = "--set policy.policy.size=64 --set data.command=joint --set train.steps=4"
    trained = f"finetune debug --data {demos} --out {tmp_path / 'run'} {small}"
    assert main(trained.split()) == 0
    played = f"eval {tmp_path / 'run'} --suite libero_policies:short_suite --tasks 0 --episodes 1 --workers 0"
    assert main([*played.split(), "--out", str(tmp_path / "eval")]) == 0
    told = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert told["protocol"]["control"]["command"] == "joint" and told["all"]["episodes"] == 1
    turned = f"eval {tmp_path / 'run'} --suite libero_object@openvla --tasks 0 --episodes 1 --workers 0"
    assert main([*turned.split(), "--out", str(tmp_path / "turned")]) == 2, "the images are turned there"


@pytest.mark.libero
@pytest.mark.slow
def test_videos_have_captions_and_no_commands(tmp_path):
    assert collect.run(ask(tmp_path / "videos", kind="videos", episodes=1, fps=10)) == 0
    names = sorted(p.name for p in (tmp_path / "videos").rglob("*") if p.suffix in (".mp4", ".txt"))
    assert [name.split(".", 1)[1] for name in names] == ["front.mp4", "txt", "wrist.mp4"]


def test_the_robots_card_needs_no_simulation(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_libero, "open_env", None)
    card = collect._card(collect_libero.resolved(ask(tmp_path, protocol="openvla+fresh")))
    assert card == panda_card("ee", ("front", "wrist"), "rotate_180")


@pytest.mark.libero
@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(demos, tmp_path):
    assert collect.run(ask(tmp_path / "two", workers=2)) == 0
    one, two = EpisodeStore.open(demos), EpisodeStore.open(tmp_path / "two")
    assert len(two.episodes) == 2
    for a, b in zip(one.episodes, two.episodes, strict=False):
        assert (a.source, a.text, a.split) == (b.source, b.text, b.split)
        np.testing.assert_array_equal(one.state(a.index), two.state(b.index))
        np.testing.assert_array_equal(one.actions(a.index), two.actions(b.index))
        np.testing.assert_array_equal(one.frames(a.index, "wrist"), two.frames(b.index, "wrist"))
