"""The tabletop as MJCF: table, blocks, bowls, pad, drawer, two cameras and one embodiment.

One model serves every episode of an embodiment. What changes with the seed (places, colours, cameras,
light) is written into the model or its mocap bodies at reset: see tabletop_layout.py.
"""

from __future__ import annotations

from functools import cache

import mujoco
import numpy as np

from lawm_policy.sim.kinematics import Chain, chain_xml, load_chain

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
DRAWER_HANDLE = 0.030  # from the tray's front wall to the middle of the gap of its handle
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
    "arm": {"link": (0.93, 0.93, 0.95), "joint": (0.95, 0.50, 0.12), "palm": (0.24, 0.25, 0.28), "finger": (0.13, 0.14, 0.16)},
    "hand": {"palm": (0.93, 0.71, 0.57), "finger": (0.86, 0.60, 0.46), "nail": (0.97, 0.85, 0.78)},
}
DISTRACTOR_COLOURS = ((0.95, 0.45, 0.70), (0.40, 0.85, 0.95), (0.60, 0.75, 0.15), (0.55, 0.45, 0.40))

# Contact classes: (contype, conaffinity). Links of the arm touch nothing, which is what a planner would ensure.
_FIXED, _BLOCK, _FINGER = 'contype="1" conaffinity="6"', 'contype="2" conaffinity="7"', 'contype="4" conaffinity="3"'
_SEEN = 'contype="0" conaffinity="0"'


def _rgba(colour: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.3f}" for value in colour) + " 1"


def _gripper(kind: str) -> str:
    """Palm and two mirrored fingers, wide soft pads; the wrist camera looks at the fingertips from the palm."""
    colours = BODY_COLOURS[kind]
    if kind == "arm":
        palm = (
            f'<geom name="palm" type="box" pos="0 0 0.022" size="0.018 0.036 0.017" rgba="{_rgba(colours["palm"])}" {_SEEN}/>'
            f'<geom name="flange" type="cylinder" pos="0 0 0.002" size="0.024 0.006" rgba="{_rgba(colours["joint"])}" {_SEEN}/>'
        )
    else:
        palm = (
            f'<geom name="palm" type="ellipsoid" pos="0 0 0.016" size="0.030 0.046 0.026" rgba="{_rgba(colours["palm"])}" {_SEEN}/>'
            f'<geom name="wrist" type="capsule" fromto="0 0 -0.06 0 0 0.005" size="0.021" rgba="{_rgba(colours["palm"])}" {_SEEN}/>'
        )
    fingers = ""
    for name, side in (("left", 1), ("right", -1)):
        colour = _rgba(colours["finger"])
        if kind == "arm":
            look = (
                f'<geom type="box" pos="0 {side * 0.006} -0.028" size="0.009 0.006 0.034" rgba="{colour}" {_SEEN}/>'
            )
        else:
            look = (
                f'<geom type="capsule" fromto="0 {side * 0.009} -0.062 0 {side * 0.007} 0.002" size="0.0095" rgba="{colour}" {_SEEN}/>'
                f'<geom type="sphere" pos="0 {side * 0.012} 0.004" size="0.008" rgba="{_rgba(colours["nail"])}" {_SEEN}/>'
            )
        fingers += (
            f'<body name="{name}" pos="0 0 0.1" gravcomp="1">'
            f'<joint name="{name}" type="slide" axis="0 {side} 0" range="0 {FINGER_STROKE}" armature="0.02" damping="2"/>'
            f'<geom name="{name}_pad" type="box" pos="0 {side * 0.006} 0" size="0.011 0.006 0.012" mass="0.03" '
            f'rgba="{colour}" {_FINGER} friction="2 0.05 0.001" condim="4" solimp="0.95 0.99 0.001"/>'
            f"{look}</body>"
        )
    camera = '<camera name="wrist" pos="0.068 0 -0.004" xyaxes="0 -1 0 -0.90 0 -0.436" fovy="66"/>'
    return f'<inertial pos="0 0 0.03" mass="0.15" diaginertia="0.0002 0.0002 0.0002"/>{palm}{fingers}{camera}'


def _bowl(name: str, sides: int = 14) -> str:
    colour = _rgba(COLOURS[name])
    tilt, thickness = 0.30, 0.0025
    half = BOWL_HEIGHT / 2 / np.cos(tilt)
    middle = BOWL_RADIUS - half * np.sin(tilt)
    width = BOWL_RADIUS * np.tan(np.pi / sides) * 1.02
    walls = ""
    for k in range(sides):
        angle = 2 * np.pi * k / sides
        cz, sz, ct, st = np.cos(angle / 2), np.sin(angle / 2), np.cos(tilt / 2), np.sin(tilt / 2)
        quaternion = (cz * ct, -sz * st, cz * st, sz * ct)  # turn by angle about z, then lean outwards
        walls += (
            f'<geom type="box" pos="{middle * np.cos(angle):.5f} {middle * np.sin(angle):.5f} {BOWL_HEIGHT / 2:.5f}" '
            f'quat="{" ".join(f"{q:.6f}" for q in quaternion)}" '
            f'size="{thickness} {width:.5f} {half:.5f}" rgba="{colour}" {_FIXED}/>'
        )
    base = f'<geom type="cylinder" pos="0 0 0.002" size="{BOWL_RADIUS - 2 * half * np.sin(tilt):.5f} 0.002" rgba="{colour}" {_FIXED}/>'
    return f'<body name="{name}_bowl" mocap="true">{walls}{base}</body>'


def _block(name: str) -> str:
    h = BLOCK_HALF
    return (
        f'<body name="{name}_block"><freejoint name="{name}_block"/>'
        f'<geom name="{name}_block" type="box" size="{h} {h} {h}" mass="0.05" rgba="{_rgba(COLOURS[name])}" {_BLOCK} '
        f'friction="0.8 0.02 0.001" condim="4" solimp="0.95 0.99 0.001"/></body>'
    )


def _drawer() -> str:
    """A housing open at the front (+x) and a tray that slides out of it by a loop handle."""
    f, w = DRAWER_FRONT, DRAWER_HALF_WIDTH
    housing = _rgba(COLOURS["housing"])
    tray, handle = _rgba(COLOURS["tray"]), _rgba(COLOURS["handle"])

    def box(x: float, y: float, z: float, sx: float, sy: float, sz: float, colour: str, solid: str = _FIXED) -> str:
        return f'<geom type="box" pos="{x:.4f} {y:.4f} {z:.4f}" size="{sx:.4f} {sy:.4f} {sz:.4f}" rgba="{colour}" {solid}/>'

    outer = w + 0.006
    shell = (
        box(0, outer, 0.032, f, 0.004, 0.032, housing)
        + box(0, -outer, 0.032, f, 0.004, 0.032, housing)
        + box(-f, 0, 0.032, 0.004, outer, 0.032, housing)
        + box(0, 0, 0.062, f, outer + 0.004, 0.004, housing)
    )
    wall = 0.018  # half height of the tray's walls
    inside = f - 0.006
    front = f + 0.004
    grip = front + DRAWER_HANDLE
    sliding = (
        box(-0.002, 0, 0.004, inside, w - 0.003, 0.002, tray)
        + box(-0.002, w - 0.004, 0.004 + wall, inside, 0.003, wall, tray)
        + box(-0.002, 4e-3 - w, 0.004 + wall, inside, 0.003, wall, tray)
        + box(-inside, 0, 0.004 + wall, 0.003, w - 0.003, wall, tray)
        + box(front, 0, 0.028, 0.004, w + 0.004, 0.026, tray)
        + box(grip + 0.020, 0, 0.034, 0.005, 0.034, 0.006, handle)
        + box(front + 0.026, 0.031, 0.034, 0.024, 0.004, 0.006, handle)
        + box(front + 0.026, -0.031, 0.034, 0.024, 0.004, 0.006, handle)
    )
    return (
        f'<body name="drawer" mocap="true">{shell}<body name="tray" gravcomp="1">'
        f'<inertial pos="0 0 0.02" mass="0.25" diaginertia="0.001 0.001 0.001"/>'
        f'<joint name="drawer" type="slide" axis="1 0 0" range="0 {DRAWER_TRAVEL}" damping="4" frictionloss="0.6"/>'
        f"{sliding}</body></body>"
    )


def scene_xml(chain: Chain, distractors: int = 0, antialias: int = 0) -> str:
    """The whole MJCF. `antialias` is the number of samples a pixel (0: none, the fast default)."""
    kind = "hand" if chain.floating else "arm"
    arm = chain_xml(chain, _gripper(kind))
    if kind == "arm":
        arm = f'<geom type="cylinder" pos="{chain.base[0]} {chain.base[1]} 0.03" size="0.06 0.03" rgba="{_rgba(BODY_COLOURS["arm"]["palm"])}" {_SEEN}/>' + arm
    actuators = "".join(
        f'<position name="{joint.name}" joint="{joint.name}" kp="{joint.kp}" kv="{joint.kv}" '
        f'ctrlrange="{joint.limits[0]} {joint.limits[1]}"/>'
        for joint in chain.joints
    )
    movers = "".join(
        f'<body name="distractor{k}" mocap="true" pos="0 0 -1"><geom name="distractor{k}" '
        f'type="{("sphere", "box", "capsule", "ellipsoid")[k % 4]}" size="{("0.016", "0.014 0.014 0.014", "0.010 0.014", "0.020 0.012 0.012")[k % 4]}" '
        f'rgba="{_rgba(DISTRACTOR_COLOURS[k % 4])}" {_SEEN}/></body>'
        for k in range(distractors)
    )
    skin = BODY_COLOURS["arm"]
    right, up = _look_axes(FRONT_CAMERA, FRONT_TARGET)
    return f"""<mujoco model="tabletop">
  <compiler angle="radian"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10" iterations="30"/>
  <size memory="4M"/>
  <visual>
    <headlight ambient="0.42 0.42 0.42" diffuse="0.34 0.34 0.34" specular="0.05 0.05 0.05"/>
    <quality shadowsize="{2048 if antialias else 0}" offsamples="{antialias}"/>
    <global offwidth="640" offheight="640"/>
    <map znear="0.02" zfar="20"/>
  </visual>
  <default>
    <geom solref="0.01 1"/>
    <default class="link"><geom contype="0" conaffinity="0" group="2" rgba="{_rgba(skin["link"])}"/></default>
    <default class="joint"><geom contype="0" conaffinity="0" group="2" rgba="{_rgba(skin["joint"])}"/></default>
  </default>
  <worldbody>
    <light name="sun" pos="0.3 -0.4 1.2" dir="-0.25 0.35 -1" directional="true" diffuse="0.42 0.42 0.42" specular="0.08 0.08 0.08"/>
    <camera name="front" pos="{_join(FRONT_CAMERA)}" xyaxes="{_join(right)} {_join(up)}" fovy="{FRONT_FOVY}"/>
    <geom name="floor" type="plane" pos="0 0 -0.4" size="3 3 0.1" rgba="{_rgba(COLOURS["floor"])}" {_SEEN}/>
    <geom name="table" type="box" pos="-0.08 0 -0.02" size="0.34 0.32 0.02" rgba="{_rgba(COLOURS["table"])}" {_FIXED} friction="0.8 0.02 0.001"/>
    <body name="pad" mocap="true"><geom name="pad" type="cylinder" pos="0 0 0.0006" size="{PAD_RADIUS} 0.0006" rgba="{_rgba(COLOURS["pad"])}" {_SEEN}/></body>
    {"".join(_bowl(name) for name in BOWLS)}
    {_drawer()}
    {movers}
    {arm}
    {"".join(_block(name) for name in BLOCKS)}
  </worldbody>
  <tendon><fixed name="grip"><joint joint="left" coef="0.5"/><joint joint="right" coef="0.5"/></fixed></tendon>
  <equality><joint joint1="left" joint2="right" polycoef="0 1 0 0 0" solref="0.01 1"/></equality>
  <actuator>{actuators}
    <position name="grip" tendon="grip" kp="900" kv="45" ctrlrange="0 {FINGER_STROKE}" forcerange="-14 14"/>
  </actuator>
</mujoco>"""


@cache
def compile_scene(embodiment: str, distractors: int = 0, antialias: int = 0) -> mujoco.MjModel:
    """The compiled model; shared, so copy it (`copy.copy`) before writing into it."""
    return mujoco.MjModel.from_xml_string(scene_xml(load_chain(embodiment), distractors, antialias))


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


def _join(values: np.ndarray) -> str:
    return " ".join(f"{value:.6g}" for value in values)
