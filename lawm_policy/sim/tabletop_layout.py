"""What the seed decides about a scene: where things lie, how they look, how the arm starts."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from lawm_policy.sim.tabletop_scene import (
    BLOCKS,
    BOWLS,
    COLOURS,
    FRONT_CAMERA,
    FRONT_TARGET,
    PAD_RADIUS,
)

# Centres of things lie in this rectangle, outside the drawer's corner.
AREA = np.array([[-0.125, 0.13], [-0.195, 0.195]])
DRAWER_PLACE = np.array([-0.235, 0.185])
KEEP_OUT = np.array([0.045, 0.075])  # x below and y above: where the drawer and the gripper at its handle go
NAMES = (*(f"{name}_block" for name in BLOCKS), *(f"{name}_bowl" for name in BOWLS), "pad")
_RADII = np.array([0.046] * len(BLOCKS) + [0.056] * len(BOWLS) + [PAD_RADIUS])
PUSH_BEHIND = 0.055  # the gripper starts a push this far behind the block's centre


@dataclass(frozen=True)
class Layout:
    """One scene. Distances in metres, angles in radians."""

    places: dict[str, np.ndarray]  # (2,) of each of NAMES, and of "drawer"
    yaws: dict[str, float]  # of the blocks
    drawer: float  # how far it is open
    start_pose: np.ndarray  # (4,) of the gripper
    colours: dict[str, np.ndarray]  # (3,)
    camera_position: np.ndarray
    camera_target: np.ndarray
    light: float  # multiplies the light's strength
    light_direction: np.ndarray
    distractors: np.ndarray  # (N, 6): place x y, amplitude x y, frequency in Hz, phase


def sample_layout(rng: np.random.Generator, distractors: int = 0) -> Layout:
    """Everything is drawn from `rng` in a fixed order."""
    places_n2 = _sample_places(rng)
    places = dict(zip(NAMES, places_n2, strict=True))
    places["drawer"] = DRAWER_PLACE + rng.uniform(-0.008, 0.008, 2)
    yaws = {f"{name}_block": float(rng.uniform(-0.3, 0.3)) for name in BLOCKS}
    drawer = float(rng.uniform(0.060, 0.070))
    start_pose = np.array([-0.03, 0.0, 0.17, 0.0]) + rng.uniform(-1, 1, 4) * [0.04, 0.06, 0.03, 0.25]
    return Layout(
        places=places,
        yaws=yaws,
        drawer=drawer,
        start_pose=start_pose,
        colours={name: _jitter(np.array(rgb), rng) for name, rgb in COLOURS.items()},
        camera_position=FRONT_CAMERA + rng.uniform(-0.008, 0.008, 3),
        camera_target=FRONT_TARGET + rng.uniform(-0.004, 0.004, 3),
        light=float(rng.uniform(0.85, 1.15)),
        light_direction=np.array([-0.25, 0.35, -1.0]) + rng.uniform(-0.25, 0.25, 3) * [1, 1, 0],
        distractors=_sample_distractors(rng, distractors),
    )


def distractor_places(distractors_N6: np.ndarray, seconds: float) -> np.ndarray:
    """(N, 3) ellipses along the table's edges, a pure function of time."""
    x, y, ax, ay, hz, phase = distractors_N6.T
    angle = 2 * np.pi * hz * seconds + phase
    return np.stack([x + ax * np.sin(angle), y + ay * np.cos(angle), np.full_like(x, 0.018)], axis=1)


def _sample_places(rng: np.random.Generator, tries: int = 512, rounds: int = 2000) -> np.ndarray:
    """(len(NAMES), 2) with room for the gripper between things and a clear path from block to pad."""
    for _ in range(rounds):
        batch = rng.uniform(AREA[:, 0], AREA[:, 1], (tries, len(NAMES), 2))
        good = np.flatnonzero(_admissible(batch))
        if len(good):
            return batch[good[0]]
    raise AssertionError("no admissible layout: the constraints are too tight")


def _admissible(places_BN2: np.ndarray) -> np.ndarray:
    n = len(NAMES)
    x, y = places_BN2[..., 0], places_BN2[..., 1]
    fine = ~((x < KEEP_OUT[0]) & (y > KEEP_OUT[1])).any(axis=1)
    i, j = np.triu_indices(n, 1)
    gap = np.linalg.norm(places_BN2[:, i] - places_BN2[:, j], axis=-1) - (_RADII[i] + _RADII[j])
    fine &= (gap > 0).all(axis=1)
    kept = np.flatnonzero(fine)
    for index in range(len(BLOCKS)):
        if not len(kept):
            break
        ok = _push_is_clear(places_BN2[kept], index)
        fine[kept[~ok]] = False
        kept = kept[ok]
    return fine


def _push_is_clear(places_BN2: np.ndarray, block: int) -> np.ndarray:
    """Whether the gripper can go behind the block and push it straight to the pad."""
    pad = places_BN2[:, -1]
    path = pad - places_BN2[:, block]
    length = np.linalg.norm(path, axis=1, keepdims=True)
    direction = path / length
    behind = places_BN2[:, block] - PUSH_BEHIND * direction
    clear = (np.abs(behind[:, 1]) < 0.24) & (behind[:, 0] > -0.17) & (behind[:, 0] < 0.185)
    clear &= ~((behind[:, 0] < KEEP_OUT[0] + 0.01) & (behind[:, 1] > KEEP_OUT[1] + 0.015))
    total = length[:, 0] + PUSH_BEHIND
    for other in range(len(NAMES) - 1):
        if other == block:
            continue
        offset = places_BN2[:, other] - behind
        along = np.clip(np.einsum("bi,bi->b", offset, direction), 0, total)
        distance = np.linalg.norm(offset - along[:, None] * direction, axis=1)
        clear &= distance > (0.028 if other < len(BLOCKS) else 0.048) + 0.036
    return clear


def _sample_distractors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Along the back edge or the sides, where the gripper never goes."""
    rows = np.zeros((count, 6))
    for row in rows:
        if rng.random() < 0.5:
            row[:4] = [rng.uniform(-0.36, -0.31), rng.uniform(-0.20, 0.05), 0.015, rng.uniform(0.05, 0.12)]
        else:
            row[:4] = [
                rng.uniform(-0.15, 0.1),
                rng.choice([-1, 1]) * rng.uniform(0.275, 0.295),
                rng.uniform(0.05, 0.12),
                0.012,
            ]
        row[4:] = [rng.uniform(0.1, 0.35), rng.uniform(0, 2 * np.pi)]
    return rows


def _jitter(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    shift = rng.uniform(-1, 1, 3) * [0.012, 0.06, 0.06]
    return np.array(
        colorsys.hsv_to_rgb(
            (hue + shift[0]) % 1, np.clip(saturation + shift[1], 0, 1), np.clip(value + shift[2], 0, 1)
        )
    )
