"""Initial states of LIBERO's tasks beyond the stored ones: drawn from the regions of the problem file.

A thing that stands on the table or the floor is drawn from its region, anew for every seed: uniformly
over the region or over what LIBERO's stored states cover of it, whichever is more (its own sampler mixes
up the two: in libero_object most things never move). *Wide* multiplies that about the region's middle.
A draw counts when everything is carried, seen by the front camera, within the arm's reach, clear of
everything else, still what the instruction calls it, and settles where it was put.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from lawm_policy.sim.libero_control import Arm
from lawm_policy.sim.libero_premise import BrokenPremise, Premise
from lawm_policy.sim.libero_shapes import Shapes, Thing, things_of

DRAWS, TRIES = 60, 40  # whole scenes before giving up, places for one thing before a new scene
CLEAR = 0.02  # metres between things, where regions are enlarged: room for a finger
TOUCH = 0.004  # where they are as they are, or put things side by side
BARELY = 0.0005  # where they put things into each other
GAP = 0.002  # metres above what carries it
REACH = (0.35, 0.80)  # metres from the arm's base, seen from above
SIGHT = 0.92  # of half the front image
ROBOT_NOISE = 0.02  # radians: robosuite's own spread of the arm's start
SETTLE_S = 0.6  # seconds of physics, the arm held
STRAY, REST = 0.02, 0.15  # metres that a thing may slide meanwhile, metres a second it may have after it
ORDER = 0.03  # metres that tell left from right
SHIFTS = {1: (0.02, 0.04, 15.0), 2: (0.04, 0.07, 40.0), 3: (0.07, 0.11, 90.0)}  # metres from, to; degrees
ORDER_WORDS = frozenset({"left", "right", "front", "back", "middle"})
EXTRA = "distractor_"  # what the names of distractor objects begin with


@dataclass(frozen=True)
class Start:
    """A state to begin from, and how far outside their regions it deliberately puts things (metres)."""

    state_S: np.ndarray
    number: int
    slack: dict[str, float]


class Placer:
    """Puts things down in one task's compiled model. `blank` brings the world back to its scene."""

    def __init__(
        self,
        task: str,
        instruction: str,
        sim: Any,
        arm: Arm,
        premise: Premise,
        stored_NS: np.ndarray,
        blank: Callable[[], None],
    ) -> None:
        self.sim, self.premise, self.arm, self._blank = sim, premise, arm, blank
        self.model: mujoco.MjModel = sim.sim.model._model
        self.data: mujoco.MjData = sim.sim.data._data
        self._task = zlib.crc32(task.encode())
        self._words = set(instruction.split())
        self._blank()
        self.shapes = Shapes(self.model, self.data, sim)
        self.things = things_of(sim, self.model, stored_NS, EXTRA)
        self._gap = TOUCH  # this and the next two: of the scene being drawn
        self._slack: dict[str, float] = {}
        self._seen: list[Thing] = []
        self.draws: Counter[str] = Counter()  # what became of scenes and of places: for those who measure
        self._tight = self._nominal()

    # ------------------------------------------------------------------ what people ask for

    def fresh(self, seed: int, factor: float = 1.0) -> Start:
        """A state drawn from the regions, enlarged by `factor`."""

        def propose(thing: Thing, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            wide = 1.0 if thing.narrow or thing.refs else factor
            quat = thing.quats_N4[rng.integers(len(thing.quats_N4))]
            return thing.centre_2 + self._drift(thing) + wide * thing.half_2 * rng.uniform(-1, 1, 2), quat

        self._gap = TOUCH if factor == 1.0 else CLEAR
        return self._draw(seed, 1, None, propose, 0)

    def shifted(self, start: Start, seed: int, grade: int) -> Start:
        """The same state with everything on the table pushed and turned."""
        base_S, (least, most, turn) = start.state_S, SHIFTS[grade]

        def propose(thing: Thing, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            place_7 = base_S[1 + thing.at : 8 + thing.at]
            angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(least, most)
            push = length * np.array([np.cos(angle), np.sin(angle)])
            yaw = np.radians(rng.uniform(-turn, turn))
            if thing.narrow:
                push, yaw = np.zeros(2), 0.0
            if thing.refs:
                push = self._drift(thing, base_S)
            quat = np.zeros(4)
            mujoco.mju_mulQuat(quat, np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]), place_7[3:])
            return place_7[:2] + push, quat

        self._gap = CLEAR
        return self._draw(seed, 2, start, propose, 0)

    def beside(self, start: Start, seed: int, extras: int) -> Start:
        """The same state, and some of the distractor objects put where they are in nobody's way."""
        return self._draw(seed, 3, start, None, extras)

    # ------------------------------------------------------------------ a scene

    def _draw(self, seed: int, code: int, start: Start | None, propose: Any, extras: int) -> Start:
        rng = np.random.default_rng([self._task, seed, code])
        self._blank()
        blank_Q = self.data.qpos.copy()
        why = "nothing"
        for _ in range(DRAWS):
            mujoco.mj_resetData(self.model, self.data)
            self.data.qpos[:] = blank_Q if start is None else start.state_S[1 : 1 + self.model.nq]
            if start is None:
                self._draw_joints(rng)
            found = self._scene(rng, start, propose, extras) or self._settled(start, propose)
            self.draws[found or "accepted"] += 1
            if not found:
                state_S = np.concatenate([[0.0], self.data.qpos, np.zeros(self.model.nv)])
                return Start(state_S, seed, self._slack)
            why = found
        raise BrokenPremise(f"no state of seed {seed} in {DRAWS} draws: at last, {why}")

    def _scene(self, rng: np.random.Generator, start: Start | None, propose: Any, extras: int) -> str | None:
        """Puts everything down, first what others refer to. Says what failed."""
        own = [thing for thing in self.things if not thing.extra]
        others = [thing for thing in self.things if thing.extra]
        if propose is not None:
            moved = [thing for thing in own if thing.kind == "table"]
            moved.sort(key=lambda thing: len(thing.refs))
            upon = ("object", "site") if start is None else ("object",)
            onto = [thing for thing in own if thing.kind in upon]
            for k, thing in enumerate((*moved, *onto, *others)):
                self.shapes.park(thing, k)
            for thing in moved:
                if not self._find_place(thing, lambda t=thing: propose(t, rng), self._fits):
                    return f"no place for {thing.name}"
            for thing in onto:
                if not self._put_onto(thing, start, rng):
                    return f"no place for {thing.name}"
            if found := self._unlike_words():
                return found
        chosen = set(rng.permutation(len(others))[:extras].tolist())
        for k, thing in enumerate(others):
            self.shapes.park(thing, k)
        self._seen = [thing for thing in own if others and self.shapes.sees(thing)]
        for thing in (thing for k, thing in enumerate(others) if k in chosen):
            if not self._find_place(thing, lambda t=thing: self._anywhere(t, rng), self._out_of_the_way):
                return f"no place for {thing.name}"
        self._slack = {} if start is None else dict(start.slack)
        mujoco.mj_forward(self.model, self.data)
        for thing in others if propose is None else self.things:
            if thing.kind == "table":
                self._slack[thing.name] = self.premise.outside(thing.name, thing.where)
        return None

    def _find_place(self, thing: Thing, propose: Any, fits: Callable[[Thing], bool]) -> bool:
        for _ in range(TRIES):
            place_2, quat = propose()
            self.shapes.put_down(thing, place_2, quat, GAP)
            fine = fits(thing)
            self.draws["placed" if fine else "not placed"] += 1
            if fine:
                return True
        return False

    def _put_onto(self, thing: Thing, start: Start | None, rng: np.random.Generator) -> bool:
        """On another thing, or in or on a part of a fixture: let down from above until it touches."""
        quat = thing.quats_N4[rng.integers(len(thing.quats_N4))]
        if thing.kind == "object":
            under = next(t for t in self.things if t.name == thing.where)
            place_2 = self.data.qpos[under.at : under.at + 2].copy()
            if start is not None:  # where it was on what carries it
                state_Q = start.state_S[1:]
                place_2 += state_Q[thing.at : thing.at + 2] - state_Q[under.at : under.at + 2]
                quat = state_Q[thing.at + 3 : thing.at + 7]
            height = self.shapes.box(under)[1][2] + self.shapes.depth(thing, quat) + 0.02
        else:
            place_2 = thing.centre_2 + thing.half_2 * rng.uniform(-1, 1, 2)
            height = thing.height
        return self.shapes.let_down(thing, place_2, height, quat)

    def _draw_joints(self, rng: np.random.Generator) -> None:
        """The arm as robosuite spreads it, and drawers, doors and knobs as :init says."""
        qpos = self.data.qpos
        qpos[self.arm.qpos_at] = self.arm.robot.init_qpos + ROBOT_NOISE * rng.standard_normal(7)
        for said in self.sim.parsed_problem["initial_state"]:
            if len(said) == 2:
                spans = self.sim.get_object(said[1]).object_properties["articulation"]
                low, high = spans[f"default_{said[0]}_ranges"]
                self.sim.object_states_dict[said[1]].set_joint(rng.uniform(low, high))

    def _settled(self, start: Start | None, propose: Any) -> str | None:
        """Lets physics have its way, the arm held. What was put down stays where it comes to rest."""
        model, data, arm = self.model, self.data, self.arm
        before_Q = data.qpos.copy()
        self.premise.remember(self._slack)
        held = np.concatenate([arm.qpos_at, arm.fingers_at])
        held_v = np.concatenate([arm.qvel_at, arm.fingers_v_at])
        for _ in range(round(SETTLE_S / model.opt.timestep)):
            mujoco.mj_step(model, data)
            data.qpos[held], data.qvel[held_v] = before_Q[held], 0.0
        mujoco.mj_forward(model, data)
        if found := self.premise.broken():
            return found
        here = [t for t in self.things if not self.shapes.parked(t)]
        placed = [t for t in here if start is None or t.extra or (propose is not None and t.kind != "site")]
        for thing in placed:
            slid = np.linalg.norm((data.qpos - before_Q)[thing.at : thing.at + 2])
            if slid > STRAY or np.linalg.norm(data.qvel[thing.v_at : thing.v_at + 3]) > REST:
                return f"{thing.name} does not rest"
        if start is not None:  # the rest is as the given state has it
            kept_Q = start.state_S[1 : 1 + model.nq].copy()
            for thing in (*placed, *(t for t in self.things if self.shapes.parked(t))):
                kept_Q[thing.at : thing.at + 7] = data.qpos[thing.at : thing.at + 7]
            data.qpos[:] = kept_Q
        return None

    # ------------------------------------------------------------------ whether a place will do

    def _fits(self, thing: Thing) -> bool:
        return self._carried(thing) and self._in_view(thing) and self._clear(thing)

    def _carried(self, thing: Thing) -> bool:
        low, high = self.shapes.box(thing)
        floor = self.shapes.support(self.data.qpos[thing.at : thing.at + 2])
        corners = [(x, y) for x in (low[0], high[0]) for y in (low[1], high[1])]
        return all(abs(self.shapes.support(np.array(corner)) - floor) < 0.003 for corner in corners)

    def _in_view(self, thing: Thing) -> bool:
        """Within reach and sight, or no farther than its region lies anyway."""
        place_3 = self.data.qpos[thing.at : thing.at + 3]
        away, off = self.shapes.from_base(place_3), self.shapes.from_sight(place_3)
        if thing.extra:
            return REACH[0] < away < REACH[1] and off < SIGHT and self.shapes.sees(thing)
        middle_3 = np.r_[thing.centre_2, place_3[2]]
        own, own_off = self.shapes.from_base(middle_3), self.shapes.from_sight(middle_3)
        near, far = min(REACH[0], own - 0.02), max(REACH[1], own + 0.02)
        return near < away < far and off < max(SIGHT, own_off + 0.05)

    def _clear(self, thing: Thing) -> bool:
        """Of everything but what carries it, also of drawers and doors once they are open."""
        for opened in (False, True):
            for other, gap in self.shapes.neighbours(thing, self._gap, opened).items():
                nominal = self._tight.get((thing.root, other, opened), np.inf)
                if gap < (self._gap if nominal > CLEAR else min(TOUCH, max(nominal, BARELY))):
                    return False
        return True

    def _nominal(self) -> dict[tuple[int, int, bool], float]:
        """What lies within CLEAR of each other when everything stands in the middle of its region."""
        table = [thing for thing in self.things if thing.kind == "table" and not thing.extra]
        for k, thing in enumerate(self.things):
            self.shapes.park(thing, k)
        for thing in table:
            self.shapes.put_down(thing, thing.centre_2, thing.quats_N4[0], GAP)
        found = {}
        for thing in table:
            for opened in (False, True):
                for other, gap in self.shapes.neighbours(thing, CLEAR, opened).items():
                    found[thing.root, other, opened] = gap
        return found

    def _drift(self, thing: Thing, base_S: np.ndarray | None = None) -> np.ndarray:
        """(2,) how far what its region's name refers to has moved: "next to the plate" stays true."""
        moves = [
            self.data.qpos[ref.at : ref.at + 2]
            - (ref.centre_2 if base_S is None else base_S[1 + ref.at : 3 + ref.at])
            for ref in self.things
            if ref.name in thing.refs
        ]
        return np.mean(moves, axis=0) if moves else np.zeros(2)

    def _unlike_words(self) -> str | None:
        """Whether left, right, front, back, middle and next to still mean the same things."""
        table = [thing for thing in self.things if thing.kind == "table" and not thing.extra]
        where = {thing.name: self.data.qpos[thing.at : thing.at + 2] for thing in table}
        for k, a in enumerate(table):
            for b in table[k + 1 :]:
                if a.kin != b.kin:
                    continue
                if self._words & ORDER_WORDS:
                    told, now = a.centre_2 - b.centre_2, where[a.name] - where[b.name]
                    if np.any((np.abs(told) > ORDER) & (np.sign(told) * now < ORDER)):
                        return f"{a.name} and {b.name} change sides"
                for one, other in ((a, b), (b, a)):
                    if one.name in self.sim.obj_of_interest and (one.refs or "center" in one.where):
                        named = [where[ref] for ref in one.refs] or [one.centre_2]
                        middle_2 = np.mean(named, axis=0)
                        mine = np.linalg.norm(where[one.name] - middle_2)
                        if np.linalg.norm(where[other.name] - middle_2) < mine + ORDER:
                            return f"{other.name} stands where {one.name} should"
        return None

    # ------------------------------------------------------------------ distractors

    def _anywhere(self, thing: Thing, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        base_2 = self.shapes.base_2
        away, angle = REACH[1] * np.sqrt(rng.uniform()), rng.uniform(-np.pi / 2, np.pi / 2)
        quat = thing.quats_N4[rng.integers(len(thing.quats_N4))]
        return base_2 + away * np.array([np.cos(angle), np.sin(angle)]), quat

    def _out_of_the_way(self, thing: Thing) -> bool:
        """Off the lines between what the task is about, off its goal, and clear of the rest."""
        place_2 = self.data.qpos[thing.at : thing.at + 2]
        level = self.shapes.support(place_2)
        if abs(level - self.shapes.level) > 0.003 or not (self._carried(thing) and self._in_view(thing)):
            return False
        matter = self.shapes.places_of_interest()
        lines = [(a, b) for k, a in enumerate(matter) for b in matter[k:]]
        if any(_from_line(place_2, a, b) < 0.11 for a, b in lines):
            return False
        if not all(self.shapes.sees(other) for other in self._seen):
            return False
        return all(
            gap >= 2 * CLEAR
            for opened in (False, True)
            for gap in self.shapes.neighbours(thing, 2 * CLEAR, opened).values()
        )


def _from_line(point_2: np.ndarray, a_2: np.ndarray, b_2: np.ndarray) -> float:
    along = b_2 - a_2
    length = float(along @ along)
    t = 0.0 if length == 0 else float(np.clip((point_2 - a_2) @ along / length, 0, 1))
    return float(np.linalg.norm(point_2 - a_2 - t * along))
