"""LIBERO's arm in words and numbers: what a policy and a store of demonstrations must know about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONTROL_HZ = 20
POSE = ("dx", "dy", "dz", "dax", "day", "daz")
JOINTS = tuple(f"joint{k}" for k in range(1, 8))
# LeRobot's eight numbers (the hand's position, its rotation as axis times angle, the fingers), then the
# joints.
HAND = ("eef_x", "eef_y", "eef_z", "eef_ax", "eef_ay", "eef_az", "finger1", "finger2")
STATE = (*HAND, *JOINTS)
JOINTS_AT = tuple(range(len(HAND), len(STATE)))
JOINT_KP = 2500.0  # 1/s^2: an arm that follows its targets as position-controlled arms do (50 rad/s)
JOINT_CONTROLLER = f"joint PD, {JOINT_KP:g}/s^2, critically damped"
JOINT_LIMITS = (
    (-2.8973, 2.8973),
    (-1.7628, 1.7628),
    (-2.8973, 2.8973),
    (-3.0718, -0.0698),
    (-2.8973, 2.8973),
    (-0.0175, 3.7525),
    (-2.8973, 2.8973),
)


def panda_card(command: str, cameras: Sequence[str], flip: str, visuals: str = "exact") -> dict[str, Any]:
    """The robot card. `command` "ee": moves of the hand in [-1, 1]^6; "joint": absolute joint targets."""
    joint = command == "joint"
    limits = JOINT_LIMITS if joint else ((-1.0, 1.0),) * len(POSE)
    return {
        "embodiment": "panda",
        "command": command,
        "rate": CONTROL_HZ,
        "action_names": [*(JOINTS if joint else POSE), "gripper"],
        "state_names": list(STATE),
        # index into the state of the value an absolute command is measured from; null: as it stands
        "relative_to": [*(JOINTS_AT if joint else (None,) * len(POSE)), None],
        "limits": [list(pair) for pair in (*limits, (-1.0, 1.0))],
        # where the state has the joints, so that demonstrations of either kind of command give the other
        "joints": {
            "names": list(JOINTS),
            "at": list(JOINTS_AT),
            "limits": [list(pair) for pair in JOINT_LIMITS],
            "controller": JOINT_CONTROLLER,
        },
        "gripper": {"open": -1.0, "closed": 1.0},
        "cameras": list(cameras),
        "controller": JOINT_CONTROLLER if joint else "OSC_POSE",
        "flip": flip,
        "visuals": visuals,
    }
