"""Perturbed episodes of LIBERO: each axis changes what it says, nothing else, and nothing for good."""

import re

import numpy as np
import pytest

from lawm_policy.sim.libero_distractors import COUNTS, POOL, choose_distractors, with_distractors
from lawm_policy.sim.libero_env import LiberoEnv
from lawm_policy.sim.libero_paraphrase import paraphrase
from lawm_policy.sim.libero_perturb import HAND
from lawm_policy.sim.libero_perturb import LOOKS as MODEL
from lawm_policy.sim.libero_protocol import AXES, GRADES, TASK_COUNTS, protocol_named, task_names
from lawm_policy.sim.libero_starts import Starts
from lawm_policy.sim.libero_states import EXTRA, SHIFTS, _from_line

libero = pytest.mark.libero
TASK = "libero_goal-3"
LOOKS = ("camera", "light", "texture")


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv(TASK, protocol="lawm+lite")
    yield env
    env.close()


@pytest.fixture(scope="module")
def crowded():
    env = LiberoEnv(TASK, protocol="lawm+lite+distractors:3")
    yield env
    env.close()


def begin(env, number, words=""):
    """Images, settled state and instruction of an episode played by other rules on the same model."""
    env.protocol = protocol_named(f"lawm+lite{words}")
    env.starts = Starts(env.task, env.protocol, env._sim.objects_dict, env._states_NS, env._placer)
    seen, info = env.reset(options={"init_state": number})
    return seen["images"], env.flat_state(), info["instruction"]


def looks(env):
    """All numbers of the model by which it looks as it does."""
    return np.concatenate([np.ravel(getattr(env.model, name)) for name in MODEL])


def apart(env, words, *numbers):
    """How far two numbers bring one and the same state apart."""
    alike_NS = np.repeat(env._states_NS[:1], 1 + max(numbers), axis=0)
    rules = protocol_named(f"lawm+lite{words}")
    starts = Starts(env.task, rules, env._sim.objects_dict, alike_NS, env._placer)
    a, b = (starts.find(number).state_S for number in numbers)
    return np.abs(a - b).max()


def differ(a, b):
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# --- without LIBERO -----------------------------------------------------------------------------


@pytest.mark.parametrize("grade", GRADES)
def test_a_paraphrase_says_the_same_otherwise(grade):
    said = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    told = {paraphrase(said, grade, np.random.default_rng(k)) for k in range(20)}
    assert said not in told and len(told) > 4
    for text in told:
        assert "between" in text and "bowl" in text and text.count("plate") == 2 and "pick up" not in text
        assert ("the black bowl" in text) == (grade < 3)


def test_a_paraphrase_is_replaced_once():
    told = [paraphrase("put the white bowl on the plate", 3, np.random.default_rng(k)) for k in range(30)]
    assert all(len(re.findall(r"bowl", text)) == 1 for text in told)
    assert any(text.startswith(("please", "could you")) for text in told)


def test_distractors_are_nothing_that_the_task_speaks_of():
    found = choose_distractors(
        "libero_goal-6", "put the cream cheese in the bowl", ["akita_black_bowl", "plate"]
    )
    assert len(found) == COUNTS[3] and set(found) < set(POOL)
    assert not {"cream_cheese", "macaroni_and_cheese"} & set(found)
    assert found == choose_distractors(
        "libero_goal-6", "put the cream cheese in the bowl", ["akita_black_bowl", "plate"]
    )


def test_a_problem_with_distractors_keeps_all_it_had():
    problem = (
        "(define (problem P) (:regions (a (:target t))) (:objects b - bowl) (:init (On b t_a)) (:goal (X)))"
    )
    more = with_distractors(problem, "t", ["milk", "butter"])
    assert f"b - bowl {EXTRA}1 - milk {EXTRA}2 - butter" in more
    assert f"(On b t_a) (On {EXTRA}1 t_{EXTRA}region) (On {EXTRA}2 t_{EXTRA}region) )" in more
    assert more.count("(") == more.count(")") and more.endswith("(:goal (X)))")


def test_the_way_from_a_point_to_a_line():
    a, b = np.zeros(2), np.array([1.0, 0.0])
    assert _from_line(np.array([0.5, 0.2]), a, b) == pytest.approx(0.2)
    assert _from_line(np.array([1.3, 0.4]), a, b) == pytest.approx(0.5)
    assert _from_line(np.array([0.0, 0.3]), a, a) == pytest.approx(0.3)


# --- looks --------------------------------------------------------------------------------------


@libero
@pytest.mark.parametrize("axis", LOOKS)
def test_looks_change_images_and_no_state(env, axis):
    plain, state_S, said = begin(env, 1)
    distances = []
    for grade in GRADES:
        images, other_S, instruction = begin(env, 1, f"+{axis}:{grade}")
        assert np.array_equal(other_S, state_S) and instruction == said
        distances.append(differ(images["front"], plain["front"]))
        assert np.array_equal(images["wrist"], plain["wrist"]) == (axis == "camera")
        again, _, _ = begin(env, 1, f"+{axis}:{grade}")
        assert np.array_equal(again["front"], images["front"])
        mine = looks(env)
        begin(env, 3, f"+{axis}:{grade}")
        assert not np.allclose(looks(env), mine, atol=1e-3), "each episode's own"
    assert distances[0] > 2 and distances[0] < distances[1] < distances[2]


@libero
@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != "distractors"])
def test_the_next_plain_episode_knows_nothing_of_it(env, axis):
    plain, state_S, said = begin(env, 2)
    begin(env, 2, f"+{axis}:3")
    for action in np.random.default_rng(0).uniform(-1, 1, (3, 7)):
        env.step(action)
    images, other_S, instruction = begin(env, 2)
    assert np.array_equal(other_S, state_S) and instruction == said
    assert all(np.array_equal(images[camera], plain[camera]) for camera in plain)


# --- states -------------------------------------------------------------------------------------


@libero
@pytest.mark.parametrize("grade", GRADES)
def test_the_arm_starts_elsewhere_and_stays_there(env, grade):
    _, state_S, _ = begin(env, 4)
    hand_3, rest = env.data.site_xpos[env._arm.site].copy(), np.ones(len(state_S), bool)
    mine = [*(1 + np.array(env._arm.qpos_at)), *(1 + np.array(env._arm.fingers_at))]
    rest[mine] = False
    rest[1 + env.model.nq :] = False
    _, other_S, _ = begin(env, 4, f"+robot:{grade}")
    away = np.linalg.norm(env.data.site_xpos[env._arm.site] - hand_3)
    assert away == pytest.approx(HAND[grade], abs=0.025)
    assert np.allclose(other_S[rest], state_S[rest], atol=1e-6)
    for _ in range(10):
        env.step(np.zeros(7))
    assert np.linalg.norm(env.data.site_xpos[env._arm.site] - hand_3) == pytest.approx(away, abs=0.02)
    assert apart(env, f"+robot:{grade}", 4, 7) > 0.01, "each episode's own"


@libero
@pytest.mark.parametrize("grade", GRADES)
def test_layout_pushes_everything_on_the_table(env, grade):
    begin(env, 5)
    start = env.starts.find(5).state_S
    begin(env, 5, f"+layout:{grade}")
    moved = env.starts.find(5).state_S
    least, most, _ = SHIFTS[grade]
    for thing in env.starts.placer.things:
        way = np.linalg.norm((moved - start)[1 + thing.at : 3 + thing.at])
        assert least - 0.01 < way < most + 0.01
    assert np.array_equal(moved[1 + np.array(env._arm.qpos_at)], start[1 + np.array(env._arm.qpos_at)])
    assert apart(env, f"+layout:{grade}", 5, 8) > 0.01, "each episode's own"


@libero
def test_axes_and_drawn_states_go_together(env):
    _, state_S, _ = begin(env, 6, "+wide:3")
    _, other_S, said = begin(env, 6, "+wide:3+camera:2+paraphrase:2")
    assert np.array_equal(state_S, other_S) and said != env.facts.instruction
    assert env.starts.find(6).number == 6


@libero
def test_other_words_for_all_130_tasks():
    from lawm_policy.sim.libero_tasks import libero_task

    kept = {"left", "right", "front", "back", "middle", "top", "bottom", "both", "under", "it", "inside"}
    for suite in TASK_COUNTS:
        for task in task_names(suite):
            said = libero_task(task).instruction
            for grade in GRADES:
                told = paraphrase(said, grade, np.random.default_rng(grade))
                assert told != said
                assert [w for w in told.split() if w in kept and w != "it"] == [
                    w for w in said.split() if w in kept and w != "it"
                ]


@libero
def test_distractors_stand_about_and_are_in_nobodys_way(env, crowded):
    plain, _, said = begin(env, 1)
    own = {t.name: t for t in env.starts.placer.things}
    before_S = env.starts.find(1).state_S
    looked = []
    for grade in GRADES:
        images, _, instruction = begin(crowded, 1, f"+distractors:{grade}")
        start, placer = crowded.starts.find(1), crowded.starts.placer
        assert instruction == said
        there = [t for t in placer.things if t.extra and start.state_S[1 + t.at] > -1]
        assert len(there) == COUNTS[grade]
        for thing in (t for t in placer.things if not t.extra):  # the stored state, untouched
            as_was = before_S[1 + own[thing.name].at : 8 + own[thing.name].at]
            assert np.array_equal(start.state_S[1 + thing.at : 8 + thing.at], as_was)
        for thing in there:
            assert placer._carried(thing)
            assert all(gap > 0.01 for gap in placer.shapes.neighbours(thing, 0.02).values())
        looked.append(differ(images["front"], plain["front"]))
    assert 0.1 < looked[0] < looked[2]
    assert apart(crowded, "+distractors:3", 1, 3) > 0.01, "each episode's own"


@libero
def test_the_variant_with_distractors_is_otherwise_the_same_scene(env, crowded):
    begin(env, 1)
    ours = env.starts.placer.things
    env.reset(options={"init_state": 1})
    begin(crowded, 1, "+distractors:1")
    theirs = {t.name: t for t in crowded.starts.placer.things}
    for thing in ours:
        a = env.data.qpos[thing.at : thing.at + 3]
        b = crowded.data.qpos[theirs[thing.name].at : theirs[thing.name].at + 3]
        assert np.allclose(a, b, atol=1e-3)
    for name in env._sim.fixtures_dict:
        body, other = env._sim.obj_body_id[name], crowded._sim.obj_body_id[name]
        assert np.array_equal(env.model.body_pos[body], crowded.model.body_pos[other])
        assert np.array_equal(env.model.body_quat[body], crowded.model.body_quat[other])
