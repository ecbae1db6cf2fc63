"""The built-in tabletop: scene, tasks, environment, scripted experts.

Importing this package chooses a rendering back-end (MuJoCo reads the choice when it is imported) and
registers `lawm/tabletop-v0` with Gymnasium; nothing heavier is loaded until it is used.
"""

from __future__ import annotations

import gymnasium

from lawm_policy.sim.rendering import choose_backend

choose_backend()

ENVIRONMENT_ID = "lawm/tabletop-v0"

if ENVIRONMENT_ID not in gymnasium.registry:
    gymnasium.register(ENVIRONMENT_ID, entry_point="lawm_policy.sim.tabletop_env:TabletopEnv")

__all__ = ["ENVIRONMENT_ID"]
