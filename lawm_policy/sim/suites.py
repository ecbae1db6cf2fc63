"""The suites that there are, by name."""

from __future__ import annotations

from functools import partial
from typing import Any

from lawm_policy.config import nearest
from lawm_policy.sim.crews import load_function
from lawm_policy.sim.libero_protocol import (
    STORED_STATES,
    TASK_COUNTS,
    LiberoProtocol,
    choose,
    protocol_named,
    task_names,
)
from lawm_policy.sim.protocol import Suite
from lawm_policy.types import UserError

TABLETOP = "tabletop"


def tabletop() -> Suite:
    from lawm_policy.sim.tabletop_env import TabletopEnv
    from lawm_policy.sim.tabletop_tasks import TASKS, select_tasks

    return Suite(
        name=TABLETOP,
        limits={name: task.step_limit for name, task in TASKS.items()},
        held_out=tuple(name for name, task in TASKS.items() if task.held_out),
        choose=select_tasks,
        make=TabletopEnv,
        cameras=("front", "wrist"),
        simulators=("lawm-policy", "mujoco"),
    )


def libero_suite(name: str) -> Suite:
    """One of LIBERO's suites, as "libero_object" or "libero_object@openvla+lite"."""
    from lawm_policy.sim.libero_assets import PINNED, described

    suite, _, words = name.partition("@")
    rules = protocol_named(words or "lawm")
    told = rules.to_json() | {"limits": {suite: rules.limits.get(suite)}, "assets": described()}
    return Suite(
        name=suite,
        limits=dict.fromkeys(task_names(suite), rules.limits[suite]),
        held_out=(),
        choose=partial(choose, suite),
        make=partial(make_suite_env, suite, rules),
        cameras=tuple(rules.cameras),
        simulators=("lawm-policy", *PINNED),
        settle_steps=rules.settle_steps,
        robot={"embodiment": "panda", "command": "ee"},
        rules={"flip": rules.flip, "libero": told},
        stored_states=STORED_STATES if rules.factor is None else None,
        slow_tasks=True,
    )


def make_suite_env(suite: str, rules: LiberoProtocol, **settings: Any) -> Any:
    from lawm_policy.sim.libero_suite import LiberoSuiteEnv

    return LiberoSuiteEnv(suite, protocol=rules, **settings)


def suite_named(name: str) -> Suite:
    """A suite of ours by name, or anyone's by "module:function"; "libero_goal@openvla" plays it their way."""
    family = name.partition("@")[0]
    if ":" in family:
        return load_function(name)()
    if family in TASK_COUNTS:
        return libero_suite(name)
    if name != TABLETOP:
        raise UserError(f"expected a suite, found {name!r}: {nearest(family, [TABLETOP, *TASK_COUNTS])}")
    return tabletop()
