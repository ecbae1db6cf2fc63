import numpy as np
import pytest

from lawm_policy.sim.experts_tabletop import HELD_OUT, play, rollout
from lawm_policy.sim.pilot import Style
from lawm_policy.sim.tabletop_env import TabletopEnv
from lawm_policy.sim.tabletop_tasks import TASKS


@pytest.mark.parametrize("embodiment", ["arm6", "hand"])
def test_experts_do_every_task(embodiment):
    """The 200-seed campaign is benchmarks/expert_rates.py."""
    env = TabletopEnv(embodiment=embodiment, images=False)
    failed = [
        (task, seed) for task in TASKS for seed in range(2) if not rollout(env, task, 1000 + seed).success
    ]
    assert not failed


@pytest.mark.parametrize(
    ("embodiment", "command"), [("arm5", "joint"), ("arm7", "joint"), ("arm6", "ee"), ("arm7", "ee")]
)
def test_other_bodies_and_commands(embodiment, command):
    env = TabletopEnv(embodiment=embodiment, command=command, images=False)
    for task in ("place_blue_purple", "push_red", "open_drawer", "stow_blue"):
        assert rollout(env, task, 7).success, task


@pytest.mark.slow
def test_a_few_more_seeds():
    env = TabletopEnv(images=False)
    results = [rollout(env, task, 2000 + seed).success for task in TASKS for seed in range(5)]
    assert np.mean(results) >= 0.95


def test_episodes_vary_and_are_functions_of_their_arguments():
    env = TabletopEnv(images=False)
    first, again, other = (rollout(env, "place_red_purple", 5, attempt=k) for k in (0, 0, 1))
    np.testing.assert_array_equal(first.action_TA, again.action_TA)
    assert first.text == again.text
    n = min(len(first.action_TA), len(other.action_TA))
    assert np.abs(first.action_TA[:n] - other.action_TA[:n]).max() > 0.01


def test_no_pause_that_the_images_do_not_explain():
    """Nothing stands still for long, unless the fingers move; what remains is the hold at the end."""
    env = TabletopEnv(images=False)
    for task in ("place_green_purple", "push_blue", "open_drawer", "stow_blue"):
        state_TP = rollout(env, task, 9).state_TP
        opening = len(env.kinematics.chain.joints)
        moved = np.linalg.norm(np.diff(state_TP[:, opening + 1 : opening + 4], axis=0), axis=1) > 1e-3
        moved |= np.abs(np.diff(state_TP[:, opening])) > 0.01
        longest = run = 0
        for moving in moved[: -1 - 5]:
            run = 0 if moving else run + 1
            longest = max(longest, run)
        assert longest <= 4, (task, longest)


def test_a_missed_grasp_recovers():
    env = TabletopEnv(images=False)
    plain = rollout(env, "place_red_yellow", 3, style=Style())
    recoveries = [rollout(env, "place_red_yellow", 3, style=Style(miss=0.7), attempt=k) for k in range(3)]
    assert all(episode.success for episode in recoveries)
    assert max(len(episode.action_TA) for episode in recoveries) > len(plain.action_TA) + 15


def test_play_is_motion_without_a_caption_that_never_does_what_is_held_out():
    env = TabletopEnv(size=16)
    for seed in range(3):
        episode = play(env, seed, 8.0, frame_stride=20)
        assert episode.success and episode.text == "" and episode.task == "play"
        assert len(episode.action_TA) == 160 and len(episode.frames["front"]) == 8
        eef = episode.state_TP[:, -5:-2]
        assert np.linalg.norm(np.diff(eef, axis=0), axis=1).sum() > 0.4
        world = env.world()
        assert not any(goal.holds(world) for goal in HELD_OUT)
    env.close()
