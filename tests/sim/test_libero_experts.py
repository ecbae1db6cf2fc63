import numpy as np
import pytest
from libero_scripts import replay

from lawm_policy.sim.libero_grasps import find_grasps, hand_under, lower_side, nearest
from lawm_policy.sim.libero_hand import Style, pointing_down, rotation_between
from lawm_policy.sim.libero_scene import Boxes, HeightMap


def box(place, half, yaw=0.0):
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    return Boxes(np.array([place], float), turn[None], np.array([half], float))


def test_heights_under_a_tilted_box_are_exact():
    tilt = np.array([[[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]], float)
    boxes = Boxes(np.array([[0, 0, 1.0]]), tilt, np.array([[0.1, 0.1, 0.1]]))
    low, high = boxes.span_M2(np.array([[0, 0], [0, 0.02], [0.3, 0]]))
    assert high[0] == pytest.approx(1 + 0.1 / 0.8) and low[0] == pytest.approx(1 - 0.1 / 0.8)
    assert high[1] == pytest.approx(1 + (0.1 + 0.6 * 0.02) / 0.8)
    assert low[2] > high[2]  # nothing there


def test_a_thing_is_let_down_until_it_touches():
    heights = HeightMap.of(box([0, 0, 0.05], [0.05, 0.05, 0.05]), np.full(2, -0.2), np.full(2, 0.2), 0.0)
    under = lower_side(box([0, 0, 0.0], [0.02, 0.02, 0.03]))
    low = heights.lowest(under, np.array([[0.0, 0.0], [0.15, 0.0]]), np.zeros(2))
    np.testing.assert_allclose(low, [0.13, 0.03], atol=1e-9)


class OneThing:
    """What find_grasps asks of a scene."""

    def __init__(self, boxes):
        self.all = boxes

    def map_around(self, place_2, reach):
        return HeightMap.of(self.all, place_2 - reach, place_2 + reach, 0.0)

    def strain(self, place_3):
        return 0.0


def test_a_box_is_taken_across_its_short_side():
    long = box([0, 0, 0.02], [0.06, 0.02, 0.02], yaw=0.5)
    grasp = find_grasps(OneThing(long), long, np.zeros(2), np.pi / 2)[0]
    assert abs(nearest(grasp.yaw - np.pi / 2 - 0.5, 0, np.pi)) < 0.12
    assert grasp.width < 0.06 and np.linalg.norm(grasp.place_3[:2]) < 0.01


def test_the_hand_does_not_land_on_a_neighbour():
    """A tall can beside a flat box: the palm is wider than the fingers."""
    flat = box([0, 0, 0.01], [0.04, 0.02, 0.01])
    can = box([0.0, 0.09, 0.05], [0.03, 0.03, 0.05])
    both = Boxes(
        *(np.concatenate(parts) for parts in zip(*(vars(b).values() for b in (flat, can)), strict=True))
    )
    scene = OneThing(both)
    free, beside = (find_grasps(s, flat, np.zeros(2), np.pi / 2) for s in (OneThing(flat), scene))
    assert free[0].yaw == pytest.approx(np.pi / 2, abs=0.1)
    heights = OneThing(can).map_around(np.zeros(2), 0.3)
    for grasp in beside:
        lowest = heights.lowest(hand_under(room=0.002), grasp.place_3[None, :2], np.array([grasp.yaw]))
        assert grasp.place_3[2] >= lowest[0]


def test_rotations_between_hands():
    for yaw in (0.0, 1.0, 3.0):
        np.testing.assert_allclose(
            np.abs(rotation_between(pointing_down(0.3), pointing_down(0.3 + yaw))), [0, 0, yaw], atol=1e-6
        )


def test_styles_differ_and_repeat():
    one, two, again = (Style.sample(np.random.default_rng(seed)) for seed in (1, 2, 1))
    assert one != two and one == again and 0.7 <= one.speed <= 1


@pytest.mark.libero
@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    ["libero_object-1", "libero_spatial-5", "libero_goal-0", "libero_goal-7", "libero_90-28"],
    ids=["between neighbours", "off a ramekin", "open a drawer", "turn a knob", "close a drawer"],
)
def test_goals_are_reached(task):
    from lawm_policy.sim.libero_env import LiberoEnv
    from lawm_policy.sim.libero_experts import rollout

    env = LiberoEnv(task, images=False)
    episode = rollout(env, 0)
    assert episode.success and len(episode.action_TA) < 250
    assert np.abs(episode.action_TA).max() <= 1


@pytest.mark.libero
@pytest.mark.slow
def test_an_episode_repeats_and_can_be_replayed():
    from lawm_policy.sim.libero_env import LiberoEnv
    from lawm_policy.sim.libero_experts import rollout

    env = LiberoEnv("libero_goal-8", images=False)
    one, again = (rollout(env, 3) for _ in range(2))
    np.testing.assert_array_equal(one.executed_TA, again.executed_TA)
    np.testing.assert_array_equal(one.state_TP, again.state_TP)
    assert np.abs(one.executed_TA - one.action_TA).max() > 0  # it strays, and the labels do not
    assert replay(env, 3, one.executed_TA) == (True, len(one.executed_TA))
    joint = LiberoEnv("libero_goal-8", command="joint", images=False)
    assert replay(joint, 3, one.joint_TA)[0]
