from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from lawm_policy.world_models.rssm import Rssm, RssmConfig, moved

CONFIG = RssmConfig(deter=32, channels=16)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_frames_come_out_at_the_size_they_went_in(size: int) -> None:
    model = Rssm(CONFIG, size, views=2, latent=8)
    frames = torch.randint(0, 255, (2, 2, 3, size, size)).to(torch.uint8)
    states = model.rollout(model.encode(frames, torch.ones(2, 2, dtype=torch.bool)), torch.randn(2, 3, 8))
    assert model.decode(states).shape == (2, 3, 2, 3, size, size)


def test_it_grows_from_2_to_100_million_parameters_by_configuration() -> None:
    def millions(cfg: RssmConfig) -> float:
        with torch.device("meta"):
            return sum(p.numel() for p in Rssm(cfg, 64, 2, 32).parameters()) / 1e6

    assert millions(RssmConfig(deter=256, channels=32)) < 2.5
    assert millions(RssmConfig(deter=4096, channels=64)) > 100


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stochastic", [0, 8])
def test_the_posterior_path_never_supplies_state_to_the_open_loop_path(
    stochastic: int, training: bool
) -> None:
    """Noise in place of later frames leaves what the loss paints open loop bit-identical."""
    torch.manual_seed(0)
    model = Rssm(replace(CONFIG, stochastic=stochastic), 32, 2, 8).train(training)
    model.decoder.paint.weight.data.normal_()
    clip, z = tiny.clip(4), torch.randn(4, tiny.CHUNK, 8)
    films = [
        tiny.painted_in_training(model, lambda c=c: model.loss(c, z))[0]
        for c in (clip, tiny.with_noise_after_t(clip))
    ]
    assert torch.equal(*films)


def test_stochastic_latents_train_prior_and_posterior() -> None:
    torch.manual_seed(0)
    model = Rssm(replace(CONFIG, stochastic=8, free_nats=0.0), 32, 2, 8)
    losses = model.loss(tiny.clip(4), torch.randn(4, tiny.CHUNK, 8))
    assert set(losses) == {"frames", "posterior_frames", "posterior_kl"}
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_what_has_seen_later_frames_does_not_train_z() -> None:
    torch.manual_seed(0)
    model = Rssm(replace(CONFIG, stochastic=8, free_nats=0.0), 32, 2, 8)
    z_BTZ = torch.randn(4, tiny.CHUNK, 8, requires_grad=True)
    losses = model.loss(tiny.clip(4), z_BTZ)
    seen = losses["posterior_frames"] + losses["posterior_kl"]
    assert torch.autograd.grad(seen, z_BTZ, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(losses["frames"], z_BTZ)[0].abs().sum() > 0


def test_a_subset_of_steps_is_decoded_and_the_last_always() -> None:
    model = Rssm(replace(CONFIG, decode_steps=2), 32, 2, 8)
    drawn = {tuple(model._steps_to_decode(6, torch.device("cpu")).tolist()) for _ in range(50)}
    assert all(len(steps) == 2 and steps[-1] == 5 for steps in drawn)
    assert len(drawn) == 5
    assert model.eval()._steps_to_decode(6, torch.device("cpu")).tolist() == list(range(6))


def test_a_view_counts_alike_however_much_of_it_moves() -> None:
    torch.manual_seed(0)
    model = Rssm(CONFIG, 32, 2, 8)
    clip = tiny.clip(2)
    first = model.encode(clip.frames_BTVCHW[:, 0], clip.view_mask_BV)
    truth = first.frames_BVCHW[:, None].repeat(1, 3, 1, 1, 1, 1)
    truth[:, :, 0] = 0.4  # all of the first view moves, nothing of the second
    errors = []
    for view in (0, 1):
        painted = truth.clone()
        painted[:, :, view] += 0.1
        errors.append(model._frame_loss(painted, truth, first))
    torch.testing.assert_close(*errors)


def test_moved_marks_what_moved() -> None:
    first = torch.zeros(1, 1, 3, 4, 4)
    later = first[:, None].clone()
    later[..., 1, 2] = 0.5
    assert moved(later, first, 0.06).sum() == 1


def test_distance_is_zero_at_the_goal_and_positive_elsewhere() -> None:
    model = Rssm(CONFIG, 32, 2, 8)
    a, b = tiny.clip(4), tiny.clip(4, seed=1)
    state, other = (model.encode(c.frames_BTVCHW[:, 0], c.view_mask_BV) for c in (a, b))
    assert bool((model.distance(state, state) == 0).all()) and bool((model.distance(state, other) > 0).all())
