"""The gates that every recipe passes, on made-up clips; on real ones in test_gates.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from controls import MODULES
from torch import Tensor

from lawm_policy import measures
from lawm_policy.latent_actions.bottlenecks import BottleneckConfig
from lawm_policy.latent_actions.inverse import InverseConfig
from lawm_policy.recipe import Recipe
from lawm_policy.types import Clip, UserError

SOURCES = tuple(tiny.RECIPES)


def build(source: str, seed: int = 0) -> Recipe:
    torch.manual_seed(seed)
    return Recipe(tiny.RECIPES[source])


@pytest.mark.parametrize("source", SOURCES)
def test_every_tensor_learns_from_one_camera_videos(source: str) -> None:
    """Gate 1: the released LAWM code detaches its policy from the loss; here nothing may be left out."""
    recipe = build(source)
    recipe(tiny.clip(8, views=(True, False)))["loss"].backward()
    silent = [n for n, p in recipe.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_each_phase_trains_its_own_part_and_leaves_nothing_out() -> None:
    recipe = build("inverse")
    names = [name for name, _ in recipe.named_parameters()]
    mine = {name for name in names if name.startswith("encoder.policy")}
    learns = {"world": set(names) - mine, "clone": mine, "all": set(names)}
    for phase in ("world", "clone", "all"):
        recipe.enter(phase)
        recipe.zero_grad()
        recipe(tiny.clip(8, views=(True, False)))["loss"].backward()
        moved = {n for n, p in recipe.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert moved == learns[phase], phase


def test_what_is_cloned_last_is_z_without_noise_or_disguise() -> None:
    cfg = tiny.RECIPES["inverse"]
    recipe = Recipe(replace(cfg, inverse=replace(cfg.inverse, disguise=True)))
    clip, said = tiny.clip(4), []
    recipe.encoder.clone = lambda _, z_BTZ, __: said.append(z_BTZ) or {"clone": z_BTZ.sum()}
    recipe.enter("clone")
    recipe.train()(clip)
    assert torch.equal(said[0], recipe.eval().encoder.infer(clip)[0])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_variational_recipe_has_the_others_as_its_limits(share: float) -> None:
    """The frame loss trains whoever says the world model's z: the inverse model, or the policy."""
    torch.manual_seed(0)
    recipe = Recipe(replace(tiny.RECIPES["variational"], prior_share=share))
    z_BTZ, _ = recipe.encoder(tiny.clip(8))
    recipe.world_model.loss(tiny.clip(8), z_BTZ)["frames"].backward()
    learns = {n.split(".")[1] for n, p in recipe.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns & {"policy", "inverse"} == ({"policy"} if share else {"inverse"})


def test_the_prior_becomes_as_wide_as_the_posterior() -> None:
    """Told means alone, it would become as narrow as it may."""
    recipe = build("variational").train()
    encoder, clip = recipe.encoder, tiny.clip(8)
    encoder.posterior = lambda seen_BTD: (seen_BTD.new_zeros(len(seen_BTD), tiny.CHUNK, 8),) * 2
    wide_Z = encoder.policy.head.log_std_Z
    torch.nn.init.constant_(wide_Z, -1.0)
    optimiser = torch.optim.Adam([wide_Z], 0.05)
    for _ in range(250):
        optimiser.zero_grad()
        encoder(clip)[1]["clone"].backward()
        optimiser.step()
    assert wide_Z.detach().exp().mean().item() == pytest.approx(1.0, abs=0.1)


def test_every_chunk_index_learns_from_the_frame_loss() -> None:
    recipe = build("policy")
    clip = tiny.clip(4)
    z_BTZ, _ = recipe.encoder.infer(clip)
    z_BTZ.retain_grad()
    recipe.world_model.loss(clip, z_BTZ)["frames"].backward()
    assert z_BTZ.grad is not None
    assert bool((z_BTZ.grad.abs().sum((0, 2)) > 0).all())


@pytest.mark.parametrize("source", ["inverse", "variational"])
def test_cloning_reaches_every_chunk_index_and_stops_at_the_latents(source: str) -> None:
    recipe = build(source)
    clip = tiny.clip(4)
    said = recipe.policy(clip.frames_BTVCHW[:, 0], clip.view_mask_BV, clip.text).mixture
    said.mean_BMKZ.retain_grad()
    target = torch.randn(4, tiny.CHUNK, 8, requires_grad=True)
    sum(said.cloning_losses(target.detach()).values()).backward()
    assert bool((said.mean_BMKZ.grad.abs().sum((0, 1, 3)) > 0).all())
    said = recipe.policy(clip.frames_BTVCHW[:, 0], clip.view_mask_BV, clip.text).mixture
    recipe.encoder.clone(said, target)["clone"].backward()
    assert target.grad is None


@pytest.mark.parametrize("stochastic", [0, 8])
@pytest.mark.parametrize("source", SOURCES)
def test_what_comes_after_t_never_reaches_the_open_loop_path(source: str, stochastic: int) -> None:
    """Noise in place of every frame after t, z held: what training paints open loop is the same bits."""
    cfg = tiny.RECIPES[source]
    torch.manual_seed(0)
    recipe = Recipe(replace(cfg, world_model=replace(cfg.world_model, stochastic=stochastic)))
    recipe.world_model.decoder.paint.weight.data.normal_()  # a fresh decoder paints little but x_t
    clip = tiny.clip(4)
    noisy = tiny.with_noise_after_t(clip)
    for training, phase in ((True, "all"), (False, "all"), *([(True, "world")] * (source == "inverse"))):
        recipe.train(training)
        recipe.enter(phase)

        def paints(c: Clip, held_BTZ: Tensor | None = None) -> tuple[Tensor, Tensor]:
            torch.manual_seed(1)  # z has noise in training
            return tiny.painted_in_training(recipe.world_model, lambda: recipe(c), held_BTZ)

        painted, z_BTZ = paints(clip)
        painted_noisy, z_noisy_BTZ = paints(noisy, held_BTZ=z_BTZ)
        assert torch.equal(painted_noisy, painted)
        assert torch.equal(z_noisy_BTZ, z_BTZ) == (source == "policy")  # there even z must not notice


@pytest.mark.parametrize("source", SOURCES)
def test_a_latent_touches_only_the_frames_after_it(source: str) -> None:
    recipe = build(source).eval()
    with torch.no_grad():
        recipe.world_model.decoder.paint.weight.normal_()  # a fresh decoder paints x_t and would hide it
    clip = tiny.clip(4)
    state = recipe.world_model.encode(clip.frames_BTVCHW[:, 0], clip.view_mask_BV)
    z_BTZ = torch.randn(4, tiny.CHUNK, 8)
    before = recipe.world_model.decode(recipe.world_model.rollout(state, z_BTZ))
    for k in range(tiny.CHUNK):
        changed = z_BTZ.clone()
        changed[:, k] += 1.0
        after = recipe.world_model.decode(recipe.world_model.rollout(state, changed))
        assert torch.equal(after[:, :k], before[:, :k])
        assert not torch.equal(after[:, k], before[:, k])


@pytest.mark.parametrize("source", SOURCES)
def test_the_world_model_never_hears_the_instruction(source: str) -> None:
    recipe = build(source).eval()
    clip = tiny.clip(4)
    z_BTZ = torch.randn(4, tiny.CHUNK, 8)
    other = replace(clip, text=("something else",) * 4)
    with torch.no_grad():
        losses = [recipe.world_model.loss(c, z_BTZ)["frames"] for c in (clip, other)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("source", ["inverse", "variational"])
def test_the_inverse_model_never_hears_it_either(source: str) -> None:
    recipe = build(source).eval()
    clip = tiny.clip(4)
    other = replace(clip, text=("something else",) * 4)
    assert torch.equal(recipe.encoder.infer(clip)[0], recipe.encoder.infer(other)[0])


@pytest.mark.parametrize("source", SOURCES)
def test_an_absent_view_changes_nothing_for_the_present_one(source: str) -> None:
    recipe = build(source).eval()
    clip = tiny.clip(4, views=(True, False))
    frames = clip.frames_BTVCHW.clone()
    frames[:, :, 1] = 200
    with torch.no_grad():
        a, b = (recipe.encoder.infer(c)[0] for c in (clip, replace(clip, frames_BTVCHW=frames)))
    assert torch.equal(a, b)


@pytest.mark.parametrize("source", SOURCES)
def test_training_lowers_the_loss_and_z_comes_to_matter(source: str) -> None:
    """New clips at each step: of a few that come again a world model knows the future without z."""

    def clips(seed: int) -> Clip:
        return tiny.clip(32, seed=seed).rows(slice(1, None, 2))  # with a caption, or no policy could know

    recipe, losses = build(source), []
    optimiser = torch.optim.AdamW(recipe.parameters(), 3e-3)
    for step in range(60):
        found = recipe(clips(step))
        optimiser.zero_grad()
        found["loss"].backward()
        optimiser.step()
        losses.append(float(found["frames"]))
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    held_out = [clips(1000), clips(1001)]
    deaf = MODULES["z-free"](tiny.RECIPES[source])
    deaf.world_model.load_state_dict(recipe.world_model.state_dict())
    for module, uses in ((recipe, True), (deaf, False)):
        use = measures.z_use(module, held_out)
        assert (use["shuffled_cost"] >= 0.2) is uses and (use["mean_cost"] >= 0.2) is uses


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("policy", {"policy": replace(tiny.POLICY, density=True, components=5)}),
        ("inverse", {"policy": replace(tiny.POLICY, density=False)}),
        ("variational", {"inverse": InverseConfig(bottleneck=BottleneckConfig(kind="none"))}),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(source: str, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"expected (policy.density|inverse.bottleneck.kind)="):
        replace(tiny.RECIPES[source], **change)
