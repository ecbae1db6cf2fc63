"""Objects that have nothing to do with the task, in a variant of LIBERO's problem.

The variant is LIBERO's own problem file with a few more of its objects, so that everything else (fixtures,
goals, the order of the state) stays as it is. A task's five are always the same ones; a seed says which of
them are on the table and where, the others wait far behind the robot.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import mujoco
import numpy as np

from lawm_policy.sim.libero_states import EXTRA

POOL = (
    "alphabet_soup",
    "bbq_sauce",
    "butter",
    "chocolate_pudding",
    "cookies",
    "cream_cheese",
    "ketchup",
    "macaroni_and_cheese",
    "milk",
    "moka_pot",
    "orange_juice",
    "popcorn",
    "porcelain_mug",
    "red_coffee_mug",
    "salad_dressing",
    "tomato_sauce",
)
COUNTS = {1: 1, 2: 3, 3: 5}  # grade -> objects
PLAIN = {"and", "the", "a", "it", "in", "on", "of", "box"}


def choose_distractors(task: str, instruction: str, present: Iterable[str]) -> tuple[str, ...]:
    """Categories that no word of the instruction and no object of the task can be mistaken for."""
    taken = set(instruction.split()) - PLAIN
    for category in present:
        taken |= set(category.split("_")) - PLAIN
    free = [category for category in POOL if not (set(category.split("_")) - PLAIN) & taken]
    rng = np.random.default_rng(zlib.crc32(task.encode()))
    return tuple(free[k] for k in rng.permutation(len(free))[: COUNTS[3]])


def with_distractors(problem: str, table: str, categories: Iterable[str]) -> str:
    """The text of a problem file with more objects on its table."""
    names = [(f"{EXTRA}{k}", category) for k, category in enumerate(categories, 1)]
    region = f"({EXTRA}region (:target {table}) (:ranges ((-0.4 -0.4 0.4 0.4))))"
    for section, more in (
        ("regions", region),
        ("objects", " ".join(f"{name} - {category}" for name, category in names)),
        ("init", " ".join(f"(On {name} {table}_{EXTRA}region)" for name, _ in names)),
    ):
        problem = _append(problem, section, more)
    return problem


def _append(text: str, section: str, more: str) -> str:
    """At the end of "(:section ...)"."""
    found = re.search(rf"\(:{section}\b", text)
    assert found, section
    depth = 0
    for at in range(found.start(), len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return f"{text[:at]} {more} {text[at:]}"
    raise AssertionError(f"{section} does not end")


def with_room(stored_NS: np.ndarray, model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """Stored states for the variant's model: its distractors as `qpos` has them, at rest."""
    own = [model.joint(joint) for joint in range(model.njnt) if not model.joint(joint).name.startswith(EXTRA)]
    sizes = {mujoco.mjtJoint.mjJNT_FREE: (7, 6), mujoco.mjtJoint.mjJNT_BALL: (4, 3)}
    at_Q: list[int] = []
    at_V: list[int] = []
    for joint in own:
        n_q, n_v = sizes.get(mujoco.mjtJoint(int(joint.type[0])), (1, 1))
        at_Q += range(joint.qposadr[0], joint.qposadr[0] + n_q)
        at_V += range(joint.dofadr[0], joint.dofadr[0] + n_v)
    assert stored_NS.shape[1] == 1 + len(at_Q) + len(at_V)
    whole_NS = np.zeros((len(stored_NS), 1 + model.nq + model.nv))
    whole_NS[:, 0] = stored_NS[:, 0]
    whole_NS[:, 1 : 1 + model.nq] = qpos
    whole_NS[:, 1 + np.array(at_Q)] = stored_NS[:, 1 : 1 + len(at_Q)]
    whole_NS[:, 1 + model.nq + np.array(at_V)] = stored_NS[:, 1 + len(at_Q) :]
    return whole_NS
