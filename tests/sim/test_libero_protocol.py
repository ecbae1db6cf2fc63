"""The four ways of playing LIBERO, and the words that choose one."""

from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing

import pytest

from lawm_policy.sim import protocol
from lawm_policy.sim.libero_protocol import (
    PRESETS,
    TASK_COUNTS,
    choose,
    protocol_named,
    split_task,
    task_names,
)
from lawm_policy.sim.suites import libero_suite, suite_named
from lawm_policy.types import UserError


def test_presets_are_what_their_authors_play():
    """Facts of the published evaluations; a change of one of them changes everybody's numbers."""
    told = {
        name: (
            *rules.limits.values(),
            rules.settle_steps,
            rules.settle_gripper,
            rules.resolution,
            rules.flip,
        )
        for name, rules in PRESETS.items()
    }
    assert told == {
        "libero": (600, 600, 600, 600, 600, 5, 0.0, 128, "none"),
        "lawm": (300, 300, 300, 300, 300, 5, 0.0, 128, "none"),
        "openvla": (220, 280, 300, 520, 400, 10, -1.0, 256, "rotate_180"),
        "lerobot": (280, 280, 300, 520, 400, 10, -1.0, 256, "rotate_180"),
    }


def test_a_protocol_is_frozen_and_survives_its_travels():
    rules = protocol_named("openvla+lite")
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules.settle_steps = 3
    with pytest.raises(TypeError):
        rules.limits["libero_goal"] = 1
    here, there = multiprocessing.Pipe()  # as to a worker
    here.send(rules)
    assert there.recv() == rules == copy.deepcopy(rules)
    assert json.loads(json.dumps(rules.to_json()))["visuals"] == "lite"
    assert rules != protocol_named("openvla")


def test_a_suite_carries_its_protocol():
    suite = suite_named("libero_goal@openvla+lite")
    assert suite.name == "libero_goal" and suite.settle_steps == 10
    assert set(suite.limits.values()) == {300} and len(suite.limits) == 10
    assert suite.rules["libero"]["visuals"] == "lite" and suite.rules["libero"]["limits"] == {
        "libero_goal": 300
    }
    assert suite.rules["libero"]["assets"]["state"] in ("complete", "approximated", "missing", "damaged")
    assert protocol_named("lawm+wide:3.0+light:1+camera:2") == protocol_named("lawm+camera:2+light:1+wide:3")
    assert {"hf-libero", "robosuite", "bddl", "mujoco"} <= set(suite.simulators)
    assert suite_named("libero_goal").rules["libero"]["name"] == "lawm"


def test_tasks_are_chosen_by_number_range_or_name():
    names = task_names("libero_object")
    assert choose("libero_object", "all") == names and len(names) == TASK_COUNTS["libero_object"] == 10
    assert choose("libero_object", "3, libero_object-1,0-1") == (names[3], names[1], names[0])
    assert split_task("libero_90-89") == ("libero_90", 89)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: protocol_named("openvlm"), "did you mean 'openvla'"),
        (lambda: protocol_named("lawm+lit"), "did you mean 'lite'"),
        (lambda: protocol_named("lawm+light"), "write light:2"),
        (lambda: suite_named("libero_goals"), "did you mean 'libero_goal'"),
        (lambda: suite_named("tabletop@lawm"), "expected a suite"),
        (lambda: choose("libero_goal", "10"), "0-9, found '10'"),
        (lambda: choose("libero_goal", "4-2"), "found '4-2'"),
        (lambda: choose("libero_goal", "open"), "found 'open'"),
        (lambda: choose("libero_goal", ","), "name some, or all"),
        (lambda: split_task("libero_goal-10"), "libero_goal-0 to libero_goal-9"),
        (lambda: task_names("libero"), "expected a LIBERO suite"),
        (lambda: dataclasses.replace(PRESETS["lawm"], flip="twice"), "correct the protocol"),
    ],
)
def test_wrong_words_are_told_in_one_line(call, said):
    with pytest.raises(UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_stored_states_are_for_testing_and_there_are_fifty():
    suite = libero_suite("libero_object")
    assert protocol.first_state(suite, "test", 50, None) == 0
    assert protocol.first_state(suite, "test", 10, 40) == 40
    for split, episodes, base, said in (
        ("test", 51, None, "ask for fewer --episodes"),
        ("test", 10, 41, r"found 41\.\.50"),
        ("val", 10, None, "expected --split test"),
    ):
        with pytest.raises(UserError, match=said):
            protocol.first_state(suite, split, episodes, base)
