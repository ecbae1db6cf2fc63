"""LIBERO as an environment: bit for bit LIBERO's own, and a well-behaved Gymnasium citizen."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import libero_reference
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from libero_scripts import joint_commands, pick_and_place, replay

import lawm_policy.sim  # noqa: F401  (registers the environments)
from lawm_policy.sim.libero_env import LiberoEnv, axis_angle, shrink
from lawm_policy.sim.libero_premise import BrokenPremise, Diverged
from lawm_policy.sim.libero_protocol import PRESETS, TASK_COUNTS, task_names
from lawm_policy.sim.libero_suite import LiberoSuiteEnv
from lawm_policy.types import UserError

TASK = "libero_object-3"
STEPS = 24


@pytest.fixture(scope="module")
def env():
    made = LiberoEnv(TASK, protocol="libero")
    yield made
    made.close()


def reference(folder, task, episodes, *given, preset="libero", steps=STEPS):
    """What LIBERO's own environment says, in a process of its own: one GL context a process."""
    script, out = Path(libero_reference.__file__), folder / "played.npz"
    arguments = [task, str(out), str(episodes), str(steps), preset, *map(str, given)]
    subprocess.run([sys.executable, str(script), *arguments], check=True, capture_output=True)
    with np.load(out) as played:
        return dict(played)


def play(env, state, commands, look_every=1):
    """States (T, S), images by camera and step, and observed states of one episode."""
    env.render_now = True
    env.reset(options={"init_state": state})
    states, images, seen = [], [], []
    for step, command in enumerate(commands, 1):
        env.render_now = step % look_every == 0
        observed = env.step(command)[0]
        states.append(env.flat_state())
        images.append(observed["images"])
        seen.append(observed["state"])
    env.render_now = True
    return np.array(states), images, np.array(seen)


# ---------------------------------------------------------------------- the same as LIBERO


@pytest.mark.libero
@pytest.mark.slow
def test_episodes_equal_liberos_own_bit_for_bit(env, tmp_path):
    """States at each step and pixels on the frames used, three episodes on one environment."""
    theirs_all = reference(tmp_path, TASK, 3)
    commands = libero_reference.commands(STEPS)
    for episode in range(3):
        states, images, seen = play(env, episode, commands, look_every=libero_reference.CHUNK)
        rows = slice(episode * STEPS, (episode + 1) * STEPS)
        np.testing.assert_array_equal(states, theirs_all["states"][rows])
        for step in range(libero_reference.CHUNK - 1, STEPS, libero_reference.CHUNK):
            for camera in ("front", "wrist"):
                theirs = theirs_all[camera][rows][step]
                assert theirs.std() > 10  # an image, not a black frame on both sides
                np.testing.assert_array_equal(images[step][camera], theirs)
        np.testing.assert_allclose(seen, theirs_all["felt"][rows], atol=1e-6)
    assert not theirs_all["success"].any()


@pytest.mark.libero
@pytest.mark.slow
def test_another_preset_settles_and_draws_as_its_authors_did(tmp_path):
    """Ten no-ops with the fingers opened, 256 px, images turned by half a turn."""
    steps = libero_reference.CHUNK
    theirs = reference(tmp_path, TASK, 1, preset="openvla", steps=steps)
    env = LiberoEnv(TASK, protocol="openvla")
    try:
        states, images, _ = play(env, 0, libero_reference.commands(steps), look_every=steps)
    finally:
        env.close()
    np.testing.assert_array_equal(states, theirs["states"])
    for camera in ("front", "wrist"):
        assert theirs[camera][-1].std() > 10
        np.testing.assert_array_equal(images[-1][camera], theirs[camera][-1][::-1, ::-1])


@pytest.mark.libero
@pytest.mark.slow
def test_a_whole_episode_with_a_drawer_equals_liberos_own(tmp_path):
    """An expert's, to its success, with what moves in fixtures."""
    from lawm_policy.sim.libero_experts import rollout

    env = LiberoEnv("libero_goal-0", protocol="libero", images=False)
    try:
        commands = rollout(env, 0, init_state=0).executed_TA.astype(np.float64)
        np.save(tmp_path / "commands.npy", commands)
        theirs = reference(tmp_path, "libero_goal-0", 1, tmp_path / "commands.npy")
        env.reset(options={"init_state": 0})
        states, won = [], []
        for command in commands:
            env.step(command)
            states.append(env.flat_state())
            won.append(env.success)
        np.testing.assert_array_equal(states, theirs["states"])
        np.testing.assert_array_equal(won, theirs["success"])
        assert won[-1] and not any(won[:-1])
    finally:
        env.close()


@pytest.mark.libero
def test_an_episode_does_not_depend_on_those_before_it(env):
    commands = libero_reference.commands(6)
    first = play(env, 4, commands)
    np.random.seed(77)  # noqa: NPY002  robosuite draws from it
    play(env, 9, commands[::-1])
    again = play(env, 4, commands)
    np.testing.assert_array_equal(first[0], again[0])
    for a, b in zip(first[1], again[1], strict=True):
        np.testing.assert_array_equal(a["wrist"], b["wrist"])


@pytest.mark.libero
@pytest.mark.slow
def test_turned_images_are_the_same_images_by_half_a_turn(env):
    upside, _ = env.reset(options={"init_state": 3})
    other = LiberoEnv(TASK, protocol=replace(PRESETS["libero"], flip="rotate_180"))
    try:
        turned, _ = other.reset(options={"init_state": 3})
    finally:
        other.close()
    for camera, image in upside["images"].items():
        assert image.std() > 10
        np.testing.assert_array_equal(turned["images"][camera], image[::-1, ::-1])


@pytest.mark.libero
def test_what_nobody_looks_at_changes_nothing(env):
    commands = libero_reference.commands(8)
    looking = play(env, 2, commands)
    blinking = play(env, 2, commands, look_every=4)
    np.testing.assert_array_equal(looking[0], blinking[0])
    assert not blinking[1][2]["front"].any() and blinking[1][3]["front"].any()
    np.testing.assert_array_equal(looking[1][3]["front"], blinking[1][3]["front"])


@pytest.mark.libero
def test_what_is_drawn_later_is_what_was_seen():
    """Of a task whose burner takes a colour while it is played."""
    env = LiberoEnv("libero_goal-7", protocol="lawm+lite", size=64)
    try:
        env.remember = True
        observed, _ = env.reset(options={"init_state": 3})
        seen, sights = [], []
        for command in libero_reference.commands(9):
            seen.append(observed["images"])
            sights.append(env.sight)
            env.model.site_rgba[-1, 3] = 1 - env.model.site_rgba[-1, 3]
            observed = env.step(command)[0]
        colours = env.model.site_rgba.copy()
        state = env.flat_state()
        drawn = env.draw(sights)
        for camera in env.cameras:
            np.testing.assert_array_equal(drawn[camera], [images[camera] for images in seen])
            assert (np.diff(drawn[camera].astype(int), axis=0) != 0).any(axis=(1, 2, 3)).all()
        np.testing.assert_array_equal(env.model.site_rgba, colours)
        np.testing.assert_array_equal(env.flat_state(), state)
        env.remember = False
        env.step(np.zeros(7))
        assert env.sight is None, "nothing is kept that nobody asked for"
    finally:
        env.close()


@pytest.mark.libero
@pytest.mark.slow
def test_lite_is_cheaper_to_draw_and_moves_the_same(env):
    lite = LiberoEnv(TASK, protocol="libero+lite")
    try:
        commands = libero_reference.commands(3)
        (states, images, _), (lite_states, lite_images, _) = play(env, 0, commands), play(lite, 0, commands)
        np.testing.assert_array_equal(states, lite_states)
        for camera in ("front", "wrist"):
            a, b = images[-1][camera].astype(float), lite_images[-1][camera].astype(float)
            assert 0 < np.abs(a - b).mean() < 12  # other pixels, the same picture
        assert lite.model.mesh_facenum.sum() < 0.6 * env.model.mesh_facenum.sum()
    finally:
        lite.close()


# ---------------------------------------------------------------------- Gymnasium


@pytest.mark.libero
@pytest.mark.slow
def test_gymnasiums_checker_has_nothing_to_say(recwarn):
    made = gymnasium.make(f"lawm/{TASK}-v0", size=64, render_mode="rgb_array")
    try:
        check_env(made.unwrapped, skip_render_check=True)
        ours = [w for w in recwarn if "gymnasium" in str(w.filename) and "Box" not in str(w.message)]
        assert not ours, [str(w.message) for w in ours]
        made.reset(seed=0)
        assert made.render().shape == (128, 128, 3)
    finally:
        made.close()


def test_all_130_tasks_are_registered():
    ids = [f"lawm/{task}-v0" for suite in TASK_COUNTS for task in task_names(suite)]
    assert len(ids) == 130 and all(name in gymnasium.registry for name in ids)


@pytest.mark.libero
@pytest.mark.slow
@pytest.mark.parametrize("suite", [name for name in TASK_COUNTS if name != "libero_object"])
def test_each_suite_steps_and_renders_real_scenes(suite):
    env = LiberoEnv(f"{suite}-1", protocol="lawm+lite")
    try:
        seen, info = env.reset(seed=0)
        assert info["instruction"] and env.instruction == info["instruction"]
        assert seen["images"]["front"].std() > 10 and seen["images"]["wrist"].std() > 10
        after = env.step(np.r_[0, 0, -1, 0, 0, 0, -1])[0]
        assert after["state"][2] < seen["state"][2]
    finally:
        env.close()


@pytest.mark.libero
@pytest.mark.slow
def test_vectorised_in_processes():
    envs = gymnasium.make_vec(
        f"lawm/{TASK}-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},  # a GL context does not survive a fork
        size=64,
        protocol="lawm+lite",
    )
    try:
        seen, info = envs.reset(seed=3, options={})
        assert seen["images"]["front"].shape == (2, 64, 64, 3)
        assert list(info["init_state"]) == [3, 4]
        envs.step(envs.action_space.sample())
    finally:
        envs.close()


# ---------------------------------------------------------------------- commands


@pytest.mark.libero
@pytest.mark.slow
def test_a_demonstration_succeeds_again_as_hand_and_as_joint_commands():
    """Whole episodes: the same length by hand commands; by joint commands the arm goes where it went."""
    hand, joint = (LiberoEnv("libero_object-0", command=c, images=False) for c in ("ee", "joint"))
    try:
        for state in range(2):
            hand.reset(options={"init_state": state})
            commands, succeeded = pick_and_place(hand, "alphabet_soup_1", "basket_1")
            assert succeeded
            assert replay(hand, state, commands) == (True, len(commands))
            targets = joint_commands(hand, state, commands)
            # The last command ended the episode; holding it lets the joints get there.
            held = np.concatenate([targets, np.repeat(targets[-1:], 10, axis=0)])
            assert replay(joint, state, held)[0]
    finally:
        hand.close(), joint.close()


@pytest.mark.libero
@pytest.mark.slow
def test_the_arm_follows_joint_commands():
    env = LiberoEnv(TASK, command="joint", images=False)
    try:
        seen, _ = env.reset(seed=0)
        assert env.action_space.shape == (8,) and seen["state"].shape == (15,)
        start = seen["state"][8:].astype(float)
        sway = np.array([0.2, 0.1, 0.2, -0.1, 0.2, 0.2, 0.3])
        for k in range(40):  # there and back in two seconds
            target = start + sway * (1 - np.cos(np.pi * k / 20)) / 2
            seen = env.step(np.r_[target, -1])[0]
            assert np.abs(seen["state"][8:] - target).max() < 0.006
        for _ in range(5):
            seen = env.step(np.r_[target, -1])[0]
        assert np.abs(seen["state"][8:] - target).max() < 0.002
        env.step(np.r_[np.full(7, 99.0), -1])  # cut to the joints' range, not obeyed
        assert np.isfinite(env.flat_state()).all()
        card = env.robot_card()
        assert card["relative_to"] == [8, 9, 10, 11, 12, 13, 14, None]
        assert len(card["limits"]) == len(card["action_names"]) == 8
    finally:
        env.close()


# ---------------------------------------------------------------------- wrong use


@pytest.mark.libero
def test_wrong_use_says_what_to_do(env):
    with pytest.raises(UserError, match=r"initial state in 0\.\.49"):
        env.reset(options={"init_state": 50})
    with pytest.raises(UserError, match="make an environment of that task"):
        env.reset(options={"task": "libero_object-4"})
    with pytest.raises(UserError, match="take it from the same task"):
        env.reset(options={"init_state": np.zeros(3)})
    env.reset(seed=0)
    for wrong in (np.zeros(6), np.r_[np.zeros(6), np.nan]):
        with pytest.raises(UserError, match=r"7,.*finite numbers"):
            env.step(wrong)
    for settings, said in (
        ({"command": "joints"}, "command among ee, joint"),
        ({"cameras": ("top",)}, "camera among front, wrist"),
        ({"embodiment": "arm6"}, "embodiment among panda"),
        ({"size": 100}, "whole fraction"),
        ({"protocol": "open-vla"}, "openvla"),
    ):
        with pytest.raises(UserError, match=said):
            LiberoEnv(TASK, **settings)


@pytest.mark.libero
def test_a_state_that_does_not_hold_is_no_episode(env):
    env.reset(seed=0)
    state = env._states_NS[0].copy()
    at = env.model.joint(env._sim.objects_dict["bbq_sauce_1"].joints[0]).qposadr[0]
    for move in ((0, 0, 1.0), (3.0, 0, 0)):  # falls from a metre, stands beyond the floor's region
        broken = state.copy()
        broken[1 + at : 4 + at] += move
        with pytest.raises(BrokenPremise, match="bbq_sauce_1"):
            env.reset(options={"init_state": broken})
        with pytest.raises(UserError, match="call reset first"):
            env.step(np.zeros(7))
    env.reset(options={"init_state": state})  # the next episode is unharmed


@pytest.mark.libero
def test_a_simulation_that_diverges_is_an_error_and_no_failure(env, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log where one stands
    env.reset(seed=0)
    env.data.qvel[:] = 1e12
    with pytest.raises(Diverged, match="diverged after 0 steps"):
        env.step(np.zeros(7))
    with pytest.raises(UserError, match="call reset first"):
        env.step(np.zeros(7))
    env.reset(seed=0)
    env.step(np.zeros(7))


@pytest.mark.libero
@pytest.mark.slow
def test_stored_states_that_slide_furthest_are_episodes():
    env = LiberoEnv("libero_spatial-0", images=False)
    for state in (2, 18):
        assert env.reset(options={"init_state": state})[1]["init_state"] == state


@pytest.mark.libero
@pytest.mark.slow
def test_a_suite_is_one_environment_and_keeps_few_models():
    suite = LiberoSuiteEnv("libero_object", kept=1, size=64, protocol="lawm+lite")
    try:
        card = suite.robot_card()
        assert not suite._tasks.made  # nothing is compiled before a task is asked for
        for task in ("libero_object-0", "libero_object-1", "libero_object-0"):
            _, info = suite.reset(options={"task": task, "init_state": 0})
            assert info["task"] == task and list(suite._tasks.made) == [task]
        made = suite._tasks.made[task]
        assert card == made.robot_card() and suite.action_space == made.action_space
        assert suite.observation_space == made.observation_space
        assert "alphabet soup" in info["instruction"]
    finally:
        suite.close()


# ---------------------------------------------------------------------- small things


def test_rotation_vectors():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(axis_angle(np.array([half, 0, 0, half])), [0, 0, np.pi / 2])
    np.testing.assert_array_equal(axis_angle(np.array([1.0, 0, 0, 0])), np.zeros(3))


def test_images_shrink_by_averages():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2] = [[10], [11]]
    assert shrink(image, 2)[0, 0].tolist() == [11, 11, 11]  # 10.5, rounded up
    assert shrink(image, 2)[1, 1].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(shrink(image, 4), image)
