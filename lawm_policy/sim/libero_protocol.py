"""How LIBERO is played: four published ways, each a frozen record that goes into every result.

    lawm eval RUN --suite libero_object                  # lawm's way
    lawm eval RUN --suite libero_goal@openvla            # another's
    lawm eval RUN --suite libero_10@lawm+lite            # with lighter images: another protocol
    lawm eval RUN --suite libero_goal@lawm+wide:4+lite   # from states of our own: fresh, or wide:FACTOR
    lawm eval RUN --suite libero_goal@lawm+camera:2      # perturbed on an axis, in grades 1 to 3

A number means something beside its protocol only: step limits, image flip, settling and the version of
MuJoCo each move it by points. `lawm compare` refuses to compare across protocols.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from lawm_policy.config import nearest
from lawm_policy.types import UserError

TASK_COUNTS = {
    "libero_spatial": 10,
    "libero_object": 10,
    "libero_goal": 10,
    "libero_10": 10,
    "libero_90": 90,
}
STORED_STATES = 50  # a task
# Our cameras are called as in every other store and policy of this project, so that videos of LIBERO, of
# the tabletop and of a real arm train one model without renaming.
CAMERAS = MappingProxyType({"front": "agentview", "wrist": "robot0_eye_in_hand"})
VISUALS = ("exact", "lite")
FLIPS = ("none", "rotate_180")
INITIAL = ("stored", "fresh", "wide")
WIDEST = 10.0
AXES = ("camera", "light", "texture", "robot", "layout", "paraphrase", "distractors")
GRADES = (1, 2, 3)


@dataclass(frozen=True)
class LiberoProtocol:
    """Everything that decides what a policy sees and how long it may try."""

    name: str
    limits: Mapping[str, int]  # suite -> control steps, settling not counted
    settle_steps: int
    settle_gripper: float  # commanded while settling: 0 leaves the fingers, -1 opens them
    resolution: int  # rendered pixels; a policy that wants fewer gets them by averaging
    flip: str  # LIBERO's images come upside down
    controller: str = "OSC_POSE"
    initial: str = "stored"  # or "fresh", "wide:4"
    perturb: str = ""  # or "camera:2", or several as "camera:2+light:1"
    scene_seed: int = 0  # numpy's, before each reset: fixtures stand where it says, within a centimetre
    visuals: str = "exact"
    cameras: Mapping[str, str] = field(default_factory=lambda: dict(CAMERAS))

    def __post_init__(self) -> None:
        if self.visuals not in VISUALS or self.flip not in FLIPS or set(self.limits) != set(TASK_COUNTS):
            raise UserError(
                f"expected visuals among {', '.join(VISUALS)}, a flip among {', '.join(FLIPS)} and a limit a "
                f"suite, found {self.visuals!r}, {self.flip!r}, {dict(self.limits)}: correct the protocol"
            )
        if self.initial.startswith("wide"):
            object.__setattr__(self, "initial", f"wide:{self.factor:g}")
        told = "+".join(f"{axis}:{grade}" for axis, grade in sorted(self.perturbations.items()))
        object.__setattr__(self, "perturb", told)
        _ = self.factor
        object.__setattr__(self, "limits", MappingProxyType(dict(self.limits)))
        object.__setattr__(self, "cameras", MappingProxyType(dict(self.cameras)))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy does not go into another process
        return partial(LiberoProtocol, **self.to_json()), ()

    @property
    def factor(self) -> float | None:
        """By how much regions are enlarged; None where states are the stored ones."""
        word, _, number = self.initial.partition(":")
        if self.initial in ("stored", "fresh"):
            return None if word == "stored" else 1.0
        try:
            factor = float(number)
        except ValueError:
            factor = 0.0
        if word != "wide" or not 1.0 < factor <= WIDEST:
            hint = nearest(word, list(INITIAL)) if word != "wide" else "correct the factor"
            raise UserError(
                f"expected initial states as stored, fresh or wide:2 (above 1, at most {WIDEST:g}), found "
                f"{self.initial!r}: {hint}"
            )
        return factor

    @property
    def perturbations(self) -> dict[str, int]:
        """Axis -> grade."""
        found: dict[str, int] = {}
        for word in filter(None, self.perturb.split("+")):
            axis, _, grade = word.partition(":")
            if axis not in AXES or axis in found:
                raise UserError(
                    f"expected an axis, once, found {word!r}: {nearest(axis, list(AXES))}"
                    if axis not in found
                    else f"expected each axis once, found {axis} twice: leave one out"
                )
            if grade not in map(str, GRADES):
                raise UserError(
                    f"expected a grade among 1, 2, 3 after {axis}:, found {grade!r}: write {axis}:2"
                )
            found[axis] = int(grade)
        return found

    def to_json(self) -> dict[str, Any]:
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in self._values()}

    def _values(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__dataclass_fields__]


def _limits(spatial: int, object_: int, goal: int, ten: int, ninety: int) -> dict[str, int]:
    return dict(zip(TASK_COUNTS, (spatial, object_, goal, ten, ninety), strict=True))


PRESETS = {
    # LIBERO's authors: lifelong/metric.py and configs/eval
    "libero": LiberoProtocol("libero", _limits(600, 600, 600, 600, 600), 5, 0.0, 128, "none"),
    # LAWM's code: LIBERO's with 300 steps for every suite
    "lawm": LiberoProtocol("lawm", _limits(300, 300, 300, 300, 300), 5, 0.0, 128, "none"),
    # OpenVLA and most vision-language-action models after it
    "openvla": LiberoProtocol("openvla", _limits(220, 280, 300, 520, 400), 10, -1.0, 256, "rotate_180"),
    # lerobot-eval
    "lerobot": LiberoProtocol("lerobot", _limits(280, 280, 300, 520, 400), 10, -1.0, 256, "rotate_180"),
}


def protocol_named(words: str) -> LiberoProtocol:
    """ "openvla", or with words for what differs from the preset: "openvla+lite+wide:4+camera:2"."""
    name, *others = words.split("+")
    if name not in PRESETS:
        raise UserError(f"expected a LIBERO protocol, found {name!r}: {nearest(name, list(PRESETS))}")
    chosen: dict[str, Any] = {}
    for word in others:
        kind = word.partition(":")[0]
        if kind in AXES:
            field_, word = "perturb", "+".join(filter(None, (chosen.pop("perturb", ""), word)))
        elif word in VISUALS or kind in INITIAL:
            field_ = "visuals" if word in VISUALS else "initial"
        else:
            known = nearest(kind, [*VISUALS, *INITIAL, *AXES])
            raise UserError(f"expected a word on how to play after {name}+, found {word!r}: {known}")
        if field_ in chosen:
            raise UserError(f"expected one {field_}, found {chosen[field_]} and {word}: leave one out")
        chosen[field_] = word
    return replace(PRESETS[name], **chosen) if chosen else PRESETS[name]


def task_names(suite: str) -> tuple[str, ...]:
    """ "libero_object-0" to "libero_object-9", in the benchmark's order."""
    if suite not in TASK_COUNTS:
        raise UserError(f"expected a LIBERO suite, found {suite!r}: {nearest(suite, list(TASK_COUNTS))}")
    return tuple(f"{suite}-{index}" for index in range(TASK_COUNTS[suite]))


def split_task(task: str) -> tuple[str, int]:
    """ "libero_object-3" -> suite and index."""
    suite, _, index = task.rpartition("-")
    if suite not in TASK_COUNTS:
        suites = ", ".join(TASK_COUNTS)
        raise UserError(f"expected a task as libero_object-3, of {suites}, found {task!r}: name one of these")
    if task not in task_names(suite):
        raise UserError(
            f"expected a task as {suite}-0 to {suite}-{TASK_COUNTS[suite] - 1}, found {task!r}: "
            "name one of these"
        )
    return suite, int(index)


def choose(suite: str, words: str) -> tuple[str, ...]:
    """What --tasks means: all, numbers, ranges of numbers, or names, separated by commas."""
    names = task_names(suite)
    if words == "all":
        return names
    chosen: list[str] = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        first, dash, last = word.removeprefix(f"{suite}-").partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(
                f"expected tasks of {suite} as 0,3 or 0-4 or all, found {word!r}: correct --tasks"
            )
        wanted = range(int(first), int(last if dash else first) + 1)
        if not wanted or wanted[-1] >= len(names):
            raise UserError(
                f"expected tasks of {suite} in 0-{len(names) - 1}, found {word!r}: correct --tasks"
            )
        chosen += [names[i] for i in wanted if names[i] not in chosen]
    if not chosen:
        raise UserError(f"expected tasks of {suite}, found {words!r}: name some, or all")
    return tuple(chosen)
