"""LIBERO's official files: each command beside what was seen before it, and nothing hostile gets in."""

from __future__ import annotations

import json
import os
import signal

import h5py
import numpy as np
import pytest
from libero_scripts import pick_and_place, replay
from made_libero import hostile_demos, made_demo, write_hdf5

from lawm_policy.cli import main
from lawm_policy.data.commands import joint_card, joint_commands
from lawm_policy.data.demos import DemoConfig, DemoDataset
from lawm_policy.data.libero_hdf5 import find_demos, find_files, seen_after
from lawm_policy.data.store import EpisodeStore
from lawm_policy.sim.libero_robot import STATE, panda_card
from lawm_policy.stages import importing
from lawm_policy.types import UserError


def run_import(out, *sources, **options):
    more = [word for name, value in options.items() for word in (f"--{name}", str(value)) if value != ""]
    return main(["import", "libero", *map(str, sources), "--out", str(out), "--workers", "1", *more])


def named(source):
    """FILE:DEMO, without what tells others of that name apart."""
    return ":".join(source.split(":")[:2])


def shades(frames_THWC):
    """The brightness of the lower middle."""
    size = frames_THWC.shape[1]
    return frames_THWC[:, size // 2 : -2, 2:-2].mean(axis=(1, 2, 3)) / 10


def test_commands_stand_beside_what_was_seen_before_them(tmp_path, capsys):
    demo = made_demo()
    write_hdf5(tmp_path / "libero_x" / "lift_the_cup_demo.hdf5", [demo, made_demo(seed=1)])
    assert run_import(tmp_path / "store", tmp_path / "libero_x", size=32) == 0
    assert "imported 2 episodes" in capsys.readouterr().out
    store = EpisodeStore.open(tmp_path / "store")
    first = store.episodes[0]
    assert (first.text, first.task) == ("pick up the cup and place it in the bin", "lift_the_cup")
    assert first.embodiment == "panda" and named(first.source) == "lift_the_cup_demo.hdf5:demo_0"
    assert (
        store.fps == 20
        and store.state_names == STATE
        and store.robot == panda_card("ee", ("front", "wrist"), "none")
    )
    # Rows 0 and 1, and the last two, do nothing. Command 2 was given when row 1 had been seen.
    np.testing.assert_allclose(store.actions(0), demo["actions"][2:12], atol=1e-6)
    parts = ("ee_pos", "ee_ori", "gripper_states", "joint_states")
    felt_TP = np.concatenate([demo[f"obs/{part}"] for part in parts], axis=1)
    np.testing.assert_allclose(store.state(0), felt_TP[1:11], atol=1e-5)
    np.testing.assert_allclose(shades(store.frames(0, "front")), np.arange(2, 12), atol=0.4)
    np.testing.assert_allclose(shades(store.frames(0, "wrist")), 25 - np.arange(2, 12), atol=0.4)
    frame = store.frames(0, "front")[5].astype(float)
    assert frame[:4].mean() < 0.7 * frame[-8:].mean(), "upside down as LIBERO has it: not turned"


def test_a_hand_that_is_told_in_one_piece_is_the_same_hand(tmp_path):
    demo = made_demo()
    for part in ("ee_pos", "ee_ori"):
        del demo[f"obs/{part}"]
    write_hdf5(tmp_path / "lift_the_cup_demo.hdf5", [demo, made_demo(seed=1)])
    assert run_import(tmp_path / "store", tmp_path / "lift_the_cup_demo.hdf5", size=32) == 0
    state_TP = EpisodeStore.open(tmp_path / "store").state(0)
    np.testing.assert_allclose(state_TP[:, :6], demo["obs/ee_states"][1:11], atol=1e-6)


def test_images_are_turned_and_reduced_where_asked(tmp_path):
    demo = made_demo(size=64)
    demo["obs/agentview_rgb"][:, :, :20] = 0
    write_hdf5(tmp_path / "a_demo.hdf5", [demo])
    run_import(tmp_path / "turned", tmp_path / "a_demo.hdf5", "--rotate", size=32)
    write_hdf5(tmp_path / "b_demo.hdf5", [demo], macros_image_convention="opencv")
    run_import(tmp_path / "upright", tmp_path / "b_demo.hdf5", size=32)
    turned, upright = (EpisodeStore.open(tmp_path / name) for name in ("turned", "upright"))
    assert turned.robot["flip"] == "rotate_180" and upright.robot["flip"] == "none"
    frame = turned.frames(0, "front")[5].astype(float)
    assert frame.shape == (32, 32, 3)
    assert frame[10, 28].mean() < 10 < frame[10, 5].mean(), "left is right now"
    assert frame[30, 5].mean() < 0.7 * frame[10, 5].mean(), "and the top is at the bottom"
    other = upright.frames(0, "front")[5].astype(float)
    assert other[10, 5].mean() < 10 and other[30, 28].mean() < 0.7 * other[10, 28].mean()


def test_files_that_are_aligned_are_left_alone(tmp_path):
    demo = made_demo()
    with h5py.File(write_hdf5(tmp_path / "later.hdf5", [demo])) as file:
        assert seen_after(file["data/demo_0"], demo["obs/joint_states"].astype(np.float32))
    demo["obs/joint_states"] = demo["states"][:, 1:8]
    path = write_hdf5(tmp_path / "aligned.hdf5", [demo])
    with h5py.File(path) as file:
        assert not seen_after(file["data/demo_0"], demo["obs/joint_states"].astype(np.float32))
    run_import(tmp_path / "store", path, size=32)
    store = EpisodeStore.open(tmp_path / "store")
    np.testing.assert_allclose(store.actions(0), demo["actions"][2:12], atol=1e-6)
    np.testing.assert_allclose(shades(store.frames(0, "front")), np.arange(3, 13), atol=0.4)


def die_on_b(file, name):
    if name == "b_demo.hdf5":
        os.kill(os.getpid(), signal.SIGKILL)
    return find_demos(file, name)


def test_a_file_that_brings_its_reader_down_costs_itself_only(tmp_path, capsys, monkeypatch):
    for name in "abc":
        write_hdf5(tmp_path / "in" / f"{name}_demo.hdf5", [made_demo()])
    monkeypatch.setattr(importing, "find_demos", die_on_b)
    assert run_import(tmp_path / "store", tmp_path / "in", size=32) == 0
    assert "skipped b_demo.hdf5: its reader crashed" in capsys.readouterr().out
    found = [named(e.source) for e in EpisodeStore.open(tmp_path / "store").episodes]
    assert found == ["a_demo.hdf5:demo_0", "c_demo.hdf5:demo_0"]


@pytest.mark.parametrize("name", list(hostile_demos()))
def test_what_is_broken_or_hostile_is_listed_and_the_rest_imported(tmp_path, capsys, name):
    spoil, said = hostile_demos()[name]
    path = write_hdf5(tmp_path / "a_demo.hdf5", [made_demo(seed=k) for k in range(3)], foreign="attribute")
    with h5py.File(path, "a") as file:
        spoil(file["data/demo_1"])
        file["data/demo_0/obs/foreign_key"] = np.zeros(3)
        file["data/notes"] = 7
        file.create_group("mask")
    assert run_import(tmp_path / "store", path, size=32) == 0
    assert said in capsys.readouterr().out
    report = json.loads((tmp_path / "store" / "import_report.json").read_text())
    assert [named(f["file"]) for f in report["failed"]] == ["a_demo.hdf5:demo_1"] and report["imported"] == 2
    kept = [named(e.source) for e in EpisodeStore.open(tmp_path / "store").episodes]
    assert kept == ["a_demo.hdf5:demo_0", "a_demo.hdf5:demo_2"]


def test_descriptions_of_any_kind_are_survived(tmp_path):
    strange = {"macros_image_convention": np.array(["opencv", "x"], dtype=h5py.string_dtype())}
    write_hdf5(tmp_path / "a_demo.hdf5", [made_demo()], "a \ud800 cup", **strange)
    assert run_import(tmp_path / "store", tmp_path / "a_demo.hdf5", size=32) == 0
    assert EpisodeStore.open(tmp_path / "store").episodes[0].text == "a ? cup"


def test_an_import_goes_on_as_what_it_is(tmp_path, capsys):
    """Images turned otherwise are another robot card: a store never holds both."""
    write_hdf5(tmp_path / "files" / "a_demo.hdf5", [made_demo()])
    assert run_import(tmp_path / "store", tmp_path / "files", size=32) == 0
    write_hdf5(tmp_path / "files" / "b_demo.hdf5", [made_demo(seed=1)])
    assert run_import(tmp_path / "store", tmp_path / "files", "--rotate", "--resume", size=32) == 2
    assert "found another (flip)" in capsys.readouterr().err
    assert run_import(tmp_path / "store", tmp_path / "files", "--resume", size=32) == 0
    assert len(EpisodeStore.open(tmp_path / "store").episodes) == 2


def test_a_demonstration_is_added_once_whichever_folder_is_named(tmp_path):
    goal = tmp_path / "all" / "goal"
    write_hdf5(goal / "a_demo.hdf5", [made_demo()])
    assert run_import(tmp_path / "store", goal, size=32) == 0
    write_hdf5(tmp_path / "all" / "spatial" / "a_demo.hdf5", [made_demo(), made_demo(seed=1)])
    assert run_import(tmp_path / "store", tmp_path / "all", "--resume", size=32) == 0
    first, second = EpisodeStore.open(tmp_path / "store").episodes
    assert (named(first.source), named(second.source)) == ("a_demo.hdf5:demo_0", "a_demo.hdf5:demo_1")
    write_hdf5(goal / "a_demo.hdf5", [made_demo(seed=2)])  # of the same name, and another
    assert len({demo.source for demo in find_demos(goal / "a_demo.hdf5", "")} - {first.source}) == 1


def test_liberos_tasks_have_the_name_and_the_sentence_that_the_simulator_gives_them(tmp_path):
    title = "KITCHEN_SCENE1_open_the_bottom_drawer_of_the_cabinet"
    write_hdf5(tmp_path / f"{title}_demo.hdf5", [made_demo()], "Open the bottom drawer")
    [demo] = find_demos(tmp_path / f"{title}_demo.hdf5", "x")
    assert (demo.task, demo.text) == ("libero_90-6", "open the bottom drawer of the cabinet")


def test_what_lies_in_out_is_no_source(tmp_path, capsys):
    """--force empties it."""
    path = write_hdf5(tmp_path / "files" / "a_demo.hdf5", [made_demo()])
    out = tmp_path / "files" / "store"
    assert run_import(out, tmp_path / "files", size=32) == 0
    kept = write_hdf5(out / "b_demo.hdf5", [made_demo(seed=1)])
    for source in (kept, out):
        assert run_import(out, path, source, "--force", size=32) == 2
        assert "expected --out apart from what is imported" in capsys.readouterr().err
        assert kept.exists()
    assert [name for _, name in find_files([tmp_path / "files"], exclude=out)] == ["a_demo.hdf5"]


def test_files_that_cannot_be_opened(tmp_path, capsys):
    folder = tmp_path / "files"
    whole = write_hdf5(folder / "good_demo.hdf5", [made_demo()]).read_bytes()
    (folder / "cut_demo.hdf5").write_bytes(whole[: len(whole) // 2])
    (folder / "text_demo.hdf5").write_text("not HDF5")
    (folder / "empty_demo.hdf5").write_bytes(b"")
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["data/episode"] = 1
    with h5py.File(folder / "linked.h5", "w") as file:
        file["data"] = h5py.ExternalLink("good_demo.hdf5", "/data")
    assert run_import(tmp_path / "store", folder, size=32) == 0
    printed = capsys.readouterr().out
    assert "imported 1 episodes" in printed and "skipped 5" in printed
    for name in ("cut", "text", "empty"):
        assert f"skipped {name}_demo.hdf5: not a readable HDF5 file" in printed
    assert "foreign.h5: holds no demonstrations" in printed and "data is a link to elsewhere" in printed
    (folder / "good_demo.hdf5").unlink()
    assert run_import(tmp_path / "none", folder, size=32) == 2
    assert not (tmp_path / "none").exists() and capsys.readouterr().err.count("\n") == 1
    for source in (tmp_path / "nowhere", tmp_path / "store"):
        assert run_import(tmp_path / "none", source) == 2
        assert not (tmp_path / "none").exists()


def test_hand_commands_are_read_as_joint_commands(tmp_path):
    write_hdf5(tmp_path / "a_demo.hdf5", [made_demo(rows=60, seed=k) for k in range(4)])
    run_import(tmp_path / "store", tmp_path / "a_demo.hdf5", size=32)
    store = EpisodeStore.open(tmp_path / "store")
    card = joint_card(store.robot, "it")
    assert card == panda_card("joint", ("front", "wrist"), "none")
    commands = joint_commands(card, store.state(0), store.actions(0))
    np.testing.assert_array_equal(commands[:-1, :7], store.state(0)[1:, 8:])
    before, last = store.state(0)[-2:, 8:]
    np.testing.assert_allclose(commands[-1, :7], last + (last - before), atol=1e-6)
    np.testing.assert_array_equal(commands[:, 7], store.actions(0)[:, 6])
    assert len(joint_commands(card, store.state(0)[:1], store.actions(0)[:1])) == 1
    demos = DemoDataset(
        tmp_path / "store", DemoConfig(size=32, command="joint", chunk=2), cache_dir=tmp_path / "cache"
    )
    assert demos.robot == card and demos[0].actions_BKRA.shape == (1, 2, 4, 8)
    with pytest.raises(UserError, match="use the commands as stored"):
        joint_card({"command": "ee"}, "it")


@pytest.mark.libero
@pytest.mark.slow
def test_imported_commands_succeed_again_in_the_simulator(tmp_path):
    """A demonstration recorded as LIBERO records: written, imported, replayed by hand and joint commands."""
    from lawm_policy.sim.libero_env import LiberoEnv

    env, joint = (
        LiberoEnv("libero_object-0", protocol="libero+lite", size=32, command=c) for c in ("ee", "joint")
    )
    try:
        env.reset(options={"init_state": 0})
        env.render_now = False
        commands, succeeded = pick_and_place(env, "alphabet_soup_1", "basket_1")
        assert succeeded
        env.render_now = True
        env.reset(options={"init_state": 0})
        rows = {name: [] for name in ("states", "front", "wrist", "state")}
        for command in commands:
            rows["states"].append(env.flat_state())
            seen = env.step(command)[0]
            rows["front"].append(seen["images"]["front"])
            rows["wrist"].append(seen["images"]["wrist"])
            rows["state"].append(seen["state"])
        state = np.array(rows["state"])
        demo = {
            "actions": commands,
            "states": np.array(rows["states"]),
            "obs/agentview_rgb": np.array(rows["front"]),
            "obs/eye_in_hand_rgb": np.array(rows["wrist"]),
            "obs/ee_pos": state[:, :3],
            "obs/ee_ori": state[:, 3:6],
            "obs/gripper_states": state[:, 6:8],
            "obs/joint_states": state[:, 8:],
        }
        name = "pick_up_the_alphabet_soup_and_place_it_in_the_basket_demo.hdf5"
        write_hdf5(tmp_path / name, [demo], "Pick the alphabet soup and place it in the basket")
        assert run_import(tmp_path / "store", tmp_path / name, size=32) == 0
        store = EpisodeStore.open(tmp_path / "store")
        assert store.episodes[0].task == "libero_object-0" and store.episodes[0].text == env.instruction
        start = rows["states"][1]  # command 0 was given before anything was recorded
        np.testing.assert_allclose(store.actions(0)[0], commands[1], atol=1e-6)
        still = np.tile([0, 0, 0, 0, 0, 0, -1.0], (12, 1))  # what was let go of falls, as before
        assert replay(env, start, np.concatenate([store.actions(0), still]))[0]
        targets = joint_commands(joint_card(store.robot, ""), store.state(0), store.actions(0))
        held = np.concatenate([targets, np.repeat(targets[-1:], 12, axis=0)])
        assert replay(joint, start, held)[0]
    finally:
        env.close(), joint.close()
