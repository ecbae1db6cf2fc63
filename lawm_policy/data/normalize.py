"""Normalisation of state and commands, with its inverse; it travels inside every checkpoint.

Commands are first made relative: dimension d of a command loses the value of state dimension
`relative_to[d]` at the moment the policy looks, where the robot card names one. So a policy learns
by how much to move from where the robot is, in joint space or in the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from lawm_policy.types import UserError

STD_FLOOR = 1e-3  # radians, metres: no dimension is blown up beyond what a robot can resolve
# Of half of a command's own range, where it has one (moves of LIBERO's hand: [-1, 1]): what is commanded so
# little is the servo's tremble, and at unit deviation it would cost as much as the moves that do the task.
SHARE_OF_RANGE = 0.1


@dataclass(frozen=True)
class Normalization:
    """Mean, deviation and 1% / 99% quantiles of each dimension; quantiles are for people and limits."""

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    state_q01: tuple[float, ...]
    state_q99: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    action_q01: tuple[float, ...]
    action_q99: tuple[float, ...]
    relative_to: tuple[int | None, ...]  # one per action dimension

    def __post_init__(self) -> None:
        states = {len(getattr(self, f"state_{n}")) for n in ("mean", "std", "q01", "q99")}
        actions = {len(getattr(self, f"action_{n}")) for n in ("mean", "std", "q01", "q99")}
        actions.add(len(self.relative_to))
        if len(states) != 1 or len(actions) != 1:
            raise UserError(f"expected statistics of one length, found states {states}, actions {actions}")
        if any(i is not None and not 0 <= i < len(self.state_mean) for i in self.relative_to):
            raise UserError(
                f"expected relative_to to name states below {len(self.state_mean)}, found {self.relative_to}"
            )
        numbers = [x for f in fields(self) if f.name != "relative_to" for x in getattr(self, f.name)]
        if not np.isfinite(numbers).all() or min(*self.state_std, *self.action_std) <= 0:
            raise UserError("expected finite statistics and deviations above 0, found others")

    @classmethod
    def fit(
        cls,
        state_SP: np.ndarray,
        actions_SNA: np.ndarray,
        exists_SN: np.ndarray,
        relative_to: Sequence[int | None] | None,
        limits: Sequence[tuple[float, float]] | None = None,
    ) -> Normalization:
        """From S moments, each with its state and the N commands that followed (those that exist). `limits`
        are of the commands as they are stored."""
        width = actions_SNA.shape[-1]
        relative = (None,) * width if relative_to is None else relative_to
        states = range(state_SP.shape[1])
        if (
            not isinstance(relative, list | tuple)
            or len(relative) != width
            or any(i is not None and (type(i) is not int or i not in states) for i in relative)
        ):
            raise UserError(
                f"expected relative_to with a state below {len(states)} or null for each of {width} action "
                f"dimensions, found {relative}"
            )
        actions_MA = np.array(actions_SNA, dtype=np.float64)
        for d, index in enumerate(relative):
            if index is not None:
                actions_MA[..., d] -= state_SP[:, None, index]
        floor_A = np.full(width, STD_FLOOR)
        if limits is not None:
            absolute_A = np.array([index is None for index in relative])
            floor_A[absolute_A] = SHARE_OF_RANGE * _half_ranges(limits, width)[absolute_A]
        state = _describe(state_SP.astype(np.float64), STD_FLOOR)
        action = _describe(actions_MA[exists_SN], floor_A)
        return cls(
            **{f"state_{name}": value for name, value in state.items()},
            **{f"action_{name}": value for name, value in action.items()},
            relative_to=tuple(relative),
        )

    def normalize_state(self, state_BP: torch.Tensor) -> torch.Tensor:
        return (state_BP - _like(self.state_mean, state_BP)) / _like(self.state_std, state_BP)

    def normalize_actions(self, actions_BxA: torch.Tensor, state_BP: torch.Tensor) -> torch.Tensor:
        """Commands of any shape (B, ..., A), given the raw state at the moment the policy looked."""
        relative = actions_BxA - self._origin(actions_BxA, state_BP)
        return (relative - _like(self.action_mean, relative)) / _like(self.action_std, relative)

    def denormalize_actions(self, actions_BxA: torch.Tensor, state_BP: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize_actions`: raw commands."""
        relative = actions_BxA * _like(self.action_std, actions_BxA) + _like(self.action_mean, actions_BxA)
        return relative + self._origin(actions_BxA, state_BP)

    def _origin(self, actions_BxA: torch.Tensor, state_BP: torch.Tensor) -> torch.Tensor:
        """What relative dimensions are measured from, shaped to be added to the commands."""
        index = [0 if i is None else i for i in self.relative_to]
        used = _like([0.0 if i is None else 1.0 for i in self.relative_to], actions_BxA)
        origin_BA = state_BP[:, index].to(actions_BxA.dtype) * used
        return origin_BA.reshape(len(origin_BA), *[1] * (actions_BxA.ndim - 2), -1)

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Normalization:
        names = {f.name for f in fields(cls)}
        if set(value) != names:
            raise UserError(f"expected normalisation with {sorted(names)}, found {sorted(value)}")
        return cls(**{name: tuple(value[name]) for name in names})


def _half_ranges(limits: Any, width: int) -> np.ndarray:
    try:
        limits_A2 = np.array(limits, dtype=np.float64)
    except (TypeError, ValueError):
        limits_A2 = np.zeros(0)
    if limits_A2.shape != (width, 2) or not (limits_A2[:, 0] < limits_A2[:, 1]).all():
        raise UserError(
            f"expected limits as a low and a high number for each of {width} action dimensions, found "
            f"{limits}"
        )
    return (limits_A2[:, 1] - limits_A2[:, 0]) / 2


def _describe(x_MD: np.ndarray, least_std: np.ndarray | float) -> dict[str, tuple[float, ...]]:
    q01, q99 = np.quantile(x_MD, [0.01, 0.99], axis=0)
    values = {"mean": x_MD.mean(0), "std": np.maximum(x_MD.std(0), least_std), "q01": q01, "q99": q99}
    return {name: tuple(float(v) for v in value) for name, value in values.items()}


def _like(values: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values, dtype=x.dtype, device=x.device)
