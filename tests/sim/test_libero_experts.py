import numpy as np
import pytest
from libero_scripts import replay

from lawm_policy.data.commands import joint_commands
from lawm_policy.sim.libero_grasps import find_grasps, find_spots, hand_under, lower_side, nearest, rim_before
from lawm_policy.sim.libero_hand import RIM, Pose, Style, pointing_down, rotation_between, turned_by
from lawm_policy.sim.libero_leans import leaned_places
from lawm_policy.sim.libero_scene import Boxes, HeightMap, together
from lawm_policy.sim.libero_shelves import entries, find_opening


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


def test_points_in_boxes():
    tilted = Boxes(np.zeros((1, 3)), turned_by(np.array([0, 0, np.pi / 4]))[None], np.full((1, 3), 0.1))
    points = np.array([[0.13, 0, 0], [0.1, 0.1, 0], [0, 0, 0.105]])
    np.testing.assert_array_equal(tilted.inside_M(points), [True, False, False])
    np.testing.assert_array_equal(tilted.inside_M(points, 0.01), [True, False, True])


def shelf(front=False):
    """A compartment that opens towards -y, 30 cm wide, 18 deep and 14 high; or with a board before it."""
    walls = [
        box([0, 0.09, 0.15], [0.16, 0.1, 0.005]),
        box([0, 0.18, 0.07], [0.16, 0.005, 0.08]),
        *(box([x, 0.09, 0.07], [0.005, 0.1, 0.08]) for x in (-0.155, 0.155)),
    ]
    return together([*walls, *([box([0, -0.05, 0.07], [0.16, 0.005, 0.08])] if front else [])])


class Furniture:
    """What find_opening asks of a scene."""

    movable, table = (), 0.0

    def __init__(self, boxes):
        self.all = boxes

    def others(self, *_):
        return self.all


def test_a_roofed_compartment_is_entered_from_its_open_side():
    middle, half = np.array([0, 0.09, 0.07]), np.array([0.15, 0.08, 0.07])
    side = find_opening(Furniture(shelf()), middle, half, np.eye(3))
    np.testing.assert_allclose(side.inward_3, [0, 1, 0])
    assert side.floor == 0
    assert find_opening(Furniture(shelf(front=True)), middle, half, np.eye(3)) is None
    no_roof = shelf().where(np.array([False, True, True, True]))
    assert find_opening(Furniture(no_roof), middle, half, np.eye(3)) is None

    can = box([0, 0, -0.04], [0.025, 0.025, 0.05])  # seen from the hand that holds it at its upper end
    down, origin = np.eye(3) * [1, -1, -1], np.array([0, 0, 0.09])

    def right(origin_3):
        return bool((np.abs(origin_3 - middle) < half).all())

    can = Boxes(can.places_N3 * [1, 1, -1], can.turns_N33, can.halves_N3)
    found = list(entries(can, origin, down, side, right, shelf(), 0.0, coarse=True))
    assert found and found == sorted(found, key=lambda way: way.cost)
    for way in found:
        held = Boxes(
            (way.pose.turn_33 @ can.places_N3[0] + way.pose.place_3)[None],
            (way.pose.turn_33 @ can.turns_N33[0])[None],
            can.halves_N3,
        )
        for back in (0.0, way.back / 2, way.back):
            points = held.surface_M3(0.01) - [0, back, 0]
            assert not shelf().inside_M(points).any() and points[:, 2].min() > 0
    before = found[0].before(side.inward_3).place_3
    assert before[1] == pytest.approx(found[0].pose.place_3[1] - found[0].back)


def tray(height, wide):
    """A floor and four walls around the origin."""
    walls = [box([s * wide, 0, height / 2], [0.004, wide, height / 2]) for s in (-1, 1)]
    walls += [box([0, s * wide, height / 2], [wide, 0.004, height / 2]) for s in (-1, 1)]
    return together([box([0, 0, 0.002], [wide, wide, 0.002]), *walls])


class Carried:
    """What find_spots and leaned_places ask of a scene in which a thing is held."""

    def __init__(self, held, origin_3, around):
        self.held, self.origin_3, self.around = held, np.array(origin_3), around

    def boxes(self, name):
        return self.held

    def place(self, name):
        return self.origin_3

    def strain(self, place_3):
        return 0.0

    def map_around(self, place_2, reach, *left_out):
        return HeightMap.of(self.around, place_2 - reach, place_2 + reach, 0.0)


def test_a_narrow_place_is_filled_in_its_middle_and_from_above_its_rim():
    """A tall box 5 cm wide for a hole of 8 cm: a place that touches a wall costs more."""
    held = box([0, 0, 0.40], [0.025, 0.025, 0.06])
    scene = Carried(held, [0, 0, 0.40], tray(0.10, 0.044))
    hand, yaws = np.array([0, 0, 0.46]), np.zeros(1)
    off = np.array([0.014, 0.0])  # the middle of where to look is not the hole's
    spots = find_spots(scene, "box", hand, 0.0, off, np.full(2, 0.02), lambda origin: True, yaws, 60)
    assert np.abs(spots[0].origin_3[:2]).max() < 0.005 and spots[0].origin_3[2] < 0.08
    under = lower_side(held.seen_from(hand, np.eye(3)))
    heights = scene.map_around(np.zeros(2), 0.2)
    place = np.append(np.zeros(2), spots[0].place_3[2])
    rim_K = rim_before(heights, under, place, 0.0, np.array([0.3, 0.0]))
    assert rim_K[0] == place[2]
    blocked = RIM * np.arange(len(rim_K)) > 0.02
    assert (rim_K[blocked] > 0.10 + 0.12).all() and rim_K[1] < 0.15  # its lower end is 12 cm below the hand


def test_what_is_too_tall_for_a_drawer_is_leaned_over():
    drawer = tray(0.06, 0.11)
    bottle = box([0, 0, 0.5], [0.015, 0.015, 0.075])
    scene = Carried(bottle, [0, 0, 0.5], drawer)
    hand = Pose(np.array([0, 0, 0.55]), pointing_down(np.pi / 2))

    def right(origin_3):
        return bool(np.abs(origin_3[:2]).max() < 0.08 and origin_3[2] < 0.062)

    assert not right(np.array([0, 0, 0.079]))  # upright
    found = list(leaned_places(scene, "bottle", hand, np.zeros(2), np.full(2, 0.08), right))
    assert found
    for pose in found[::20]:
        held = bottle.seen_from(hand.place_3, hand.turn_33)
        points = held.surface_M3(0.01) @ pose.turn_33.T + pose.place_3
        assert points[:, 2].min() > -0.001 and not drawer.inside_M(points, -0.004).any()
        assert right(pose.place_3 + pose.turn_33 @ (hand.turn_33.T @ [0, 0, -0.05]) - [0, 0, 0.06])


@pytest.mark.libero
@pytest.mark.slow
def test_the_ghost_knows_what_the_arm_can_do():
    from lawm_policy.sim.libero_env import LiberoEnv
    from lawm_policy.sim.libero_hand import downward
    from lawm_policy.sim.libero_reach import SEEN, Ghost
    from lawm_policy.sim.libero_scene import Scene

    env = LiberoEnv("libero_90-33", images=False)
    env.reset(options={"init_state": 0})
    scene, before, margins = Scene(env._sim), env.flat_state(), env.model.geom_margin.copy()
    ghost = Ghost(env, scene)
    mug = scene.place("white_yellow_mug_1")
    assert ghost.reach(downward(mug + np.array([0, 0, 0.3]), np.pi / 2)) and ghost.room() == SEEN
    assert ghost.reach(downward(mug + np.array([0, 0, 0.05]), np.pi / 2)) and ghost.room() < 0
    assert not ghost.reach(downward(mug + np.array([0.9, 0, 0.3]), np.pi / 2))
    np.testing.assert_array_equal(env.flat_state(), before)
    np.testing.assert_array_equal(env.model.geom_margin, margins)


@pytest.mark.libero
@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        "libero_object-1",
        "libero_spatial-5",
        "libero_goal-0",
        "libero_goal-7",
        "libero_90-28",
        "libero_90-6",
        "libero_90-33",
        "libero_90-35",
        "libero_90-86",
        "libero_10-9",
        "libero_90-32",
        "libero_90-73",
    ],
    ids=[
        "between neighbours",
        "off a ramekin",
        "open a drawer",
        "turn a knob",
        "close a drawer",
        "a handle just above the table",
        "close a door",
        "open a door",
        "into a shelf from its side",
        "into a microwave, and its door",
        "laid into a drawer",
        "a book into a narrow compartment",
    ],
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
    learnt_TA = joint_commands(env.robot_card(), one.state_TP, one.action_TA)
    held_TA = np.concatenate([learnt_TA, np.repeat(learnt_TA[-1:], 12, axis=0)])
    assert replay(joint, 3, held_TA)[0], "joint commands as policies learn them"


@pytest.mark.libero
@pytest.mark.slow
def test_what_is_recorded_was_seen_before_its_command():
    from lawm_policy.sim.libero_env import LiberoEnv
    from lawm_policy.sim.libero_experts import rollout

    env, stride = LiberoEnv("libero_goal-6", size=64, protocol="lawm+lite"), 10
    try:
        sent, step = [], env.step  # `executed_TA` is rounded
        env.step = lambda command: (sent.append(command), step(command))[1]
        episode = rollout(env, 0, init_state=0, frame_stride=stride)
        assert episode.success and len(episode.frames["front"]) == -(-len(episode.action_TA) // stride)
        seen, _ = env.reset(options={"init_state": 0})
        for t, command in enumerate(sent):
            np.testing.assert_array_equal(seen["state"], episode.state_TP[t])
            if t % stride == 0:
                for camera, images in episode.frames.items():
                    np.testing.assert_array_equal(seen["images"][camera], images[t // stride])
            env.render_now = (t + 1) % stride == 0
            seen, *_ = step(command)
    finally:
        env.close()
