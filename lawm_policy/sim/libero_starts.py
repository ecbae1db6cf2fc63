"""Which state an episode of LIBERO begins from: stored, fresh or wide, and perturbed where asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from lawm_policy.sim.libero_distractors import COUNTS
from lawm_policy.sim.libero_perturb import displaced_arm, seeded
from lawm_policy.sim.libero_protocol import LiberoProtocol
from lawm_policy.sim.libero_states import Placer, Start
from lawm_policy.types import UserError

KEPT = 256  # drawn states, half a millisecond to look up and a fifth of a second to draw
GIVEN = -2  # the number of a state that was given as numbers


class Starts:
    """Of one task under one protocol. `placer` is made when the first state has to be drawn."""

    def __init__(
        self,
        task: str,
        rules: LiberoProtocol,
        things: Iterable[str],
        stored_NS: np.ndarray,
        placer: Callable[[], Placer],
    ) -> None:
        self._task, self._rules, self._stored_NS, self._make = task, rules, stored_NS, placer
        self._made: Placer | None = None
        moved = rules.factor is not None or {"layout", "distractors"} & set(rules.perturbations)
        self._free = dict.fromkeys(things if moved else (), float("inf"))
        self._drawn: OrderedDict[int, Start] = OrderedDict()

    @property
    def placer(self) -> Placer:
        """Making and using it moves the world: between episodes only."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def find(self, wanted: Any) -> Start:
        """By number, or as numbers, which stay as they are."""
        if isinstance(wanted, np.ndarray) and wanted.ndim == 1:
            expected = self._stored_NS.shape[1]
            if wanted.shape != (expected,):
                raise UserError(
                    f"expected an initial state of {expected} numbers for {self._task}, "
                    f"found {wanted.shape[0]}: take it from the same task"
                )
            return Start(wanted, GIVEN, self._free)
        number = int(wanted)
        if number in self._drawn:
            self._drawn.move_to_end(number)
            return self._drawn[number]
        factor, grades = self._rules.factor, self._rules.perturbations
        if factor is not None:
            if number < 0:
                raise UserError(f"expected a seed of at least 0 as initial state, found {number}")
            start = self.placer.fresh(number, factor)
        elif not 0 <= number < len(self._stored_NS):
            raise UserError(
                f"expected an initial state in 0..{len(self._stored_NS) - 1} of {self._task}, found {number}"
            )
        else:
            start = Start(self._stored_NS[number], number, {})
        if grade := grades.get("layout"):
            start = self.placer.shifted(start, number, grade)
        if "distractors" in grades:
            start = self.placer.beside(start, number, COUNTS[grades["distractors"]])
        if grade := grades.get("robot"):
            rng = seeded(self._task, number, "robot")
            start = replace(start, state_S=displaced_arm(self.placer.arm, start.state_S, grade, rng))
        self._drawn[number] = start
        if len(self._drawn) > KEPT:
            self._drawn.popitem(last=False)
        return start
