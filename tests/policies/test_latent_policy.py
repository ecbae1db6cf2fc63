from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from tiny_policy import CONFIG, CONTROLLER, R, build, observation

from lawm_policy.types import Demo, UserError


def demo(batch: int = 4) -> Demo:
    clip = tiny.clip(batch)
    generator = torch.Generator().manual_seed(1)
    return Demo(
        clip.frames_BTVCHW[:, 0],
        clip.view_mask_BV,
        torch.randn(batch, 3, generator=generator),
        torch.randn(batch, tiny.CHUNK, R, 3, generator=generator),
        torch.ones(batch, tiny.CHUNK, R, dtype=torch.bool),
        clip.text,
    )


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("head", ["controller", "fresh"])
def test_it_says_r_commands_for_each_latent(kind: str, head: str) -> None:
    policy = build(replace(CONFIG, head=head, controller=replace(CONTROLLER, kind=kind)))
    chunk = policy.act(observation())
    assert chunk.shape == (tiny.CHUNK * R, 3) and chunk.dtype == np.float32
    assert policy.execute == 2 * R


def test_commands_are_offsets_from_the_joints_as_they_are() -> None:
    policy = build(replace(CONFIG, controller=replace(CONTROLLER, kind="linear")))  # sees no state itself
    seen = observation()
    moved = seen | {"state": seen["state"] + np.array([0.5, -0.25, 3.0], np.float32)}
    np.testing.assert_allclose(
        policy.act(moved) - policy.act(seen), [[0.5, -0.25, 0.0]] * (tiny.CHUNK * R), atol=1e-5
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"state": np.zeros(4)}, "expected a state of 3 finite numbers"),
        ({"state": np.array([0.0, np.nan, 0.0])}, "nan"),
        ({"instruction": 3}, "expected the instruction in words, found 3"),
        ({"instruction": ...}, "expected instruction in the observation, found images, state: add it"),
    ],
)
def test_an_observation_that_means_nothing_is_refused(wrong: dict[str, object], said: str) -> None:
    seen = {key: value for key, value in {**observation(), **wrong}.items() if value is not ...}
    with pytest.raises(UserError, match=said):
        build().act(seen)


def test_a_latent_is_decoded_from_itself_and_earlier_ones() -> None:
    policy = build()
    z, state, view = torch.randn(1, tiny.CHUNK, 8), torch.randn(1, 3), torch.randn(1, 2, 32)
    mask = torch.ones(1, 2, dtype=torch.bool)
    before = policy.controller(z, state, view, mask)
    for k in range(tiny.CHUNK):
        changed = z.clone()
        changed[:, k] += 1.0
        after = policy.controller(changed, state, view, mask)
        assert torch.equal(after[:, :k], before[:, :k]) and not torch.equal(after[:, k], before[:, k])


def test_commands_past_the_end_are_not_learnt() -> None:
    policy = build()
    batch = demo()
    mask = batch.action_mask_BKR.clone()
    mask[:, 1:] = False
    other = batch.actions_BKRA.clone()
    other[:, 1:] = 99.0
    losses = [
        policy.loss(replace(batch, action_mask_BKR=mask, actions_BKRA=a)) for a in (batch.actions_BKRA, other)
    ]
    assert torch.equal(losses[0]["loss"], losses[1]["loss"])


def test_every_tensor_learns_from_demonstrations() -> None:
    policy = build().train()
    policy.loss(demo())["loss"].backward()
    silent = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == ["policy.head.log_std_Z"]  # a density's width: there is nothing to clone here


def test_it_can_fit_what_it_is_shown() -> None:
    policy = build().train()
    batch = demo()
    optimiser = torch.optim.AdamW(policy.parameters(), 3e-3)
    errors = []
    for _ in range(150):
        losses = policy.loss(batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        errors.append(float(losses["executed"]))
    assert errors[-1] < 0.3 * errors[0]


def test_a_blind_policy_sees_nothing_and_a_deaf_one_hears_nothing() -> None:
    blind, deaf = build(replace(CONFIG, sees=False)), build(replace(CONFIG, hears=False))
    a, b = observation(0), observation(1)
    np.testing.assert_array_equal(blind.act(a), blind.act(b | {"state": a["state"]}))
    np.testing.assert_array_equal(deaf.act(a), deaf.act(a | {"instruction": "something else"}))
    assert not np.array_equal(blind.act(a), blind.act(a | {"instruction": "something else"}))


def test_ensembling_averages_what_was_said_of_the_same_moment() -> None:
    policy = build(replace(CONFIG, ensemble=0.5))
    plain = build()
    a, b = observation(0), observation(1)
    first, second = policy.act(a), policy.act(b)
    old, new = plain.act(a), plain.act(b)
    np.testing.assert_allclose(first, old, rtol=1e-6)
    overlap = len(old) - policy.execute
    weight = np.exp(-0.5)
    expected = (old[policy.execute :] + weight * new[:overlap]) / (1 + weight)
    np.testing.assert_allclose(second[:overlap], expected, rtol=1e-5)
    np.testing.assert_allclose(second[overlap:], new[overlap:], rtol=1e-5)
    policy.reset()
    np.testing.assert_allclose(policy.act(b), new, rtol=1e-6)


def test_wrong_cameras_and_sizes_are_one_line() -> None:
    policy = build()
    seen = observation()
    for images in (
        {"front": seen["images"]["front"]},
        seen["images"] | {"wrist": np.zeros((64, 64, 3), np.uint8)},
        seen["images"] | {"wrist": np.zeros((32, 32, 3), np.float32)},
    ):
        with pytest.raises(UserError, match=r"expected .* found") as error:
            policy.act(seen | {"images": images})
        assert "\n" not in str(error.value)
