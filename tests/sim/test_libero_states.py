"""Initial states of LIBERO that are drawn: fresh and wide."""

import subprocess
import sys

import numpy as np
import pytest

from lawm_policy.sim import libero_states
from lawm_policy.sim.libero_env import LiberoEnv
from lawm_policy.sim.libero_premise import BrokenPremise
from lawm_policy.sim.libero_protocol import PRESETS, LiberoProtocol, protocol_named
from lawm_policy.sim.libero_shapes import _references
from lawm_policy.sim.libero_starts import Starts
from lawm_policy.sim.protocol import SPLITS, first_state
from lawm_policy.sim.suites import suite_named
from lawm_policy.types import UserError

libero = pytest.mark.libero
GOAL, OBJECT, BETWEEN, STACKED, DRAWER = (
    "libero_goal-3",
    "libero_object-0",
    "libero_spatial-0",
    "libero_spatial-5",
    "libero_spatial-4",
)
made: dict[str, LiberoEnv] = {}


@pytest.fixture(scope="module", autouse=True)
def closed():
    yield
    made.clear()


def env_of(task, words):
    """One compiled model a task, whatever the protocol."""
    if task not in made:
        made[task] = LiberoEnv(task, images=False)
    env = made[task]
    env.protocol = protocol_named(words)
    env.starts = Starts(task, env.protocol, env._sim.objects_dict, env._states_NS, env._placer)
    return env


def places(env, state_S):
    """Seen from above, of what stands on the table."""
    return np.array([state_S[1 + t.at : 3 + t.at] for t in env.starts.placer.things if t.kind == "table"])


def spread(env, states):
    """Mean distance between two states' places of each thing."""
    all_NT2 = np.array([places(env, state_S) for state_S in states])
    pairs = [np.linalg.norm(a - b, axis=1) for k, a in enumerate(all_NT2) for b in all_NT2[:k]]
    return np.mean(pairs, axis=0)


# --- words --------------------------------------------------------------------------------------


def test_words_after_the_preset():
    rules = protocol_named("lawm+wide:2+lite")
    assert (rules.initial, rules.visuals, rules.factor) == ("wide:2", "lite", 2.0)
    assert protocol_named("openvla+fresh").factor == 1.0
    assert protocol_named("lawm").factor is None and protocol_named("lawm") is PRESETS["lawm"]
    rules = protocol_named("lawm+fresh+camera:2+light:1")
    assert rules.perturbations == {"camera": 2, "light": 1}
    assert LiberoProtocol(**rules.to_json()) == rules


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("lawm+freesh", "'fresh'"),
        ("lawm+camra:2", "'camera'"),
        ("lawm+light", "light:2"),
        ("lawm+layout:4", "1, 2, 3"),
        ("lawm+wide", "wide:2"),
        ("lawm+wide:0.5", "above 1"),
        ("lawm+wide:nan", "above 1"),
        ("lawm+wide:11", "at most 10"),
        ("lawm+fresh+wide:2", "one initial"),
        ("lawm+lite+exact", "one visuals"),
        ("lawm+camera:1+camera:2", "twice"),
    ],
)
def test_bad_words_get_one_line_that_names_the_nearest(words, said):
    with pytest.raises(UserError) as raised:
        protocol_named(words)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_drawn_states_have_the_seeds_of_their_split():
    drawn, stored = suite_named("libero_goal@lawm+wide:2+camera:1"), suite_named("libero_goal")
    assert drawn.rules["libero"]["initial"] == "wide:2" and drawn.rules["libero"]["perturb"] == "camera:1"
    assert first_state(drawn, "val", 500, None) == SPLITS["val"]
    assert first_state(drawn, "test", 500, None) == SPLITS["test"]
    assert first_state(drawn, "val", 500, 150_000) == 150_000
    with pytest.raises(UserError, match="--seed-base of at least 100000 in suite libero_goal, found 0"):
        first_state(drawn, "test", 500, 0)  # where `lawm collect` begins
    with pytest.raises(UserError, match="--split test"):
        first_state(stored, "val", 5, None)


def test_the_region_tells_what_a_thing_stands_next_to():
    kin = {"akita_black_bowl_1": "bowl", "plate_1": "plate", "cookies_1": "cookies", "dish_1": "ramekin"}
    assert set(_references("main_table_between_plate_ramekin_region", kin)) == {"plate_1", "dish_1"}
    assert _references("main_table_next_to_box_region", kin) == ("cookies_1",)
    assert _references("main_table_plate_region", kin) == ()


# --- drawing ------------------------------------------------------------------------------------


@libero
def test_a_seed_means_one_state_whatever_happened_before():
    env = env_of(GOAL, "lawm+wide:3")
    env.reset(options={"init_state": 7})
    begun = env.starts.find(7).state_S
    settled = env.flat_state()
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 7)):
        env.step(action)
    np.random.seed(5)  # noqa: NPY002
    env.reset(options={"init_state": 8})
    assert not np.array_equal(places(env, env.starts.find(8).state_S), places(env, begun))
    env = env_of(GOAL, "lawm+wide:3")  # which has drawn nothing yet
    env.reset(options={"init_state": 7})
    assert np.array_equal(env.starts.find(7).state_S, begun)
    assert np.array_equal(env.flat_state(), settled)
    code = (
        "from lawm_policy.sim.libero_env import LiberoEnv; import sys\n"
        f"env = LiberoEnv({GOAL!r}, images=False, protocol='openvla+wide:3')\n"
        "sys.stdout.write(env.starts.find(7).state_S.tobytes().hex())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.endswith(begun.tobytes().hex())  # LIBERO prints before it


@libero
def test_fresh_states_fill_the_regions_where_stored_ones_hardly_move():
    env = env_of(OBJECT, "lawm+fresh")
    fresh = [env.starts.find(k).state_S for k in range(8)]
    assert spread(env, env._states_NS[:8]).min() == 0  # most of libero_object's things stand still
    assert spread(env, fresh).min() > 0.01
    table = [thing for thing in env.starts.placer.things if thing.kind == "table"]
    centre_T2, half_T2 = np.array([t.centre_2 for t in table]), np.array([t.half_2 for t in table])
    for state_S in fresh:
        assert np.all(np.abs(places(env, state_S) - centre_T2) < half_T2 + 0.005)


@libero
def test_fresh_states_are_as_stored_ones_where_those_move():
    env = env_of(GOAL, "lawm+fresh")
    fresh = [env.starts.find(k).state_S for k in range(20)]
    ratio = spread(env, fresh) / spread(env, env._states_NS[:20])
    assert np.all((ratio > 0.7) & (ratio < 1.4))
    arm = np.array([state_S[1 + np.array(env._arm.qpos_at)] for state_S in fresh])
    stored = env._states_NS[:, 1 + np.array(env._arm.qpos_at)]
    assert np.allclose(arm.std(axis=0), stored.std(axis=0), atol=0.012)
    assert np.allclose(arm.mean(axis=0), stored.mean(axis=0), atol=0.02)


@libero
@pytest.mark.parametrize("task", [GOAL, OBJECT, BETWEEN])
def test_wide_states_move_things_farther_and_hold_the_premise(task):
    env = env_of(task, "lawm+fresh")
    near = spread(env, [env.starts.find(k).state_S for k in range(6)])
    env = env_of(task, "lawm+wide:4")
    far = spread(env, [env.starts.find(k).state_S for k in range(6)])
    assert far.mean() > 2 * near.mean()
    roots = {thing.root for thing in env.starts.placer.things}
    for k in range(6):
        env.reset(options={"init_state": k})  # raises where the premise does not hold
        assert not env.step(np.zeros(7))[2]
        bodies = env.model.body_rootid[env.model.geom_bodyid[env.data.contact.geom]]
        between = np.all(np.isin(bodies, list(roots)), axis=1) & (bodies[:, 0] != bodies[:, 1])
        assert not between.any()  # nothing leans on anything


@libero
def test_next_to_and_between_stay_true():
    env = env_of(BETWEEN, "lawm+wide:4")
    at = {t.name: t.at for t in env.starts.placer.things}
    for k in range(8):
        state_Q = env.starts.find(k).state_S[1:]
        place = {name: state_Q[a : a + 2] for name, a in at.items()}
        middle = (place["plate_1"] + place["glazed_rim_porcelain_ramekin_1"]) / 2
        mine, other = (np.linalg.norm(place[f"akita_black_bowl_{n}"] - middle) for n in (1, 2))
        assert mine < 0.06 and other > mine + 0.03


@libero
def test_what_stands_on_or_in_something_goes_with_it():
    env = env_of(STACKED, "lawm+wide:3")
    at = {t.name: t.at for t in env.starts.placer.things}
    ramekins = []
    for k in range(4):
        env.reset(options={"init_state": k})
        bowl, ramekin = (
            env.data.qpos[at[name] : at[name] + 3]
            for name in ("akita_black_bowl_1", "glazed_rim_porcelain_ramekin_1")
        )
        assert np.linalg.norm((bowl - ramekin)[:2]) < 0.03 and bowl[2] > ramekin[2] + 0.01
        ramekins.append(ramekin[:2].copy())
    assert np.ptp(ramekins, axis=0).max() > 0.02
    env = env_of(DRAWER, "lawm+fresh")
    for k in range(3):
        env.reset(options={"init_state": k})
        assert env._sim._eval_predicate(["in", "akita_black_bowl_1", "wooden_cabinet_1_top_region"])
        assert env._sim._eval_predicate(["open", "wooden_cabinet_1_top_region"])


@libero
def test_a_distance_is_the_distance():
    import mujoco

    env = env_of(GOAL, "lawm+fresh")
    placer = env.starts.placer
    env.reset(options={"init_state": 0})
    plate, bowl = (next(t for t in placer.things if t.kin == kin) for kin in ("plate", "bowl"))
    here_2 = env.data.qpos[plate.at : plate.at + 2] + np.array([0.0, 0.16])
    placer.shapes.put_down(bowl, here_2, bowl.quats_N4[0], 0.002)
    pairs = [(a, b) for a in plate.geoms for b in bowl.geoms]
    true = min(mujoco.mj_geomDistance(env.model, env.data, a, b, 0.2, None) for a, b in pairs)
    assert 0.001 < true < 0.19
    assert placer.shapes.neighbours(bowl, true + 0.01)[plate.root] == pytest.approx(true, abs=1e-4)
    assert plate.root not in placer.shapes.neighbours(bowl, true - 0.001)


@libero
def test_what_cannot_be_drawn_is_an_error_after_a_bounded_search(monkeypatch):
    env = env_of(GOAL, "lawm+fresh")
    monkeypatch.setattr(libero_states, "DRAWS", 2)
    monkeypatch.setattr(libero_states.Placer, "_fits", lambda *_: False)
    with pytest.raises(BrokenPremise, match="seed 3 in 2 draws: at last, no place for"):
        env.reset(options={"init_state": 3})
    with pytest.raises(UserError, match="reset before step"):
        env.step(np.zeros(7))
    with pytest.raises(UserError, match="at least 0"):
        env.reset(options={"init_state": -5})


@libero
@pytest.mark.parametrize("words", ["lawm", "lawm+wide:4"])
def test_a_broken_state_is_told(words):
    env = env_of(GOAL, words)
    bowl = next(t for t in env.starts.placer.things if t.kin == "bowl")
    state_S = env.starts.find(1).state_S.copy()
    state_S[1 + bowl.at + 2] += 0.5  # in the air
    with pytest.raises(BrokenPremise, match="akita_black_bowl_1"):
        env.reset(options={"init_state": state_S})
    if words == "lawm":
        state_S = env.starts.find(1).state_S.copy()
        state_S[1 + bowl.at : 3 + bowl.at] += np.array([0.25, 0.2])  # elsewhere on the table
        with pytest.raises(BrokenPremise, match="cm away"):
            env.reset(options={"init_state": state_S})
