import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_videos import make_store, moving_square, numbered_frame, read_step

from lawm_policy.data import layout, store_repair
from lawm_policy.data.store import EpisodeStore, StoreWriter
from lawm_policy.data.store_repair import automatic_split
from lawm_policy.types import UserError


def test_round_trip(tmp_path: Path) -> None:
    store = EpisodeStore.open(make_store(tmp_path / "s"))
    assert (store.fps, store.cameras, store.labelled) == (20, {"front": (32, 32), "wrist": (32, 32)}, True)
    assert (store.state_names, store.action_names) == (("x", "y", "g"), ("x", "g"))
    assert store.robot == {"embodiment": "arm6", "relative_to": [0, None]}
    assert [e.text for e in store.episodes[:3]] == ["do task 0", "do task 1", "do task 0"]
    for e in store.episodes:
        assert store.state(e.index)[:, 0].tolist() == list(range(40))
        assert np.allclose(store.state(e.index)[:, 1], 0.1 * e.index)
        assert np.array_equal(store.actions(e.index)[:, 0], np.arange(40) + 0.5)
        assert np.allclose(store.timestamps(e.index), np.arange(40) / 20, atol=1e-6)
        frames = store.frames(e.index, "wrist")
        assert [read_step(frames[t], near=t) for t in range(40)] == list(range(40))
    assert store.frames(3, "front", size=16).shape == (40, 16, 16, 3)


def test_frames_survive_the_codec(tmp_path: Path) -> None:
    frames = moving_square(30, 64, seed=3)
    with StoreWriter(tmp_path / "s", fps=10, cameras={"front": (64, 64)}) as writer:
        writer.add_episode({"front": frames})
    error = np.abs(EpisodeStore.open(tmp_path / "s").frames(0, "front").astype(float) - frames)
    assert error.mean() < 3


def test_files_are_the_v3_layout(tmp_path: Path) -> None:
    root = make_store(tmp_path / "s", episodes=3)
    files = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert files == {
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/lawm.json",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.front/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    }
    info = json.loads((root / layout.INFO).read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 120, 2)
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert table.column("index").to_pylist() == list(range(120))
    assert table.column("task_index").to_pylist() == [0] * 40 + [1] * 40 + [0] * 40
    tasks = pq.read_table(root / layout.TASKS)
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    stats = json.loads((root / layout.STATS).read_text())
    assert stats["action"]["mean"][0] == pytest.approx(20.0)
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)


def test_large_stores_are_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "VIDEO_MB", 0.006)
    monkeypatch.setattr(layout, "DATA_MB", 0.003)
    monkeypatch.setattr(layout, "FILES_PER_CHUNK", 2)
    store = EpisodeStore.open(make_store(tmp_path / "s", episodes=5))
    assert len(list((tmp_path / "s" / "data").glob("chunk-001/*"))) > 0
    assert len(list((tmp_path / "s" / "videos").glob("*front/*/*.mp4"))) > 1
    for e in store.episodes:
        assert np.allclose(store.state(e.index)[:, 1], 0.1 * e.index)
        assert read_step(store.frames(e.index, "front")[23], near=23) == 23


def test_append_continues_and_keeps_what_is_there(tmp_path: Path) -> None:
    root = make_store(tmp_path / "s", episodes=2, labelled=False)
    old = {p: p.read_bytes() for p in (root / "videos").rglob("*.mp4")}
    with StoreWriter(root, fps=20, cameras={"front": (32, 32), "wrist": (32, 32)}, append=True) as writer:
        assert writer.sources == {"0", "1"}
        frames = np.stack([numbered_frame(t) for t in range(10)])
        assert writer.add_episode({"front": frames}, text="new words") == 2
    store = EpisodeStore.open(root)
    assert all(p.read_bytes() == data for p, data in old.items())
    assert [e.length for e in store.episodes] == [40, 40, 10]
    assert store.episodes[2].cameras == ("front",)
    assert read_step(store.frames(2, "front")[7], near=7) == 7
    assert store.frames(2, "wrist").max() < 4  # a view that was not there is black
    with pytest.raises(UserError, match="features"):
        StoreWriter(root, fps=20, cameras={"front": (32, 32)}, append=True)
    with pytest.raises(UserError, match="in use"):
        StoreWriter(root, fps=20, cameras={"front": (32, 32), "wrist": (32, 32)})


def test_split_is_by_episode_and_one_in_ten(tmp_path: Path) -> None:
    splits = [automatic_split("arm/push", i) for i in range(1000)]
    assert all(splits[i : i + 10].count("val") == 1 for i in range(0, 1000, 10))
    assert len({splits[i : i + 10].index("val") for i in range(0, 1000, 10)}) > 5
    store = EpisodeStore.open(make_store(tmp_path / "s", episodes=4, split="val"))
    assert {e.split for e in store.episodes} == {"val"}


def foreign(path: Path, texts: list[str]) -> EpisodeStore:
    """A store as LeRobot writes it: a text an episode, and no word of ours about the split."""
    with StoreWriter(path, fps=20, cameras={"front": (32, 32)}) as writer:
        for text in texts:
            writer.add_episode({"front": np.zeros((2, 32, 32, 3), np.uint8)}, text=text)
    for table in (path / layout.EPISODES).glob("*/*.parquet"):
        rows = pq.read_table(table)
        pq.write_table(rows.drop([c for c in rows.column_names if c.startswith("lawm/")]), table)
    (path / layout.EXTRA).unlink()
    return EpisodeStore.open(path)


def test_where_every_episode_has_a_sentence_of_its_own_one_in_ten_is_held_out(tmp_path: Path) -> None:
    store = foreign(tmp_path / "own", [f"sentence {i}" for i in range(20)])
    splits = [e.split for e in store.episodes]
    assert splits[1] == "val" and splits[:10].count("val") == splits[10:].count("val") == 1
    assert [e.split for e in EpisodeStore.open(store.path).episodes] == splits
    two, one = foreign(tmp_path / "two", ["a", "b"]), foreign(tmp_path / "one", ["a"])
    assert [e.split for e in two.episodes] == ["train", "val"] and one.episodes[0].split == "train"


def test_where_one_sentence_is_there_twice_the_split_stays_by_sentence(tmp_path: Path) -> None:
    store = foreign(tmp_path / "s", ["a", "b", "c", "b", "a"])
    assert [e.split for e in store.episodes] == ["train", "train", "train", "val", "val"]


def test_a_split_that_was_asked_for_stays(tmp_path: Path) -> None:
    store = EpisodeStore.open(make_store(tmp_path / "s", episodes=3, split="train", length=4))
    assert {e.split for e in store.episodes} == {"train"}


def test_fingerprint_names_the_content(tmp_path: Path) -> None:
    a = EpisodeStore.open(make_store(tmp_path / "a", episodes=2))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert EpisodeStore.open(tmp_path / "b").fingerprint == a.fingerprint
    assert EpisodeStore.open(tmp_path / "b").files_digest == a.files_digest
    video = next((tmp_path / "b").rglob("*.mp4"))
    data = bytearray(video.read_bytes())
    data[len(data) // 2] ^= 1
    video.write_bytes(data)
    assert EpisodeStore.open(tmp_path / "b").files_digest != a.files_digest
    other = EpisodeStore.open(make_store(tmp_path / "c", episodes=2, captions=False))
    assert other.fingerprint != a.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": {"front": np.zeros((5, 32, 30, 3), np.uint8)}}, "frames of"),
        ({"frames": {"side": np.zeros((5, 32, 32, 3), np.uint8)}}, "expected frames of"),
        ({"state": np.zeros((4, 3))}, "one length"),
        ({"state": np.zeros((5, 2))}, "shape"),
        ({"actions": np.full((5, 2), np.nan)}, "finite"),
        ({"actions": None}, "every episode"),
        ({"timestamps": np.arange(5) / 10}, "drift"),
    ],
)
def test_a_wrong_episode_is_refused_and_the_others_kept(tmp_path: Path, change: dict, message: str) -> None:
    good = {
        "frames": {"front": np.zeros((5, 32, 32, 3), np.uint8)},
        "state": np.zeros((5, 3)),
        "actions": np.zeros((5, 2)),
    }
    names = {"state_names": ["a", "b", "c"], "action_names": ["d", "e"]}
    with StoreWriter(tmp_path / "s", fps=20, cameras={"front": (32, 32)}, **names) as writer:
        writer.add_episode(**good)
        with pytest.raises(UserError, match=message):
            writer.add_episode(**(good | change))
        writer.add_episode(**good)
    assert len(EpisodeStore.open(tmp_path / "s").episodes) == 2


def test_what_is_not_a_store_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x.csv").write_text("1,2")
    (tmp_path / "file").write_text("")
    old = make_store(tmp_path / "old", episodes=1)
    info = json.loads((old / layout.INFO).read_text())
    (old / layout.INFO).write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    cut = make_store(tmp_path / "cut", episodes=1)
    table = cut / "meta/episodes/chunk-000/file-000.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    text = make_store(tmp_path / "text", episodes=1)
    (text / layout.INFO).write_text("{")
    none = tmp_path / "none"
    StoreWriter(none, fps=20, cameras={"front": (32, 32)}).close()
    for name in ("missing", "empty", "foreign", "file", "old", "cut", "text", "none"):
        with pytest.raises(UserError) as caught:
            EpisodeStore.open(tmp_path / name)
        assert "expected" in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(UserError, match="even"):
        StoreWriter(tmp_path / "odd", fps=20, cameras={"front": (33, 32)})
    with pytest.raises(UserError, match="whole number"):
        StoreWriter(tmp_path / "ntsc", fps=29.97, cameras={"front": (32, 32)})  # type: ignore[arg-type]


# Crash safety. A crash is an exception where a kill could fall: what follows it never runs.


class Killed(BaseException):
    pass


def interrupted_store(root: Path) -> tuple[StoreWriter, np.ndarray]:
    writer = StoreWriter(root, fps=20, cameras={"front": (32, 32)})
    frames = np.stack([numbered_frame(t) for t in range(12)])
    for n in range(3):
        writer.add_episode({"front": frames}, source=str(n), text=f"t{n}")
    return writer, frames


def check(store: EpisodeStore, episodes: int) -> None:
    assert len(store.episodes) == episodes
    for e in store.episodes:
        frames = store.frames(e.index, "front")
        assert [read_step(frames[t], near=t) for t in range(12)] == list(range(12))
    assert not (store.path / layout.WORK).exists()
    files = {
        str(p.relative_to(store.path))
        for folder in ("data", "videos")
        for p in (store.path / folder).rglob("*.*")
    }
    named = {str(store.data_file(e.index).relative_to(store.path)) for e in store.episodes}
    named |= {str(store.video_file(e.index, "front")[0].relative_to(store.path)) for e in store.episodes}
    assert {f for f in files if not (store.path / f).is_dir()} == named  # nothing half-done is left


def test_crash_keeps_committed_salvages_finished_removes_begun(tmp_path: Path) -> None:
    writer, frames = interrupted_store(tmp_path / "s")
    writer.commit = lambda folder: (_ for _ in ()).throw(Killed)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        writer.add_episode({"front": frames}, source="3")
    begun = writer.staging_folder()
    (begun / "front.mp4").write_bytes(b"half a video")
    writer._journal.write('{"index": 3, "torn')  # the line that was being written
    writer._journal.close()
    writer._lock.release()
    store = EpisodeStore.open(tmp_path / "s")
    assert store.recovery is not None
    assert (store.recovery.committed, store.recovery.salvaged, store.recovery.removed) == (3, 1, 1)
    assert [e.source for e in store.episodes] == ["0", "1", "2", "3"]
    check(store, 4)
    assert EpisodeStore.open(tmp_path / "s").recovery is None


@pytest.mark.parametrize("spoilt", ["front.mp4", "episode.json"])
def test_a_staged_episode_that_was_damaged_is_not_salvaged(tmp_path: Path, spoilt: str) -> None:
    writer, frames = interrupted_store(tmp_path / "s")
    writer.commit = lambda folder: 0  # type: ignore[method-assign]
    writer.add_episode({"front": frames})
    staged = [p for p in (tmp_path / "s" / layout.STAGED).glob("*/*") if (p / "episode.json").exists()]
    known = {line["folder"] for line in store_repair.read_journal(tmp_path / "s")}
    (lost,) = [p for p in staged if str(p.relative_to(tmp_path / "s")) not in known]
    (lost / spoilt).write_bytes(b"torn")
    writer._lock.release()
    assert EpisodeStore.open(tmp_path / "s").recovery == store_repair.Recovery(3, 0, 1)


@pytest.mark.parametrize("name", [layout.JOURNAL, layout.INFO])
def test_a_damaged_record_of_an_interrupted_writing_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    writer, _ = interrupted_store(tmp_path / "s")
    writer._lock.release()
    (tmp_path / "s" / name).write_text("{\n")
    with pytest.raises(UserError, match=f"{name}, found .*: make the store again"):
        EpisodeStore.open(tmp_path / "s")


@pytest.mark.parametrize("step", ["_join_data", "_join_camera", "_write_rows", "_write_summaries"])
@pytest.mark.parametrize("after", [False, True])
def test_closing_can_be_cut_off_anywhere(
    tmp_path: Path, step: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, _ = interrupted_store(tmp_path / "s")
    original = getattr(store_repair, step)

    def cut(*args: object) -> None:
        if after:
            original(*args)
        raise Killed

    monkeypatch.setattr(store_repair, step, cut)
    with pytest.raises(Killed):
        writer.close()
    monkeypatch.undo()
    check(EpisodeStore.open(tmp_path / "s"), 3)


def test_a_writer_that_is_alive_is_not_disturbed(tmp_path: Path) -> None:
    writer, frames = interrupted_store(tmp_path / "s")
    with pytest.raises(UserError, match="another process"):
        EpisodeStore.open(tmp_path / "s")
    writer.add_episode({"front": frames})
    writer.close()
    check(EpisodeStore.open(tmp_path / "s"), 4)
