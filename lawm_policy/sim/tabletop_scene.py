"""The tabletop as MJCF: table, blocks, bowls, pad, drawer, two cameras and one embodiment.

One model serves every episode of an embodiment. What changes with the seed (places, colours, cameras,
light) is written into the model or its mocap bodies at reset: see tabletop_layout.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from lawm_policy.sim.engine import mujoco
from lawm_policy.sim.kinematics import PINCH, Chain, chain_xml, load_chain

BLOCKS = ("red", "green", "blue")
BOWLS = ("yellow", "purple")
CAMERAS = ("front", "wrist")

TIMESTEP = 0.005
SUBSTEPS = 10  # 20 Hz control
BLOCK_HALF = 0.02
BOWL_RADIUS, BOWL_HEIGHT = 0.047, 0.038
PAD_RADIUS = 0.045
FINGER_STROKE = 0.04  # each finger; the gripper opens to twice this
DRAWER_TRAVEL = 0.105
DRAWER_FRONT = 0.065  # from the drawer's mocap body to the housing's front face, along x
DRAWER_HALF_WIDTH = 0.052
FRONT_CAMERA = np.array([0.50, 0.0, 0.47])
FRONT_TARGET = np.array([-0.040, 0.0, 0.058])
FRONT_FOVY = 42.0

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.13, 0.12),
    "green": (0.12, 0.68, 0.22),
    "blue": (0.12, 0.32, 0.92),
    "yellow": (0.98, 0.80, 0.10),
    "purple": (0.55, 0.22, 0.68),
    "pad": (0.10, 0.72, 0.76),
    "table": (0.86, 0.82, 0.75),
    "floor": (0.30, 0.33, 0.38),
    "housing": (0.52, 0.36, 0.24),
    "tray": (0.72, 0.53, 0.36),
    "handle": (0.95, 0.95, 0.95),
}
BODY_COLOURS: dict[str, dict[str, tuple[float, float, float]]] = {
    "arm": {
        "link": (0.93, 0.93, 0.95),
        "joint": (0.95, 0.50, 0.12),
        "palm": (0.24, 0.25, 0.28),
        "finger": (0.13, 0.14, 0.16),
    },
    "hand": {"palm": (0.93, 0.71, 0.57), "finger": (0.86, 0.60, 0.46), "nail": (0.97, 0.85, 0.78)},
}
DISTRACTORS = (  # shape, size, colour
    ("sphere", (0.016,), (0.95, 0.45, 0.70)),
    ("box", (0.014, 0.014, 0.014), (0.40, 0.85, 0.95)),
    ("capsule", (0.010, 0.014), (0.60, 0.75, 0.15)),
    ("ellipsoid", (0.020, 0.012, 0.012), (0.55, 0.45, 0.40)),
)

Numbers = Sequence[float] | np.ndarray

# Who may touch whom. Links of the arm touch nothing: commands that would need it are the expert's mistake.
_FIXED = 'contype="1" conaffinity="6"'
_BLOCK = 'contype="2" conaffinity="7"'
_FINGER = 'contype="4" conaffinity="3"'
_SEEN = 'contype="0" conaffinity="0"'


def _join(values: Numbers) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _geom(
    shape: str, size: Numbers, place: Numbers, colour: Numbers, contact: str = _FIXED, more: str = ""
) -> str:
    """`place` is a position, or the two ends of a capsule."""
    where = f'fromto="{_join(place)}"' if len(place) == 6 else f'pos="{_join(place)}"'
    return f'<geom type="{shape}" size="{_join(size)}" {where} rgba="{_join(colour)} 1" {contact} {more}/>'


def _gripper(kind: str) -> str:
    """Palm, two mirrored fingers with wide soft pads, and the camera that looks at them from the palm."""
    colours = BODY_COLOURS[kind]
    if kind == "arm":
        look = _geom("box", (0.018, 0.036, 0.017), (0, 0, 0.022), colours["palm"], _SEEN)
        look += _geom("cylinder", (0.024, 0.006), (0, 0, 0.002), colours["joint"], _SEEN)
    else:
        look = _geom("ellipsoid", (0.030, 0.046, 0.026), (0, 0, 0.016), colours["palm"], _SEEN)
        look += _geom("capsule", (0.021,), (0, 0, -0.06, 0, 0, 0.005), colours["palm"], _SEEN)
    pad_physics = 'mass="0.03" friction="2 0.05 0.001" condim="4" solimp="0.95 0.99 0.001"'
    for name, side in (("left", 1), ("right", -1)):
        colour = colours["finger"]
        pad = _geom("box", (0.011, 0.006, 0.012), (0, side * 0.006, 0), colour, _FINGER, pad_physics)
        if kind == "arm":
            pad += _geom("box", (0.009, 0.006, 0.034), (0, side * 0.006, -0.028), colour, _SEEN)
        else:
            ends = (0, side * 0.009, -0.062, 0, side * 0.007, 0.002)
            pad += _geom("capsule", (0.0095,), ends, colour, _SEEN)
            pad += _geom("sphere", (0.008,), (0, side * 0.012, 0.004), colours["nail"], _SEEN)
        look += (
            f'<body name="{name}" pos="0 0 {PINCH}" gravcomp="1">'
            f'<joint name="{name}" type="slide" axis="0 {side} 0" range="0 {FINGER_STROKE}" armature="0.02" '
            f'damping="2"/>{pad}</body>'
        )
    camera = '<camera name="wrist" pos="0.068 0 -0.004" xyaxes="0 -1 0 -0.90 0 -0.436" fovy="66"/>'
    return f'<inertial pos="0 0 0.03" mass="0.15" diaginertia="0.0002 0.0002 0.0002"/>{look}{camera}'


def _bowl(name: str, sides: int = 14) -> str:
    """A ring of boxes that lean outwards, on a disc."""
    tilt, thickness = 0.30, 0.0025
    half = BOWL_HEIGHT / 2 / np.cos(tilt)
    middle = BOWL_RADIUS - half * np.sin(tilt)
    size = (thickness, BOWL_RADIUS * np.tan(np.pi / sides) * 1.02, half)
    walls = ""
    for angle in 2 * np.pi * np.arange(sides) / sides:
        cz, sz, ct, st = np.cos(angle / 2), np.sin(angle / 2), np.cos(tilt / 2), np.sin(tilt / 2)
        turn = f'quat="{_join((cz * ct, -sz * st, cz * st, sz * ct))}"'  # by angle about z, then outwards
        place = (middle * np.cos(angle), middle * np.sin(angle), BOWL_HEIGHT / 2)
        walls += _geom("box", size, place, COLOURS[name], more=turn)
    base = _geom("cylinder", (BOWL_RADIUS - 2 * half * np.sin(tilt), 0.002), (0, 0, 0.002), COLOURS[name])
    return f'<body name="{name}_bowl" mocap="true">{walls}{base}</body>'


def _block(name: str) -> str:
    physics = 'mass="0.05" friction="0.8 0.02 0.001" condim="4" solimp="0.95 0.99 0.001"'
    cube = _geom("box", (BLOCK_HALF,) * 3, (0, 0, 0), COLOURS[name], _BLOCK, physics)
    return f'<body name="{name}_block"><freejoint name="{name}_block"/>{cube}</body>'


def _drawer() -> str:
    """A housing open at the front (+x) and a tray that slides out of it by a loop handle."""
    f, w = DRAWER_FRONT, DRAWER_HALF_WIDTH
    outer, wall, inside, front = w + 0.006, 0.018, f - 0.006, f + 0.004
    housing = [
        ((0, outer, 0.032), (f, 0.004, 0.032)),
        ((0, -outer, 0.032), (f, 0.004, 0.032)),
        ((-f, 0, 0.032), (0.004, outer, 0.032)),
        ((0, 0, 0.062), (f, outer + 0.004, 0.004)),
    ]
    tray = [
        ((-0.002, 0, 0.004), (inside, w - 0.003, 0.002)),
        ((-0.002, w - 0.004, 0.004 + wall), (inside, 0.003, wall)),
        ((-0.002, 0.004 - w, 0.004 + wall), (inside, 0.003, wall)),
        ((-inside, 0, 0.004 + wall), (0.003, w - 0.003, wall)),
        ((front, 0, 0.028), (0.004, w + 0.004, 0.026)),
    ]
    handle = [
        ((front + 0.050, 0, 0.034), (0.005, 0.034, 0.006)),
        ((front + 0.026, 0.031, 0.034), (0.024, 0.004, 0.006)),
        ((front + 0.026, -0.031, 0.034), (0.024, 0.004, 0.006)),
    ]
    solid = {
        name: "".join(_geom("box", size, place, COLOURS[name]) for place, size in boxes)
        for name, boxes in (("housing", housing), ("tray", tray), ("handle", handle))
    }
    return (
        f'<body name="drawer" mocap="true">{solid["housing"]}<body name="tray" gravcomp="1">'
        f'<inertial pos="0 0 0.02" mass="0.25" diaginertia="0.001 0.001 0.001"/>'
        f'<joint name="drawer" type="slide" axis="1 0 0" range="0 {DRAWER_TRAVEL}" damping="4" '
        f'frictionloss="0.6"/>{solid["tray"]}{solid["handle"]}</body></body>'
    )


def _mover(k: int) -> str:
    shape, size, colour = DISTRACTORS[k % len(DISTRACTORS)]
    look = _geom(shape, size, (0, 0, 0), colour, _SEEN)
    return f'<body name="distractor{k}" mocap="true" pos="0 0 -1">{look}</body>'


def scene_xml(chain: Chain, distractors: int = 0, effects: bool = False) -> str:
    """The whole MJCF. `effects` asks for MuJoCo's usual antialiasing and shadow map, which cost most of
    the rendering time and change little at 64 pixels."""
    kind = "hand" if chain.floating else "arm"
    skin = BODY_COLOURS["arm"]
    foot = ""
    if kind == "arm":
        foot = _geom("cylinder", (0.06, 0.03), (*chain.base[:2], 0.03), skin["palm"], _SEEN)
    actuators = "".join(
        f'<position name="{joint.name}" joint="{joint.name}" kp="{joint.kp}" kv="{joint.kv}" '
        f'ctrlrange="{_join(joint.limits)}"/>'
        for joint in chain.joints
    )
    disc = _geom("cylinder", (PAD_RADIUS, 0.0006), (0, 0, 0.0006), COLOURS["pad"], _SEEN)
    pad = f'<body name="pad" mocap="true">{disc}</body>'
    right, up = _look_axes(FRONT_CAMERA, FRONT_TARGET)
    return f"""<mujoco model="tabletop">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10" iterations="30"/>
  <size memory="4M"/>
  <visual>
    <headlight ambient="0.42 0.42 0.42" diffuse="0.34 0.34 0.34" specular="0.05 0.05 0.05"/>
    <quality shadowsize="{4096 if effects else 0}" offsamples="{4 if effects else 0}"/>
    <global offwidth="640" offheight="640"/>
    <map znear="0.02" zfar="20"/>
  </visual>
  <default>
    <geom solref="0.01 1"/>
    <default class="link"><geom {_SEEN} rgba="{_join(skin["link"])} 1"/></default>
    <default class="joint"><geom {_SEEN} rgba="{_join(skin["joint"])} 1"/></default>
  </default>
  <worldbody>
    <light name="sun" pos="0.3 -0.4 1.2" dir="-0.25 0.35 -1" directional="true" diffuse="0.42 0.42 0.42"
      specular="0.08 0.08 0.08"/>
    <camera name="front" pos="{_join(FRONT_CAMERA)}" xyaxes="{_join(right)} {_join(up)}" fovy="{FRONT_FOVY}"/>
    {_geom("plane", (3, 3, 0.1), (0, 0, -0.4), COLOURS["floor"], _SEEN)}
    {_geom("box", (0.34, 0.32, 0.02), (-0.08, 0, -0.02), COLOURS["table"], more='friction="0.8 0.02 0.001"')}
    {pad}
    {"".join(_bowl(name) for name in BOWLS)}
    {_drawer()}
    {"".join(_mover(k) for k in range(distractors))}
    {foot}
    {chain_xml(chain, _gripper(kind))}
    {"".join(_block(name) for name in BLOCKS)}
  </worldbody>
  <tendon><fixed name="grip">
    <joint joint="left" coef="0.5"/><joint joint="right" coef="0.5"/>
  </fixed></tendon>
  <equality><joint joint1="left" joint2="right" polycoef="0 1 0 0 0" solref="0.01 1"/></equality>
  <actuator>{actuators}
    <position name="grip" tendon="grip" kp="900" kv="45" ctrlrange="0 {FINGER_STROKE}" forcerange="-14 14"/>
  </actuator>
</mujoco>"""


@cache
def compile_scene(embodiment: str, distractors: int = 0, effects: bool = False) -> mujoco.MjModel:
    """The compiled model; shared, so copy it (`copy.copy`) before writing into it."""
    return mujoco.MjModel.from_xml_string(scene_xml(load_chain(embodiment), distractors, effects))


def _look_axes(position: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and up axes of a camera at `position` that looks at `target`."""
    back = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return right, np.cross(back, right)


def look_quaternion(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(4,) orientation of a camera at `position` that looks at `target`."""
    right, up = _look_axes(position, target)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.stack([right, up, np.cross(right, up)], axis=1).ravel())
    return quaternion
