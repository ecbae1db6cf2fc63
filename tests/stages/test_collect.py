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
    observation, info = env.reset(seed=int(episode.source.rsplit("-", 1)[1]), options={"task": episode.task})
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
    assert "drawer" in captions[0].read_text()
    assert count_frames(out / "play" / "arm6-play-000000.front.mp4") == 20
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert collect.run(ask(out, **arguments, play_seconds=2.0, caption_rate=0.5, resume=True)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": "juggle"}, "found 'juggle'"),
        ({"embodiment": "arm9"}, "found 'arm9'"),
        ({"embodiment": "arm6,hand"}, "one embodiment"),
        ({"fps": 7}, "--fps"),
        ({"size": 33}, "--size"),
        ({"episodes": 0}, "at least one episode"),
        ({"seed": 99_999}, "where validation begins"),
        ({"caption_rate": 2.0}, "--caption-rate"),
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
