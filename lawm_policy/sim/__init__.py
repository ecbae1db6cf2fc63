"""Simulated environments: the built-in tabletop, and LIBERO's 130 tasks.

Importing this package chooses a rendering back-end (MuJoCo reads the choice when it is imported) and
registers `lawm/tabletop-v0` and `lawm/libero_object-3-v0` (and so on) with Gymnasium; nothing heavier is
loaded until it is used.
"""

from __future__ import annotations

import gymnasium

from lawm_policy.sim.libero_protocol import TASK_COUNTS, task_names
from lawm_policy.sim.rendering import choose_backend

choose_backend()

ENVIRONMENT_ID = "lawm/tabletop-v0"

if ENVIRONMENT_ID not in gymnasium.registry:
    gymnasium.register(ENVIRONMENT_ID, entry_point="lawm_policy.sim.tabletop_env:TabletopEnv")

for _suite in TASK_COUNTS:
    for _task in task_names(_suite):
        if f"lawm/{_task}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"lawm/{_task}-v0", entry_point="lawm_policy.sim.libero_env:LiberoEnv", kwargs={"task": _task}
            )

__all__ = ["ENVIRONMENT_ID"]
