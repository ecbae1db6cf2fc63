"""Demonstrations of hand commands, read as demonstrations of joint commands.

Where the joints were at the next look is where the arm was told to be: so a store needs only one kind of
command, and one decoder serves the simulator and a real arm.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lawm_policy.types import UserError


def joint_card(card: dict[str, Any] | None, where: object) -> dict[str, Any]:
    """The card of the same robot under joint commands."""
    if not card or not card.get("joints"):
        raise UserError(
            f"expected a robot card in {where} that says where the state has the joints, found none: "
            "use the commands as stored"
        )
    joints = card["joints"]
    return card | {
        "command": "joint",
        "action_names": [*joints["names"], "gripper"],
        "relative_to": [*joints["at"], None],
        "limits": [*joints["limits"], card["limits"][-1]],
        "controller": joints["controller"],
    }


def joint_commands(card: dict[str, Any], state_TP: np.ndarray, action_TA: np.ndarray) -> np.ndarray:
    """(T, J + 1) absolute joint targets and the gripper's command. Where the last command led nobody saw: the
    arm goes on as it moved (many episodes succeed, and end, in mid-movement)."""
    joints_TJ = state_TP[:, card["joints"]["at"]]
    beyond_1J = 2 * joints_TJ[-1:] - joints_TJ[-2:][:1]
    target_TJ = np.concatenate([joints_TJ[1:], beyond_1J])
    return np.concatenate([target_TJ, action_TA[:, -1:]], axis=1)
