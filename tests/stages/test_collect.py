import errno
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import av.error
import numpy as np
import pytest

from lawm_policy.data.store import EpisodeStore
from lawm_policy.data.video import count_frames
from lawm_policy.sim.tabletop_env import TabletopEnv
from lawm_policy.stages import collect
from lawm_policy.stages.collect import CollectArgs
from lawm_policy.types import UserError


def ask(out, **more):
    defaults = {
        "suite": "tabletop",
        "out": out,
        "tasks": "push_red,close_drawer",
        "episodes": 2,
        "size": 32,
        "workers": 0,
    }
    return CollectArgs(**{**defaults, **more})


def test_demonstrations_are_complete_and_can_be_executed_again(tmp_path):
    assert collect.run(ask(tmp_path / "demos")) == 0
    store = EpisodeStore.open(tmp_path / "demos")
    assert [episode.task for episode in store.episodes] == ["push_red", "close_drawer"] * 2
    assert store.fps == 20 and store.robot["embodiment"] == "arm6" and store.cameras["wrist"] == (32, 32)
    env = TabletopEnv(images=False)
    episode = store.episodes[1]
    name, _, played = episode.source.partition(" ")
    assert played == f"scene {int(name.rsplit('-', 1)[1])} attempt 0"
    observation, info = env.reset(seed=int(played.split()[1]), options={"task": episode.task})
    assert info["instruction"] == episode.text
    for state, action in zip(store.state(1), store.actions(1), strict=True):
        np.testing.assert_array_equal(observation["state"], state)
        observation, *_, info = env.step(action)
    assert info["success"]


def test_the_number_of_workers_changes_nothing(tmp_path):
    for workers in (0, 2):
        assert collect.run(ask(tmp_path / str(workers), workers=workers)) == 0
    one, two = (EpisodeStore.open(tmp_path / str(workers)) for workers in (0, 2))
    assert one.fingerprint == two.fingerprint
    assert [e.source for e in one.episodes] == [e.source for e in two.episodes]


def test_resuming_gives_what_an_unbroken_run_gives(tmp_path, monkeypatch):
    collect.run(ask(tmp_path / "whole"))
    done = []
    prepare = collect.prepare_demo

    def breaks(args, shape):
        work = prepare(args, shape)

        def once(slot):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(slot)
            return work(slot)

        return once

    with monkeypatch.context() as patch:
        patch.setattr(collect, "prepare_demo", breaks)
        with pytest.raises(KeyboardInterrupt):
            collect.run(ask(tmp_path / "broken"))
    with pytest.raises(UserError, match="--resume or --force"):
        collect.run(ask(tmp_path / "broken"))
    with pytest.raises(UserError, match=r"expected episodes 2 .*found 3"):
        collect.run(ask(tmp_path / "broken", episodes=3, resume=True))
    assert collect.run(ask(tmp_path / "broken", resume=True)) == 0
    whole, broken = (EpisodeStore.open(tmp_path / name) for name in ("whole", "broken"))
    assert [e.source for e in whole.episodes] == [e.source for e in broken.episodes]
    for index in range(len(whole.episodes)):
        np.testing.assert_array_equal(whole.actions(index), broken.actions(index))


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_request_is_not_resumed(tmp_path, text):
    out = tmp_path / "videos"
    out.mkdir()
    (out / collect.REQUEST).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"collect.json, found .*: give another --out, or --force") as caught:
        collect.run(ask(out, kind="videos", resume=True))
    assert "\n" not in str(caught.value)


def test_videos_are_ordinary_files_without_commands(tmp_path):
    out = tmp_path / "videos"
    arguments = {"kind": "videos", "embodiment": "arm6,hand", "tasks": "close_drawer", "fps": 10, "play": 1}
    assert collect.run(ask(out, **arguments, play_seconds=2.0, caption_rate=0.5)) == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.mp4"))
    assert [name.split("/")[0] for name in names] == ["arm"] * 4 + ["hand"] * 4 + ["hand_play"] * 2 + [
        "play"
    ] * 2
    captions = list(out.rglob("*.txt"))
    assert 0 < len(captions) < 4 and not list((out / "play").glob("*.txt"))
    assert json.loads((out / "play" / "arm6-play-000000.json").read_text()) == {"scene": 0, "attempt": 0}
    assert "drawer" in captions[0].read_text()
    assert count_frames(out / "play" / "arm6-play-000000.front.mp4") == 20
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert collect.run(ask(out, **arguments, play_seconds=2.0, caption_rate=0.5, resume=True)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": "juggle"}, "found 'juggle': choose one of all, close_drawer"),
        ({"tasks": "push_red,open_drawr"}, r"found 'open_drawr': did you mean 'open_drawer'\?"),
        ({"tasks": ""}, "expected tasks of the tabletop, found ''"),
        ({"embodiment": "arm9"}, "found 'arm9'"),
        ({"embodiment": "arm6,hand"}, "one embodiment"),
        ({"fps": 7, "kind": "videos"}, "--fps 20, 10, 5 or 4"),
        ({"size": 33}, "--size"),
        ({"size": 0}, "even --size from 16 to 640, found 0"),
        ({"size": 0, "kind": "videos"}, "even --size from 16 to 640, found 0"),
        ({"episodes": 0}, "at least one episode"),
        ({"seed": 99_999}, "where validation begins"),
        ({"caption_rate": 2.0, "kind": "videos"}, "--caption-rate from 0 to 1"),
        ({"caption_rate": 0.5}, "--caption-rate with videos alone, found it with tabletop demos"),
        ({"fps": 10}, "--fps with videos alone"),
        ({"protocol": "lawm"}, "--protocol with LIBERO alone"),
        ({"workers": "rain"}, "number or ray://HOST:PORT.*, found 'rain'"),
    ],
)
def test_mistakes_write_nothing(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        collect.run(ask(tmp_path / "out", **arguments))
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_refused_even_by_force(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for mode in ("resume", "force"):
        with pytest.raises(UserError, match="other files"):
            collect.run(ask(tmp_path, **{mode: True}))
    assert (tmp_path / "precious.txt").read_text() == "mine"


def assert_same(kind, one, two):
    if kind == "videos":
        names = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
        assert names == {str(path.relative_to(two)) for path in two.rglob("*") if path.is_file()}
        for name in names - {collect.REQUEST}:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
        return
    one, two = EpisodeStore.open(one), EpisodeStore.open(two)
    assert [(e.source, e.split) for e in one.episodes] == [(e.source, e.split) for e in two.episodes]
    for index in range(len(one.episodes)):
        np.testing.assert_array_equal(one.state(index), two.state(index))
        np.testing.assert_array_equal(one.frames(index, "wrist"), two.frames(index, "wrist"))


def test_what_was_given_up_is_said_by_task(tmp_path, monkeypatch, capsys):
    """One scene of two defeats the expert; in the other task's he does it at the second attempt."""
    rollout = collect.rollout

    def clumsy(env, task, seed, *, attempt, **more):
        if attempt == 0 if task == "close_drawer" else seed < len(collect.TASKS):
            return SimpleNamespace(success=False)
        return rollout(env, task, seed, attempt=attempt, **more)

    monkeypatch.setattr(collect, "rollout", clumsy)
    assert collect.run(ask(tmp_path / "demos")) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "push_red: 1 episodes kept, 1 given up" and len(told) == 2
    assert "the expert failed 6 times, 1 episodes were given up" in told[1]
    store = EpisodeStore.open(tmp_path / "demos")
    assert [e.source.split()[-1] for e in store.episodes if e.task == "close_drawer"] == ["1", "1"]


@pytest.mark.parametrize("kind", ["demos", "videos"])
def test_a_full_disk_ends_it_and_what_is_complete_stays(tmp_path, kind, monkeypatch):
    asked = {"kind": kind, "tasks": "close_drawer", "episodes": 3}
    collect.run(ask(tmp_path / "whole", **asked))
    played = []
    write = collect.stage if kind == "demos" else collect.write_video

    def filling(*arguments):
        played.append(arguments)
        if len(played) == (2 if kind == "demos" else 4):  # of two cameras, the second one's
            raise av.error.OSError(errno.ENOSPC, "No space left on device", "somewhere.mp4")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(collect, write.__name__, filling)
        with pytest.raises(UserError, match=r"room on the disk for .*: free some and --resume"):
            collect.run(ask(tmp_path / "parts", **asked))
    assert len(played) == (2 if kind == "demos" else 4), "played on for nothing"
    assert collect.run(ask(tmp_path / "parts", **asked, resume=True)) == 0
    assert_same(kind, tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("moment", ["before the request", "before the store", "after the store's files"])
def test_what_was_killed_in_its_first_moment_can_be_resumed(tmp_path, moment, monkeypatch):
    out, made = tmp_path / "demos", collect.StoreWriter

    def dies(*arguments, **named):
        if moment == "after the store's files":
            made(*arguments, **named)._lock.release()
        raise KeyboardInterrupt

    if moment == "before the request":
        out.mkdir()
        (out / f".{collect.REQUEST}.part").write_text("{")
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(collect, "StoreWriter", dies)
            collect.run(ask(out, episodes=1))
    assert collect.run(ask(out, episodes=1, resume=True)) == 0
    assert len(EpisodeStore.open(out).episodes) == 2


def test_a_collection_goes_on_with_what_it_began_with(tmp_path):
    out = tmp_path / "demos"
    collect.run(ask(out, episodes=1))
    request = json.loads((out / collect.REQUEST).read_text())
    assert request["commit"] and request["made_with"]["versions"]["mujoco"]
    other = {**request, "made_with": {**request["made_with"], "versions": {"mujoco": "2.0"}}}
    (out / collect.REQUEST).write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"begun with .*found something else \(versions.*give another --out"):
        collect.run(ask(out, episodes=1, resume=True))
    del request["made_with"]  # as before such things were written down
    (out / collect.REQUEST).write_text(json.dumps(request))
    assert collect.run(ask(out, episodes=1, resume=True)) == 0


def test_a_process_that_uses_cuda_opens_no_simulator(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(collect, "_open_env", None)
    collect._check_rendering(ask(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["demos", "videos"])
def test_killed_and_resumed_equals_never_stopped(tmp_path, kind):
    """Each time with its first new episode, while its worker is at the next."""
    out = tmp_path / "parts"
    command = [sys.executable, "-m", "lawm_policy", "collect", "tabletop", "--tasks", "close_drawer"]
    command += ["--episodes", "4", "--size", "32", "--workers", "1", "--kind", kind, "--out", str(out)]

    def there():
        journal = out / ".lawm" / "journal.jsonl"
        lines = journal.read_text().count("\n") if journal.exists() else 0
        return lines + len(list(out.glob("*/*.front.mp4")))

    for more in ([], ["--resume"]):
        child = subprocess.Popen([*command, *more])
        had, deadline = None, time.monotonic() + 60
        while child.poll() is None and (had is None or there() <= had) and time.monotonic() < deadline:
            had = there() if had is None else min(had, there())  # a resumed store begins its journal anew
            time.sleep(0.01)
        assert child.poll() is None, "it ended by itself"
        child.kill()
        child.wait()
    arguments = {"kind": kind, "tasks": "close_drawer", "episodes": 4}
    assert collect.run(ask(out, **arguments, resume=True)) == 0
    assert collect.run(ask(tmp_path / "whole", **arguments)) == 0
    assert_same(kind, out, tmp_path / "whole")
