import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lawm_policy.sim import ENVIRONMENT_ID
from lawm_policy.sim.experts_tabletop import rollout
from lawm_policy.sim.tabletop_env import TabletopEnv
from lawm_policy.types import UserError


@pytest.fixture(scope="module")
def env():
    env = TabletopEnv(task="place_red_yellow")
    yield env
    env.close()


@pytest.fixture(scope="module")
def blind():
    return TabletopEnv(task="place_red_yellow", images=False)


@pytest.mark.parametrize("embodiment", ["arm5", "arm6", "arm7", "hand"])
@pytest.mark.parametrize("command", ["joint", "ee"])
def test_gymnasium_checker_has_nothing_to_say(embodiment, command, recwarn):
    env = TabletopEnv(embodiment=embodiment, command=command, size=32, distractors=1)
    check_env(env, skip_render_check=True)
    env.close()
    # The checker would rather have commands in [-1, 1] and states in known bounds; joint angles are neither.
    rather = ("normalized", "infinity", "different from")
    assert [str(w.message) for w in recwarn if not any(word in str(w.message) for word in rather)] == []


def test_registered_with_gymnasium():
    env = gymnasium.make(ENVIRONMENT_ID, task="open_drawer", size=16)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation) and info["task"] == "open_drawer"
    env.close()


def test_same_seed_same_episode_bit_for_bit(env):
    actions = rollout(env, "place_red_yellow", 3).action_TA[:30]
    runs = []
    for _ in range(2):
        env.reset(seed=11)  # whatever came before
        seen = [env.reset(seed=3)[0], *(env.step(action)[0] for action in actions)]
        runs.append(seen)
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first["state"], second["state"])
        for camera in env.cameras:
            np.testing.assert_array_equal(first["images"][camera], second["images"][camera])


def test_other_seed_other_scene(env):
    first, second = (env.reset(seed=seed)[0]["images"]["front"].astype(int) for seed in (0, 1))
    assert np.abs(first - second).max() > 100


def test_the_task_changes_nothing_that_is_seen(env):
    views = [env.reset(seed=5, options={"task": task})[0] for task in ("push_blue", "stow_blue")]
    np.testing.assert_array_equal(views[0]["images"]["front"], views[1]["images"]["front"])
    np.testing.assert_array_equal(views[0]["state"], views[1]["state"])


@pytest.mark.parametrize("command", ["joint", "ee"])
@pytest.mark.parametrize("task", ["place_red_yellow", "stow_blue"])
def test_recorded_actions_recreate_the_episode(command, task):
    """Gate 3: observation and action are aligned."""
    env = TabletopEnv(command=command, images=False)
    demo = rollout(env, task, 8)
    assert demo.success
    observation, _ = env.reset(seed=8, options={"task": task})
    for index, (state, action) in enumerate(zip(demo.state_TP, demo.action_TA, strict=True)):
        np.testing.assert_array_equal(observation["state"], state)
        observation, _, terminated, _, info = env.step(action)
        assert terminated == (index == len(demo.action_TA) - 1)
    assert info["success"]


def test_a_restored_state_continues_bit_for_bit_in_another_environment(env):
    demo = rollout(env, "place_green_purple", 4)
    env.reset(seed=4, options={"task": "place_green_purple"})
    for action in demo.action_TA[:25]:
        env.step(action)
    saved = env.save_state()
    expected = [env.step(action)[0] for action in demo.action_TA[25:]]

    other = TabletopEnv()
    other.reset(seed=99)
    observation, info = other.restore(saved, task="place_green_purple")
    np.testing.assert_array_equal(observation["state"], demo.state_TP[25])
    np.testing.assert_array_equal(observation["images"]["front"], demo.frames["front"][25])
    for action, wanted in zip(demo.action_TA[25:], expected, strict=True):
        observation, *_, info = other.step(action)
        np.testing.assert_array_equal(observation["state"], wanted["state"])
        np.testing.assert_array_equal(observation["images"]["wrist"], wanted["images"]["wrist"])
    assert info["success"]
    other.close()


def test_a_state_of_another_body_is_refused(blind):
    hand = TabletopEnv(embodiment="hand", images=False)
    hand.reset(seed=0)
    with pytest.raises(UserError, match="restore it in an environment like the one that saved it"):
        blind.reset(options={"state": hand.save_state()})


def test_render_now_false_is_black_and_leaves_physics_alone(env):
    actions = rollout(env, "push_red", 2).action_TA[:10]
    ends = []
    for render in (True, False):
        env.reset(seed=2, options={"task": "push_red"})
        env.render_now = render
        ends.append([env.step(action)[0] for action in actions][-1])
    env.render_now = True
    np.testing.assert_array_equal(ends[0]["state"], ends[1]["state"])
    assert ends[0]["images"]["front"].any() and not ends[1]["images"]["front"].any()


def test_the_arm_follows_its_commands_within_millimetres(blind):
    blind.reset(seed=0)
    goal = blind.kinematics.pose(blind.commanded_q) + np.array([0.05, 0.05, -0.05, 0.3])
    q, _ = blind.kinematics.inverse(goal, blind.commanded_q)
    for _ in range(12):
        blind.step(np.append(q, -1.0))
    world = blind.world()
    assert np.linalg.norm(world.gripper - goal[:3]) < 0.003
    assert abs(world.yaw - goal[3]) < 0.02


def test_ee_commands_move_the_gripper_as_they_say():
    env = TabletopEnv(task="open_drawer", command="ee", images=False)
    env.reset(seed=0)
    start = env.world().gripper
    for _ in range(5):
        env.step(np.array([0.5, 0.0, 0.0, 0.0, -1.0]))
    for _ in range(5):
        env.step(np.array([0.0, 0.0, 0.0, 0.0, -1.0]))
    np.testing.assert_allclose(env.world().gripper - start, [0.05, 0.0, 0.0], atol=0.003)


def test_distractors_move_and_disturb_nothing():
    plain, busy = TabletopEnv(task="open_drawer"), TabletopEnv(task="open_drawer", distractors=3)
    states, views = [], []
    for env in (plain, busy):
        observation, _ = env.reset(seed=1)
        first = observation["images"]["front"].astype(int)
        hold = np.append(env.commanded_q, -1.0)
        for _ in range(20):
            observation, *_ = env.step(hold)
        states.append(observation["state"])
        views.append(np.abs(observation["images"]["front"] - first).max())
        env.close()
    np.testing.assert_array_equal(states[0], states[1])
    assert views[1] > views[0]


def test_robot_card_says_what_a_policy_needs(blind):
    card = blind.robot_card()
    assert card["action_names"] == [*blind.kinematics.chain.joint_names, "gripper"]
    for index, name in zip(card["relative_to"], card["action_names"], strict=True):
        assert (index is None) == (name == "gripper")
        assert index is None or card["state_names"][index] == name
    observation, _ = blind.reset(seed=0)
    assert len(card["state_names"]) == len(observation["state"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "fly"}, "expected a task among"),
        ({"embodiment": "tentacle"}, "expected an embodiment among"),
        ({"command": "torque"}, "expected command among"),
        ({"cameras": ("front", "rear")}, "found \\['rear'\\]"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        TabletopEnv(**arguments)


def test_a_wrong_action_is_refused(blind):
    blind.reset(seed=0)
    with pytest.raises(UserError, match=r"expected \(7,\) finite numbers .*found shape \(4,\)"):
        blind.step(np.zeros(4))
    with pytest.raises(UserError, match="finite"):
        blind.step(np.full(7, np.nan))
