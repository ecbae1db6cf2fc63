import numpy as np
import pytest

from lawm_policy.sim.experts_tabletop import rollout
from lawm_policy.sim.tabletop_env import TabletopEnv
from lawm_policy.sim.tabletop_layout import AREA, NAMES, sample_layout
from lawm_policy.sim.tabletop_tasks import TASKS, select_tasks
from lawm_policy.types import UserError


def test_ten_tasks_of_four_kinds_two_of_them_held_out():
    assert len(TASKS) >= 10
    assert {task.kind for task in TASKS.values()} == {"place", "push", "drawer", "two_step"}
    assert len(select_tasks("held_out")) == 2
    assert set(select_tasks("train")) | set(select_tasks("held_out")) == set(TASKS)


def test_what_is_held_out_can_be_composed_from_the_rest():
    """Its block and its target occur in training, only not together."""
    train = [goal for name in select_tasks("train") for goal in TASKS[name].goals]
    for name in select_tasks("held_out"):
        for goal in TASKS[name].goals:
            assert goal not in train
            assert any(other.block == goal.block for other in train)
            assert any((other.kind, other.target) == (goal.kind, goal.target) for other in train)


def test_every_task_has_paraphrases_and_no_sentence_means_two_tasks():
    sentences = [sentence for task in TASKS.values() for sentence in task.paraphrases]
    assert all(len(task.paraphrases) >= 6 for task in TASKS.values())
    assert len(set(sentences)) == len(sentences)


def test_selecting_tasks():
    assert select_tasks("drawer,push_red") == ("open_drawer", "close_drawer", "push_red")
    with pytest.raises(UserError, match="found 'juggle'"):
        select_tasks("juggle")


def test_layouts_leave_room_and_differ():
    places = []
    for seed in range(30):
        layout = sample_layout(np.random.default_rng(seed))
        points = np.array([layout.places[name] for name in NAMES])
        assert ((points >= AREA[:, 0]) & (points <= AREA[:, 1])).all()
        gaps = np.linalg.norm(points[:, None] - points, axis=-1) + np.eye(len(points))
        assert gaps.min() > 0.09
        places.append(points)
    assert np.std(places, axis=0).min() > 0.02


def test_one_first_image_has_as_many_futures_as_tasks():
    """From one and the same state every task is still to be done, can be done, and ends elsewhere."""
    env = TabletopEnv(images=False)
    env.reset(seed=21, options={"task": "open_drawer"})
    saved, world = env.save_state(), env.world()
    ends = {}
    for name, task in TASKS.items():
        assert not task.done(world)
        demo = rollout(env, name, 21, state=saved)
        assert demo.success, name
        np.testing.assert_array_equal(demo.state_TP[0], env.reset(options={"state": saved})[0]["state"])
        ends[name] = demo.state_TP[min(40, len(demo.state_TP) - 1)]
    values = np.array([ends[name] for name in TASKS if TASKS[name].kind != "two_step"])
    apart = np.abs(values[:, None] - values).max(axis=-1) + np.eye(len(values))
    assert apart.min() > 0.02


def test_a_task_can_follow_another_from_where_it_ended():
    env = TabletopEnv(images=False)
    assert rollout(env, "place_red_yellow", 6).success
    first = env.save_state()
    assert TASKS["place_red_yellow"].done(env.world())
    assert not TASKS["place_green_purple"].done(env.world())
    assert rollout(env, "place_green_purple", 6, state=first).success


def test_success_needs_the_hold_time():
    env = TabletopEnv(task="close_drawer", images=False)
    demo = rollout(env, "close_drawer", 0)
    env.reset(seed=0, options={"task": "close_drawer"})
    done = [TASKS["close_drawer"].done(env.world())]
    for action in demo.action_TA:
        env.step(action)
        done.append(TASKS["close_drawer"].done(env.world()))
    assert demo.success and done[-5:] == [True] * 5 and not done[-6]
