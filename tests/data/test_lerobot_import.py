"""Datasets in LeRobot's layout, as LIBERO's is on the hub: our names, one size, a robot card."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lawm_policy.cli import main
from lawm_policy.data import lerobot_import
from lawm_policy.data.lerobot_import import find_episodes, own_card, stage_stored
from lawm_policy.data.store import EpisodeStore, StoreWriter, _height_and_width
from lawm_policy.data.store_writer import EpisodeShape
from lawm_policy.sim.libero_robot import HAND, panda_card

MOTORS = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper", "gripper"]
ACTIONS = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper"]


def made_dataset(path, fps=20, state=8, lengths=(12, 9), grips=(-1, 1)):
    """Two cameras of 64 px, the upper half dark in one and the left half in the other; the rest fades."""
    rng = np.random.default_rng(0)
    with StoreWriter(
        path,
        fps=fps,
        cameras={"image": (64, 64), "image2": (64, 64)},
        state_names=MOTORS[:state],
        action_names=ACTIONS,
    ) as writer:
        for number, length in enumerate(lengths):
            commands = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
            commands[:, -1] = np.where(np.arange(length) < length // 2, *grips)
            light = (230 - 4 * np.arange(length, dtype=np.uint8))[:, None, None, None]
            front, wrist = (np.broadcast_to(light, (length, 64, 64, 3)).copy() for _ in range(2))
            front[:, :32] = wrist[:, :, :32] = 20
            writer.add_episode(
                {"image": front, "image2": wrist},
                rng.normal(size=(length, state)).astype(np.float32),
                commands,
                text=f"task {number}",
            )
    (path / "meta" / "lawm.json").unlink()  # LeRobot writes none
    return path


def run_import(source, out, *more):
    return main(
        ["import", "lerobot", str(source), "--out", str(out), "--size", "32", "--workers", "1", *more]
    )


def assert_alike(ours_THWC, theirs_THWC):
    """But for another encoding. A frame earlier or later, or another way round, is not alike."""
    assert np.abs(ours_THWC.astype(int) - theirs_THWC).mean(axis=(1, 2, 3)).max() < 1.5


def test_liberos_dataset_gets_our_names_and_a_card(tmp_path):
    theirs = EpisodeStore.open(made_dataset(tmp_path / "libero"))
    assert run_import(tmp_path / "libero", tmp_path / "ours", "--robot", "libero") == 0
    ours = EpisodeStore.open(tmp_path / "ours")
    assert ours.cameras == {"front": (32, 32), "wrist": (32, 32)} and ours.fps == 20
    assert ours.robot["embodiment"] == "panda" and ours.robot["flip"] == "rotate_180"
    assert ours.state_names == HAND and "joints" not in ours.robot
    assert [e.text for e in ours.episodes] == ["task 0", "task 1"]
    for k in range(2):
        np.testing.assert_array_equal(ours.state(k), theirs.state(k))
        np.testing.assert_array_equal(ours.actions(k), theirs.actions(k))
        for camera, name in (("front", "image"), ("wrist", "image2")):  # not turned: LeRobot has done that
            assert_alike(ours.frames(k, camera), theirs.frames(k, name, size=32))
    front = ours.frames(0, "front").astype(float)
    assert front[3, :14].mean() < 40 < 180 < front[3, 18:].mean()
    assert (np.diff(front[:, 18:].mean((1, 2, 3))) < 0).all(), "a frame a moment"


def with_pictures(path):
    """The same dataset as most of LIBERO's on the hub are: images in the tables, channels first, and a label
    that says 10 Hz."""
    store = EpisodeStore.open(path)
    [table] = path.glob("data/*/*.parquet")
    rows, info = pq.read_table(table), json.loads((path / "meta/info.json").read_text())
    for camera in store.cameras:
        pictures = [
            {"bytes": encoded(frame, ("png", "mjpeg")[k % 2]), "path": None}
            for e in store.episodes
            for k, frame in enumerate(store.frames(e.index, camera))
        ]
        rows = rows.append_column(f"observation.images.{camera}", pa.array(pictures))
        kind = {"dtype": "image", "shape": [3, 64, 64], "names": ["channels", "height", "width"]}
        info["features"][f"observation.images.{camera}"] = kind
    pq.write_table(rows, table, row_group_size=5)
    (path / "meta/info.json").write_text(json.dumps(info | {"fps": 10.0, "video_path": None}))
    shutil.rmtree(path / "videos")
    return path


def encoded(image, codec):
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = image.shape[:2]
    context.pix_fmt = "rgb24" if codec == "png" else "yuvj444p"
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=context.pix_fmt)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode()])


def test_a_dataset_of_single_images_becomes_video(tmp_path, capsys):
    """The frames are a command apart whatever rate the label says."""
    filmed = EpisodeStore.open(made_dataset(tmp_path / "filmed"))
    with_pictures(made_dataset(tmp_path / "libero"))
    assert run_import(tmp_path / "libero", tmp_path / "ours", "--robot", "libero") == 0
    assert "labelled 10 Hz; taken for LIBERO's 20, one frame a command" in capsys.readouterr().err
    ours = EpisodeStore.open(tmp_path / "ours")
    assert ours.cameras == {"front": (32, 32), "wrist": (32, 32)} and ours.fps == 20
    for k in range(2):
        assert ours.episodes[k].length == filmed.episodes[k].length
        np.testing.assert_array_equal(ours.actions(k), filmed.actions(k))
        for name, theirs in (("front", "image"), ("wrist", "image2")):
            assert_alike(ours.frames(k, name), filmed.frames(k, theirs, size=32))
    assert main(["inspect", str(tmp_path / "libero")]) == 2
    assert "single images for observation.images.image: `lawm import lerobot`" in capsys.readouterr().err


def test_a_picture_that_is_none_costs_its_episode(tmp_path, capsys):
    path = with_pictures(made_dataset(tmp_path / "libero"))
    [table] = path.glob("data/*/*.parquet")
    whole = pq.read_table(table).to_pylist()

    def imported(rows, out):
        pq.write_table(pa.Table.from_pylist(rows), table)
        assert run_import(path, tmp_path / out, "--robot", "libero") == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
        return [e.text for e in EpisodeStore.open(tmp_path / out).episodes], said

    def spoilt(row, camera, content):
        rows = copy.deepcopy(whole)
        rows[row][f"observation.images.{camera}"]["bytes"] = content
        return rows

    kept, [said] = imported(spoilt(3, "image", b"no picture"), "garbage")
    assert kept == ["task 1"] and "observation.images.image of episode 0" in said
    kept, [said] = imported(spoilt(15, "image2", None), "elsewhere")
    assert kept == ["task 0"] and "episode 1: " in said and "lies elsewhere" in said
    kept, [said] = imported(whole[:15], "cut")
    assert kept == ["task 0"] and "episode 1: 3 of 9 images of episode 1" in said


def test_heights_and_widths_are_told_by_name():
    names = ["height", "width", "channel"]
    assert _height_and_width({"shape": [48, 64, 3], "names": names}) == (48, 64)
    assert _height_and_width({"shape": [3, 48, 64], "names": names[2:] + names[:2]}) == (48, 64)
    assert _height_and_width({"shape": [3, 48, 64], "names": None}) == (48, 64)
    assert _height_and_width({"shape": [48, 64, 3]}) == (48, 64)


def test_images_can_be_turned_back(tmp_path):
    theirs = EpisodeStore.open(made_dataset(tmp_path / "libero"))
    assert run_import(tmp_path / "libero", tmp_path / "ours", "--robot", "libero", "--rotate") == 0
    ours = EpisodeStore.open(tmp_path / "ours")
    assert ours.robot["flip"] == "none"
    for camera, name in (("front", "image"), ("wrist", "image2")):
        assert_alike(ours.frames(0, camera), theirs.frames(0, name, size=32)[:, ::-1, ::-1])


def test_other_robots_keep_their_words(tmp_path):
    made_dataset(tmp_path / "arm", state=3)
    assert run_import(tmp_path / "arm", tmp_path / "ours", "--rename", "image2=hand") == 0
    ours = EpisodeStore.open(tmp_path / "ours")
    assert set(ours.cameras) == {"image", "hand"} and ours.robot is None
    assert ours.state_names == tuple(MOTORS[:3]) and ours.action_names == tuple(ACTIONS)


@pytest.mark.parametrize(
    ("made", "more", "said"),
    [
        ({"state": 3}, ["--robot", "libero"], "found 3 and 7: leave out --robot libero"),
        ({"grips": (1, 0)}, ["--robot", "libero"], "found 0 to 1: write them so (1 - 2 x where 1 is open)"),
        ({"grips": (0, 255)}, ["--robot", "libero"], "found 0 to 255"),
        ({}, ["--rename", "front=image"], "found front: correct --rename"),
        ({}, ["--rename", "image"], "expected --rename as image=front"),
        ({}, ["--rename", "image=wrist", "image2=wrist"], "expected names that differ"),
        ({}, ["--fps", "10"], "expected --fps with videos alone"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, capsys, made, more, said):
    made_dataset(tmp_path / "libero", **made)
    assert run_import(tmp_path / "libero", tmp_path / "ours", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_where_none_can_be_read_nothing_is_written(tmp_path, capsys):
    made_dataset(tmp_path / "libero")
    for film in (tmp_path / "libero" / "videos" / "observation.images.image2").rglob("*.mp4"):
        film.write_bytes(film.read_bytes()[:400])
    assert run_import(tmp_path / "libero", tmp_path / "ours", "--robot", "libero") == 2
    assert "expected at least one readable episode" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_more_of_the_same_dataset_is_added_once(tmp_path):
    made_dataset(tmp_path / "libero")
    assert run_import(tmp_path / "libero", tmp_path / "ours") == 0
    assert run_import(tmp_path / "libero", tmp_path / "ours", "--resume") == 0
    assert len(EpisodeStore.open(tmp_path / "ours").episodes) == 2
    made_dataset(tmp_path / "again" / "libero", lengths=(8,))  # another one, of the same name
    assert run_import(tmp_path / "again" / "libero", tmp_path / "ours", "--resume") == 0
    assert [e.length for e in EpisodeStore.open(tmp_path / "ours").episodes] == [12, 9, 8]
    report = json.loads((tmp_path / "ours" / "import_report.json").read_text())
    assert report["imported"] == 1


def test_what_a_dataset_has_grown_by_is_added(tmp_path):
    """Wherever it lies by then; two episodes that are equal are two."""
    made_dataset(tmp_path / "libero", lengths=(6, 7))
    assert run_import(tmp_path / "libero", tmp_path / "ours") == 0
    made_dataset(tmp_path / "moved", lengths=(6, 7, 8))
    assert run_import(tmp_path / "moved", tmp_path / "ours", "--resume") == 0
    assert [e.length for e in EpisodeStore.open(tmp_path / "ours").episodes] == [6, 7, 8]
    with StoreWriter(tmp_path / "twins", fps=20, cameras={"image": (32, 32)}) as writer:
        for _ in range(3):
            writer.add_episode({"image": np.zeros((6, 32, 32, 3), np.uint8)})
    assert len({e.source for e in find_episodes(tmp_path / "twins", {}, "")}) == 3


def test_our_own_stores_keep_their_robot_and_their_splits(tmp_path, capsys):
    """Also where all that is asked for is other names for its cameras."""
    card = panda_card("ee", ["top", "wrist"], "none", "lite")
    with StoreWriter(
        tmp_path / "own",
        fps=20,
        cameras={"top": (32, 32), "wrist": (32, 32)},
        state_names=card["state_names"],
        action_names=card["action_names"],
        robot=card,
    ) as writer:
        for number, split in enumerate(("val", "train", "train")):
            frames = np.full((6, 32, 32, 3), 50 * number, np.uint8)
            labels = np.full((6, 15), number, np.float32), np.full((6, 7), number, np.float32)
            writer.add_episode({"top": frames, "wrist": frames}, *labels, task="t", split=split)
    assert run_import(tmp_path / "own", tmp_path / "named", "--rename", "top=front") == 0
    named = EpisodeStore.open(tmp_path / "named")
    assert named.robot == card | {"cameras": ["front", "wrist"]}
    assert [e.split for e in named.episodes] == ["val", "train", "train"]
    turned = own_card(named, ["front", "wrist"], rotate=True)
    assert turned == named.robot | {"flip": "rotate_180"}
    named.robot = turned
    assert own_card(named, ["front", "wrist"], rotate=True)["flip"] == "none"
    assert run_import(tmp_path / "own", tmp_path / "libero", "--robot", "libero") == 2
    assert "found one: leave out --robot libero" in capsys.readouterr().err


def test_turned_and_unturned_images_are_not_mixed_where_there_is_no_card(tmp_path, capsys):
    made_dataset(tmp_path / "arm", lengths=(6,))
    made_dataset(tmp_path / "more", lengths=(7,))
    assert run_import(tmp_path / "arm", tmp_path / "ours", "--rotate") == 0
    assert run_import(tmp_path / "more", tmp_path / "ours", "--resume") == 2
    assert "expected episodes of the robot in" in capsys.readouterr().err
    assert run_import(tmp_path / "more", tmp_path / "ours", "--resume", "--rotate") == 0
    assert [e.length for e in EpisodeStore.open(tmp_path / "ours").episodes] == [6, 7]


def test_a_dataset_is_never_what_force_deletes(tmp_path, capsys):
    made_dataset(tmp_path / "libero", lengths=(6,))
    (tmp_path / "link").symlink_to(tmp_path / "libero")
    for out in ("libero", "link", "libero/out", "libero/../libero"):
        assert run_import(tmp_path / "libero", tmp_path / out, "--force") == 2
        assert "expected --out apart from what is imported" in capsys.readouterr().err
    assert len(EpisodeStore.open(tmp_path / "libero").episodes) == 1


def full_disk(*_):
    raise av.error.OSError(errno.ENOSPC, "No space left on device", "front.mp4")


def test_a_full_disk_is_not_the_episodes_fault(tmp_path, monkeypatch):
    made_dataset(tmp_path / "libero", lengths=(6,))
    [episode] = find_episodes(tmp_path / "libero", {}, "")
    shape = EpisodeShape(20, {"image": (32, 32), "image2": (32, 32)}, tuple(MOTORS), tuple(ACTIONS))
    monkeypatch.setattr(lerobot_import, "stage", full_disk)
    (tmp_path / "staged").mkdir()
    with pytest.raises(OSError, match="no room on the disk") as caught:
        stage_stored(tmp_path / "staged", episode, shape, rotate=False)
    assert caught.value.errno == errno.ENOSPC
