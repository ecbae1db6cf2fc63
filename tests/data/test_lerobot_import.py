"""Datasets in LeRobot's layout, as LIBERO's is on the hub: our names, one size, a robot card."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lawm_policy.cli import main
from lawm_policy.data.store import EpisodeStore, StoreWriter, _height_and_width
from lawm_policy.sim.libero_robot import HAND

MOTORS = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper", "gripper"]
ACTIONS = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper"]


def made_dataset(path, fps=20, state=8, lengths=(12, 9)):
    """Two cameras of 64 px, the upper half dark in one and the left half in the other."""
    rng = np.random.default_rng(0)
    with StoreWriter(
        path,
        fps=fps,
        cameras={"image": (64, 64), "image2": (64, 64)},
        state_names=MOTORS[:state],
        action_names=ACTIONS,
    ) as writer:
        for number, length in enumerate(lengths):
            front = np.full((length, 64, 64, 3), 200, np.uint8)
            front[:, :32] = 20
            wrist = np.full((length, 64, 64, 3), 200, np.uint8)
            wrist[:, :, :32] = 20
            writer.add_episode(
                {"image": front, "image2": wrist},
                rng.normal(size=(length, state)).astype(np.float32),
                rng.uniform(-1, 1, (length, 7)).astype(np.float32),
                text=f"task {number}",
            )
    (path / "meta" / "lawm.json").unlink()  # LeRobot writes none
    return path


def run_import(source, out, *more):
    return main(
        ["import", "lerobot", str(source), "--out", str(out), "--size", "32", "--workers", "1", *more]
    )


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
    front, wrist = (ours.frames(0, camera)[3].astype(float) for camera in ("front", "wrist"))
    assert front[:14].mean() < 40 < 180 < front[18:].mean(), "not turned: LeRobot has done that"
    assert wrist[:, :14].mean() < 40 < 180 < wrist[:, 18:].mean()


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
            differences = ours.frames(k, name).astype(int) - filmed.frames(k, theirs, size=32)
            assert np.abs(differences).mean() < 4
    assert main(["inspect", str(tmp_path / "libero")]) == 2
    assert "single images for observation.images.image: `lawm import lerobot`" in capsys.readouterr().err


def test_a_picture_that_is_none_costs_its_episode(tmp_path, capsys):
    path = with_pictures(made_dataset(tmp_path / "libero"))
    [table] = path.glob("data/*/*.parquet")
    rows = pq.read_table(table).to_pylist()
    rows[3]["observation.images.image"]["bytes"] = b"no picture"
    rows[15]["observation.images.image2"]["bytes"] = None
    pq.write_table(pa.Table.from_pylist(rows[:15]), table)
    assert run_import(path, tmp_path / "ours", "--robot", "libero") == 2, (
        "one is no picture, one is cut short"
    )
    said = capsys.readouterr()
    assert "observation.images.image of episode 0" in said.out + said.err
    assert "3 of 9 images" in said.out + said.err or "found 3" in said.out + said.err
    pq.write_table(pa.Table.from_pylist(rows), table)
    assert run_import(path, tmp_path / "ours", "--robot", "libero") == 2
    said = capsys.readouterr()
    assert "lies elsewhere" in said.out + said.err


def test_heights_and_widths_are_told_by_name():
    names = ["height", "width", "channel"]
    assert _height_and_width({"shape": [48, 64, 3], "names": names}) == (48, 64)
    assert _height_and_width({"shape": [3, 48, 64], "names": names[2:] + names[:2]}) == (48, 64)
    assert _height_and_width({"shape": [3, 48, 64], "names": None}) == (48, 64)
    assert _height_and_width({"shape": [48, 64, 3]}) == (48, 64)


def test_images_can_be_turned_back(tmp_path):
    made_dataset(tmp_path / "libero")
    assert run_import(tmp_path / "libero", tmp_path / "ours", "--robot", "libero", "--rotate") == 0
    ours = EpisodeStore.open(tmp_path / "ours")
    front = ours.frames(0, "front")[3].astype(float)
    assert ours.robot["flip"] == "none" and front[:14].mean() > 180 > 40 > front[18:].mean()


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


def test_an_episode_that_cannot_be_read_is_listed(tmp_path, capsys):
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
