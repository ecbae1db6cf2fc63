import json

import numpy as np
import pytest
import torch

from lawm_policy.data.normalize import STD_FLOOR, Normalization
from lawm_policy.types import UserError


def fitted(relative_to: list[int | None] | None = None) -> tuple[Normalization, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    state = rng.normal(5, 2, (200, 4)).astype(np.float32)
    actions = rng.normal(0, 0.3, (200, 8, 3)).astype(np.float32)
    actions[..., 0] += state[:, None, 2]
    actions[..., 2] = 1.0  # a dimension that never changes
    exists = rng.random((200, 8)) < 0.8
    found = Normalization.fit(state, actions, exists, relative_to or [2, None, None])
    return found, torch.from_numpy(state), torch.from_numpy(actions)


def test_inverse_and_json_round_trip() -> None:
    found, state_BP, actions = fitted()
    again = Normalization.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    for shape in [(200, 8, 3), (200, 2, 4, 3)]:
        raw = actions.reshape(shape)
        back = again.denormalize_actions(again.normalize_actions(raw, state_BP), state_BP)
        assert torch.allclose(back, raw, atol=1e-5)
    first = actions[:, 0]
    assert torch.allclose(
        found.denormalize_actions(found.normalize_actions(first, state_BP), state_BP), first, atol=1e-5
    )


def test_relative_dimensions_lose_the_state() -> None:
    found, state_BP, actions = fitted()
    assert abs(found.action_mean[0]) < 0.05 and 0.25 < found.action_std[0] < 0.35
    plain, _, _ = fitted([None, None, None])
    assert plain.action_mean[0] > 4
    normal = found.normalize_actions(actions, state_BP)
    assert normal.reshape(-1, 3).std(0)[:2].sub(1).abs().max() < 0.1
    assert found.normalize_state(state_BP).mean(0).abs().max() < 1e-4


def test_a_constant_dimension_stays_finite() -> None:
    found, state_BP, actions = fitted()
    assert found.action_std[2] == STD_FLOOR
    assert torch.isfinite(found.normalize_actions(actions, state_BP)).all()


def test_what_is_hardly_commanded_does_not_cost_as_much_as_the_rest() -> None:
    """Of commands with a range of their own; joint targets, measured from the state, have no such floor."""
    rng = np.random.default_rng(0)
    state, exists = rng.normal(0, 1, (50, 2)), np.ones((50, 4), bool)
    actions = rng.normal(0, (0.02, 0.02, 0.5), (50, 4, 3))
    actions[..., 0] += state[:, None, 0]
    limits = [(-3.0, 3.0), (-1.0, 1.0), (-1.0, 1.0)]
    found = Normalization.fit(state, actions, exists, [0, None, None], limits)
    assert 0.015 < found.action_std[0] < 0.025 and found.action_std[1] == 0.1
    assert 0.4 < found.action_std[2] < 0.6
    for wrong in (limits[:2], [[1.0, -1.0]] * 3, ["low", "high", 3], [[1.0], [0.0, 1.0], []], 7):
        with pytest.raises(UserError, match="expected limits as a low and a high number for each of 3"):
            Normalization.fit(state, actions, exists, [0, None, None], wrong)


def test_statistics_that_cannot_be_are_refused() -> None:
    found, _, _ = fitted()
    value = found.to_json()
    for change in (
        {"action_std": [0.0, 1.0, 1.0]},
        {"action_std": [float("nan"), 1.0, 1.0]},
        {"action_mean": [0.0]},
        {"relative_to": [9, None, None]},
    ):
        with pytest.raises(UserError, match="expected"):
            Normalization.from_json(value | change)
    with pytest.raises(UserError, match="expected normalisation"):
        Normalization.from_json({k: v for k, v in value.items() if k != "state_std"})
    for relative in ([None], [None, None, 4], [None, "x", None]):
        with pytest.raises(UserError, match="3 action dimensions"):
            fitted(relative)
