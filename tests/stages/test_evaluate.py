"""Episodes are the same whoever plays them, and errors are never failures."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from evaluations import arguments, episodes
from fake_suite import witnessed

from lawm_policy.policies.ensembling import Ensemble
from lawm_policy.sim import playing, protocol
from lawm_policy.sim.crews import load_function
from lawm_policy.sim.libero_premise import Diverged
from lawm_policy.sim.suites import suite_named
from lawm_policy.stages import evaluate
from lawm_policy.stages.evaluate_worker import film_name
from lawm_policy.types import UserError

TESTS = Path(__file__).parents[1]


def test_records(whole, capsys):
    lines = [json.loads(line) for line in (whole / "episodes.jsonl").read_text().splitlines()]
    assert len(lines) == 18 and list(lines[0])[:9] == [
        "suite", "task", "init_state", "seed", "success", "steps", "error", "seconds", "checkpoint_sha256",
    ]  # fmt: skip
    assert {line["init_state"] for line in lines} == set(range(200_000, 200_006))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["complete"]
    assert summary["protocol"] == {
        "suite": "point", "limits": {"near": 24, "far": 24, "other": 24}, "held_out": ["other"],
        "settle_steps": 0, "cameras": ["front"], "resolution": 8, "flip": False, "execute": 4,
        "control": {"embodiment": "arm6", "command": "joint", "rate": 20}, "visuals": {"distractors": 0},
        "versions": {"numpy": np.__version__},
    }  # fmt: skip
    assert 0 < summary["all"]["successes"] < 18, "the fake world must be neither hopeless nor trivial"
    for part in ("all", "seen", "held_out", *(f"tasks.{t}" for t in ("near", "far", "other"))):
        found = summary["tasks"][part[6:]] if part.startswith("tasks.") else summary[part]
        assert found["low"] <= found["rate"] <= found["high"] and found["errors"] == 0
    assert summary["held_out"]["episodes"] == 6 and summary["tasks"]["other"]["held_out"]


@pytest.mark.parametrize("workers", [1, 3])
def test_same_episodes_for_any_number_of_workers(whole, tmp_path, workers):
    assert evaluate.run(arguments(tmp_path / "e", workers=workers, episodes=6)) == 0
    assert episodes(tmp_path / "e") == episodes(whole)


def test_a_process_that_uses_cuda_opens_no_simulator(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(evaluate, "check_match", lambda *_: pytest.fail("a simulator beside CUDA"))
    assert evaluate.run(arguments(tmp_path / "e", episodes=6)) == 0
    assert episodes(tmp_path / "e") == episodes(whole)


@pytest.mark.parametrize(("workers", "execute"), [(0, None), (1, None), (3, None), (1, 2)])
def test_one_policy_for_all_workers_answers_full_batches(tmp_path, workers, execute):
    """Its chunks are smoothed by each episode's own past."""
    common = {"episodes": 2, "execute": execute}
    assert evaluate.run(arguments(tmp_path / "own", "Crowd", workers=0, **common)) == 0
    assert evaluate.run(arguments(tmp_path / "e", "Crowd", "4", workers=workers, batch=4, **common)) == 0
    assert episodes(tmp_path / "e") == episodes(tmp_path / "own")
    policy = json.loads((tmp_path / "e" / "summary.json").read_text())["policy"]
    assert policy["batch"] == 4 and policy["device"] == "cpu"


@pytest.mark.parametrize("ensemble", [0.0, 0.5])
def test_what_a_policy_says_is_smoothed_where_it_is_executed(ensemble):
    """A policy behind a seat keeps no past; one that sits here does: the same commands come out."""
    env = suite_named("fake_suite:suite").make()
    crowd = load_function("fake_suite:Crowd")("")
    crowd.ensemble = Ensemble(ensemble, 3, crowd.execute)
    cell, rules = protocol.Episode("far", 2, 0), {"execute": 4, "limit": 24}
    here = playing.play(env, crowd, cell, **rules)
    place = env.place.copy()
    seat = protocol.Seat.of(crowd)
    game = playing.smoothed(playing.playing(env, seat, cell, **rules), seat.ensemble.fresh())
    observation = next(game)
    with pytest.raises(StopIteration) as end:
        while True:
            observation = game.send(crowd.act_batch([observation])[0])
    assert end.value.value == here and np.array_equal(env.place, place)


@pytest.mark.parametrize("more", [{"workers": 0}, {"workers": 1, "batch": 2}])
def test_who_evaluates_in_python_keeps_their_threads(tmp_path, more):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert evaluate.run(arguments(tmp_path / "e", "Crowd", "", episodes=1, **more)) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_fault_of_the_one_policy_is_an_error_of_who_asked(tmp_path):
    out = tmp_path / "e"
    assert evaluate.run(arguments(out, "Crowd", "raise", batch=2, workers=2, tasks="near,other")) == 1
    records = episodes(out)
    assert all(r.error is None for r in records if r.task == "near")
    assert all("no answer for other" in r.error for r in records if r.task == "other")


def test_one_policy_that_hangs_is_an_error_of_who_asked_and_ends_the_evaluation(tmp_path):
    out, began = tmp_path / "e", time.monotonic()
    common = {"batch": 2, "workers": 2, "tasks": "near,other", "job_seconds": 2.0}
    with pytest.raises(UserError) as error:
        evaluate.run(arguments(out, "Crowd", "hang", **common))
    assert str(error.value) == (
        "expected the policy to answer within 2 s, found that it hangs: mend it, or give more --job-seconds, "
        "and --resume"
    )
    assert time.monotonic() - began < 60
    hung = [r for r in episodes(out) if r.error]
    assert 1 <= len(hung) <= 2 and {r.error for r in hung} == {"no answer within 2 s"}
    assert "other" in {r.task for r in hung} and all(r.success is None for r in hung)
    assert not protocol.read_summary(out)["complete"]
    assert evaluate.run(arguments(out, "Crowd", "", **common, resume=True)) == 0
    assert len(episodes(out)) == 6 and not any(r.error for r in episodes(out))


def test_a_policy_that_draws_differs_with_its_seed_only(whole, tmp_path):
    evaluate.run(arguments(tmp_path / "e", workers=0, episodes=6, seed=1))
    ours, theirs = episodes(tmp_path / "e"), episodes(whole)
    assert [r.steps for r in ours] != [r.steps for r in theirs]


def test_nothing_is_rendered_for_the_blind():
    env = suite_named("fake_suite:suite").make()
    walker = load_function("fake_suite:Walker")("")
    playing.play(env, walker, protocol.Episode("near", 1, 0), execute=4, limit=8, blind=True)
    assert env.rendered == 0


def test_only_chunk_ends_are_rendered():
    env = suite_named("fake_suite:suite").make()
    actor = load_function("fake_suite:Walker")("")
    for seed in range(5):
        env.rendered = 0
        end = playing.play(env, actor, protocol.Episode("near", seed, 0), execute=4, limit=24)
        assert env.rendered == 1 + end.steps // 4


def test_who_drives_the_simulation_apart_has_failed():
    env = suite_named("fake_suite:suite").make()
    step, taken = env.step, []

    def apart(command):
        taken.append(command)
        if len(taken) == 6:
            raise Diverged("numbers that are none")
        return step(command)

    env.step = apart
    episode = protocol.Episode("near", 1, 0)
    found = playing.play(env, load_function("fake_suite:Walker")(""), episode, execute=4, limit=24)
    assert found == (False, 5, "do near", "")


def test_blind_and_without_language():
    seen = []

    class Spy:
        cameras, size, execute, robot, sha256 = ("front",), 8, 4, None, "spy"

        def reset(self):
            pass

        def act(self, observation):
            seen.append((observation["images"]["front"].max(), observation["instruction"]))
            return np.zeros((4, 2))

    env = suite_named("fake_suite:suite").make()
    cell = protocol.Episode("near", 1, 0)
    playing.play(env, Spy(), cell, execute=4, limit=4)
    playing.play(env, Spy(), cell, execute=4, limit=4, blind=True, no_language=True)
    assert seen[0][0] > 0 and seen[0][1] == "do near" and seen[1] == (0, "")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("nan", "expected finite commands, found nan at [0, 0]"),
        ("shape", "expected commands of shape (>=4, 2), found (6, 3)"),
        ("raise", "RuntimeError: two lines"),
        ("stop", "StopIteration: "),
        ("die", "worker died with signal SIGKILL, 2 times"),
        ("hang", "worker said nothing for 5 s, 2 times"),
    ],
)
def test_errors_are_not_failures(whole, tmp_path, run, message):
    out = tmp_path / "e"
    assert evaluate.run(arguments(out, "Bad", run, episodes=1, job_seconds=5.0)) == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["all"] | {} == {**summary["seen"], "errors": 1} and summary["seen"]["episodes"] == 2
    assert summary["held_out"]["errors"] == 1 and summary["held_out"]["rate"] is None
    bad = next(r for r in protocol.read(out) if r.task == "other")
    assert message in bad.error and "\n" not in bad.error and bad.success is None
    # What another episode's error left behind reached no other episode.
    ours = [replace(r, checkpoint_sha256="") for r in episodes(out) if r.task != "other"]
    theirs = [
        replace(r, checkpoint_sha256="") for r in episodes(whole) if r.episode in {o.episode for o in ours}
    ]
    assert ours == theirs


def test_a_state_that_is_no_episode_is_told_apart_and_is_not_played_again(tmp_path, capfd):
    out = tmp_path / "e"
    args = arguments(out, suite="fake_suite:suite_with_a_broken_start", episodes=2, workers=0)
    assert evaluate.run(args) == 0, "it is no fault"
    told = json.loads((out / "summary.json").read_text())["all"]
    assert (told["episodes"], told["errors"], told["no_episode"]) == (5, 0, 1)
    before = (out / "episodes.jsonl").read_text()
    assert evaluate.run(replace(args, resume=True)) == 0 and (out / "episodes.jsonl").read_text() == before
    assert "1 starts are no episodes" in capfd.readouterr().out


def test_another_checkpoint_than_the_one_that_was_asked_for_is_refused(tmp_path):
    """As when training goes on, and a worker begins later than the others."""
    with pytest.raises(UserError, match="expected checkpoint walker at "):
        evaluate.run(arguments(tmp_path / "e", "Changing", str(tmp_path / "loaded"), workers=1))


def test_refusals(whole, tmp_path):
    for args, message in [
        (arguments(whole), "found an evaluation .* --resume or --force"),
        (arguments(whole, resume=True, episodes=1, workers=0), "15 episodes outside"),
        (arguments(whole, resume=True, execute=2), "protocol.execute: 4 and 2"),
        (arguments(whole, resume=True, blind=True), "policy.blind: false and true"),
        (
            arguments(whole, "Crowd", resume=True, workers=0),
            'policy.checkpoint_sha256: "walker" and "crowd"',
        ),
        (arguments(tmp_path / "n", tasks="neer"), "expected a task, found neer"),
        (arguments(tmp_path / "n", suite="tabeltop"), "did you mean 'tabletop'"),
        (arguments(tmp_path / "n", episodes=0), "--episodes of at least 1, found 0"),
        (
            arguments(tmp_path / "n", seed_base=99_999),
            "^expected --seed-base of at least 100000 in suite point, found 99999: leave it out, since those "
            "below are what policies train on$",
        ),
        (arguments(tmp_path / "n", workers=-1), "--workers of at least 0, found -1"),
        (
            arguments(tmp_path / "n", workers=0, batch=2, device="cuda"),
            "--workers of at least 1 with --device",
        ),
        (arguments(tmp_path / "n", batch=2), "expected a policy with `act_batch` and `ensemble`"),
        (arguments(tmp_path / "n", workers="rain"), "number or ray://HOST:PORT.*, found 'rain'"),
        (arguments(tmp_path / "n", "blue"), "expected cameras among front, wrist, found .* blue"),
        (arguments(tmp_path / "n", "three_joints"), r"action_names to be \['x', 'y'\]"),
        (arguments(tmp_path / "n", "four_hands"), "no embodiment hands"),
        (arguments(tmp_path / "n", "nobody"), 'expected "module:function"'),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate.run(args)
    assert not (tmp_path / "n").exists(), "a refusal wrote something"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other files"):
        evaluate.run(arguments(tmp_path / "other", force=True))


@pytest.mark.slow
def test_tabletop_films_and_workers_change_nothing(tmp_path):
    common = {"suite": "tabletop", "tasks": "open_drawer,push_red", "episodes": 2}
    seen = {}
    for name, workers, films in (("a", 2, 0), ("b", 1, 2)):
        run = str(tmp_path / f"seen-{name}")
        evaluate.run(arguments(tmp_path / name, "Wanderer", run, workers=workers, video=films, **common))
        seen[name] = witnessed(run)
    assert len(seen["a"]) == 4 and seen["a"] == seen["b"], "a policy saw something else"
    a, b = episodes(tmp_path / "a"), episodes(tmp_path / "b")
    assert a == b and len(a) == 4 and not any(r.error for r in a)
    starts = {(r.init_state, r.start) for r in a}
    assert len(starts) == 2 == len({mark for _, mark in starts}), "no task changes a scene, every seed does"
    films = sorted((tmp_path / "b" / "video").iterdir())
    assert [f.name for f in films] == [
        f"{task}-{state}-0.mp4" for task in ("open_drawer", "push_red") for state in (200_000, 200_001)
    ]
    with av.open(str(films[0])) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 256, 128)
        steps = next(r for r in a if r.task == "open_drawer").steps
        assert stream.frames == 1 + steps // 2 + steps % 2, "also how it ended"
    assert not (tmp_path / "a" / "video").exists()
    evaluate.run(arguments(tmp_path / "a", "Wanderer", "", workers=1, failures=3, resume=True, **common))
    again = {f.name: f.read_bytes() for f in (tmp_path / "a" / "video").iterdir()}
    lost = {film_name(r.episode) for r in a if not r.success}
    assert len(again) == min(3, len(lost)) > 0 and set(again) <= lost
    assert all(content == (tmp_path / "b" / "video" / name).read_bytes() for name, content in again.items())


def test_failures_that_tell_most_come_first():
    def record(task, state, success):
        return protocol.Record("s", task, state, 0, success, 9, None, 0.1, "x")

    mine = [record("easy", k, k != 3) for k in range(5)]  # fails once
    mine += [record("hard", k, k == 4) for k in range(5)]  # succeeds once
    others = [record("hard", 2, True), record("hard", 0, False), record("easy", 3, False)]
    told = [(r.task, r.init_state) for r in protocol.telling_failures(mine, others)]
    assert told == [("hard", 2), ("easy", 3), ("hard", 0), ("hard", 1), ("hard", 3)]
    assert [r.task for r in protocol.telling_failures(mine)][:2] == ["easy", "hard"]
    assert protocol.telling_failures([]) == []


def test_distractors_are_another_protocol(tmp_path):
    common = {"suite": "tabletop", "tasks": "push_red", "episodes": 1, "workers": 0}
    evaluate.run(arguments(tmp_path / "a", "Wanderer", **common))
    with pytest.raises(UserError, match=r"visuals\.distractors: 0 and 2"):
        evaluate.run(arguments(tmp_path / "a", "Wanderer", **common, distractors=2, resume=True))


@pytest.mark.parametrize(
    ("backend", "said"), [("disable", "none"), ("glfw", "DISPLAY"), ("no-such", "invalid value")]
)
def test_no_opengl_is_said_before_anything_is_written(tmp_path, backend, said):
    command = [sys.executable, "-m", "lawm_policy", "eval", "x", "--policy-factory", "fake_suite:Wanderer"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "MUJOCO_GL": backend}
    environment.pop("DISPLAY", None)
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "e")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "OpenGL" in done.stderr and done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (tmp_path / "e").exists()


def test_playing_here_keeps_the_threads(tmp_path):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate.run(arguments(tmp_path / "e", workers=0, episodes=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
