"""What keeps a policy and a suite apart is told in one line, which names the one at fault."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import fake_suite
import pytest

from lawm_policy.sim import libero_suite
from lawm_policy.sim.matching import check_match
from lawm_policy.sim.suites import suite_named
from lawm_policy.types import UserError


def refused(suite, **robot):
    actor = SimpleNamespace(cameras=("front",), size=64, robot=robot)
    with pytest.raises(UserError) as error:
        check_match(suite, actor)
    return str(error.value)


@pytest.mark.parametrize("command", ["ee", "joint"])
def test_missing_assets_are_not_the_policys_fault(monkeypatch, command):
    line = "expected LIBERO's assets, found none: `make libero`"

    def prepare():
        raise UserError(line)

    monkeypatch.setattr(libero_suite, "prepare", prepare)
    assert refused(suite_named("libero_goal"), embodiment="panda", command=command) == line


def test_a_robot_of_another_suite():
    said = "expected an embodiment among arm5, arm6, arm7, hand, found 'panda': choose one of these"
    assert refused(suite_named("tabletop"), embodiment="panda", command="ee") == (
        f"expected a robot of suite tabletop, found the policy's ({said}): give the --suite that it learnt in"
    )
    assert refused(fake_suite.suite(), embodiment="hands") == (
        "expected a robot of suite point, found the policy's (no embodiment hands): "
        "give the --suite that it learnt in"
    )
    broken = replace(fake_suite.suite(), make=lambda **settings: {}["gripper"])
    assert "found the policy's ('gripper')" in refused(broken)
