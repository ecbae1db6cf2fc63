"""The values that stages pass to each other, and the legend of their shapes.

Every tensor and array name ends in its shape:

    B batch    T time (clip steps)    V view (camera)    C channel    H height    W width
    K chunk (latents)    R commands in one latent    A action    Z latent    P proprioception
    N samples

Images are uint8 until they enter a network. Stored arrays are `..HWC`, network inputs `..CHW`.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self, TypedDict

if TYPE_CHECKING:
    import numpy as np
    import torch

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what an OSError of a full disk says


class UserError(ValueError):
    """A mistake of the person at the keyboard: one line saying what was expected, what was found
    and what to do. The command line prints it and exits with status 2."""


def within(config: object, **intervals: str) -> None:
    """Refuses a number outside its interval, such as "[1, inf)". NaN is in none; None says nothing."""
    for name, interval in intervals.items():
        told = getattr(config, name)
        low, high = map(float, interval[1:-1].split(","))
        for value in told if isinstance(told, tuple) else () if told is None else (told,):
            above = low <= value if interval[0] == "[" else low < value
            below = value <= high if interval[-1] == "]" else value < high
            if not (above and below):
                wanted = f"{'>=' if interval[0] == '[' else '>'} {low:g}"
                if math.isfinite(high) or above:
                    wanted += f" and {'<=' if interval[-1] == ']' else '<'} {high:g}"
                raise UserError(f"expected {name} {wanted}, found {value}: change it")


def multiple(config: object, **factors: int) -> None:
    """Refuses a number that is no positive multiple of its factor."""
    for name, factor in factors.items():
        value = getattr(config, name)
        if value < factor or value % factor:
            raise UserError(f"expected {name} to be a multiple of {factor}, found {value}: change it")


def each_once(config: object, name: str) -> None:
    """Refuses names that are none, or of which one is there twice."""
    told = getattr(config, name)
    if not told or len(set(told)) < len(told):
        raise UserError(
            f"expected {name}, each once, found {', '.join(told) or 'none'}: name those of the data"
        )


class Batch:
    """Base of the dataclasses below: moves every tensor, leaves the rest alone."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        moved = {
            f.name: value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value
            for f in fields(self)  # type: ignore[arg-type]
            for value in [getattr(self, f.name)]
        }
        return type(self)(**moved)

    def rows(self, rows: slice) -> Self:
        """Some of the batch."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Clip(Batch):
    """A short piece of video at the latent rate: what world modelling needs, and no more."""

    frames_BTVCHW: torch.Tensor  # uint8; an absent view is black
    view_mask_BV: torch.Tensor  # bool; False where the view is absent
    text: tuple[str, ...]  # length B; "" where there is no caption
    embodiment_B: torch.Tensor  # int64; whose body moves (z is compared within one body only)


@dataclass(frozen=True)
class Demo(Batch):
    """One moment of a labelled demonstration and the commands that followed it."""

    frames_BVCHW: torch.Tensor  # uint8, the present views
    view_mask_BV: torch.Tensor  # bool
    state_BP: torch.Tensor  # float32, raw units
    actions_BKRA: torch.Tensor  # float32, raw units: K latents of R commands
    action_mask_BKR: torch.Tensor  # bool; False past the end of the episode
    text: tuple[str, ...]


class Observation(TypedDict):
    """What a policy sees at run time: one moment, no batch dimension."""

    images: dict[str, np.ndarray]  # camera name -> (H, W, 3) uint8
    state: np.ndarray  # (P,) float32
    instruction: str
