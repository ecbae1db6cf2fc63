"""A recipe composes the parts of pretraining: who says z, what it passes through, what predicts.

    policy        the policy says z from the present and the instruction; the frame loss trains it (LAWM)
    inverse       a model that also sees the next frame says z; the policy clones it, stop-gradient
    variational   that model is the posterior, the policy the learned prior, tied by a KL balanced on both
                  sides; the world model runs on the posterior's z, and in a share of the clips on the
                  policy's: none is the second source, all is the first

Whatever the source, the world model sees frames and z, never the instruction, and predicts open loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lawm_policy.latent_actions.bottlenecks import BottleneckConfig, KLBottleneck
from lawm_policy.latent_actions.inverse import InverseConfig, InverseEncoder
from lawm_policy.layers import check_size
from lawm_policy.policies.baku import Baku, BakuConfig
from lawm_policy.policies.heads import HALF_LOG_TAU, ChunkMixture
from lawm_policy.types import Clip, UserError, within
from lawm_policy.world_models.rssm import GRID, Rssm, RssmConfig

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class RecipeConfig:
    source: Literal["policy", "inverse", "variational"] = "inverse"
    policy: BakuConfig = field(default_factory=BakuConfig)
    inverse: InverseConfig = field(default_factory=InverseConfig)
    world_model: RssmConfig = field(default_factory=RssmConfig)
    world_share: float = 1.0  # of a batch's clips that train z and world model; the policy clones all of them
    clone: float = 1.0  # weight of the policy's likelihood of the chunk
    choice: float = 0.1  # and of its choice among its components
    latent_norm: float = 1e-3  # source policy: keeps z at a sane scale
    posterior_kl: float = 1e-3  # source variational: pulls the posterior to the prior
    prior_share: float = 0.3  # source variational: clips whose world model runs on the prior's z

    def __post_init__(self) -> None:
        weights = ("clone", "choice", "latent_norm", "posterior_kl")
        within(self, world_share="(0, 1]", prior_share="[0, 1]", **dict.fromkeys(weights, "[0, inf)"))
        check_size(self.policy.size, GRID, "policy.size", "the world model's grid of")
        if self.source != "policy":
            check_size(self.policy.size, self.inverse.grid, "policy.size", "inverse.grid")
        if self.world_model.decode_steps > self.policy.chunk:
            raise UserError(
                f"expected world_model.decode_steps <= policy.chunk, which is {self.policy.chunk}, found "
                f"{self.world_model.decode_steps}: lower it, or 0 for all"
            )
        if self.source == "policy" and self.world_share < 1:
            raise UserError(
                "expected world_share=1 with source 'policy', which clones nothing, found "
                f"{self.world_share}: change it"
            )
        beta = self.inverse.bottleneck.beta
        if self.source == "variational" and beta != BottleneckConfig().beta:
            raise UserError(
                "expected no inverse.bottleneck.beta with source 'variational', which pulls its posterior to "
                f"its prior, found {beta}: change posterior_kl"
            )
        if self.source != "policy" and not self.policy.density:
            raise UserError(
                f"expected policy.density=true with source '{self.source}', found false: "
                "a policy that clones latents needs a density"
            )
        if self.source == "policy" and (self.policy.density or self.policy.components > 1):
            raise UserError(
                "expected policy.density=false and policy.components=1 with source 'policy', found "
                f"{str(self.policy.density).lower()} and {self.policy.components}: "
                "the frame loss trains no density"
            )
        if self.source == "variational" and self.inverse.bottleneck.kind != "kl":
            raise UserError(
                "expected inverse.bottleneck.kind=kl with source 'variational', found "
                f"'{self.inverse.bottleneck.kind}': the posterior must be a Gaussian"
            )


class PolicySource(nn.Module):
    """z from (x_t, instruction): nothing of the future can leak into it."""

    def __init__(self, cfg: RecipeConfig, policy: Baku):
        super().__init__()
        self.cfg, self.policy = cfg, policy

    def infer(self, clip: Clip) -> tuple[Tensor, Losses]:
        said = self.policy(clip.frames_BTVCHW[:, 0], clip.view_mask_BV, clip.text)
        z_BTZ = said.mixture.likeliest()
        return z_BTZ, {"latent_norm": self.cfg.latent_norm * z_BTZ.square().mean()}

    def forward(self, clip: Clip) -> tuple[Tensor, Losses]:
        return self.infer(clip)


class InverseSource(nn.Module):
    """`infer` reads z from the frames; calling it also has the policy clone what was read."""

    def __init__(self, cfg: RecipeConfig, policy: Baku):
        super().__init__()
        self.cfg, self.policy = cfg, policy
        shape = cfg.policy
        self.inverse = InverseEncoder(cfg.inverse, shape.size, len(shape.cameras), shape.latent)

    def infer(self, clip: Clip) -> tuple[Tensor, Losses]:
        return self.inverse.infer(clip)

    def forward(self, clip: Clip) -> tuple[Tensor, Losses]:
        watched = self.watched(clip)
        features = self.inverse.features(watched)
        z_BTZ, losses = self.inverse.bottleneck(features, watched)
        return z_BTZ, losses | self.clone(self.say(clip), *self.latents(clip, features))

    def imitate(self, clip: Clip) -> Losses:
        """The policy clones an inverse model that has finished learning."""
        self.inverse.eval()  # z without noise, read off the frames as they are
        return self.clone(self.say(clip), *self.latents(clip, self.inverse.features(clip)))

    def watched(self, clip: Clip) -> Clip:
        """The clips whose z the world model gets. Cloning is the cheap part and needs the most examples."""
        share = self.cfg.world_share if self.training else 1.0
        return clip.rows(slice(max(1, round(share * len(clip.text)))))

    @torch.no_grad()
    def latents(self, clip: Clip, watched_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """z of all clips and its spread, to be cloned, from the features of those that are watched."""
        rest = clip.rows(slice(len(watched_BTD), None))
        parts = [watched_BTD, self.inverse.features(rest)] if rest.text else [watched_BTD]
        return self.to_clone(torch.cat(parts))

    def to_clone(self, features_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.inverse.bottleneck.mean(features_BTD), None

    def say(self, clip: Clip) -> ChunkMixture:
        return self.policy(clip.frames_BTVCHW[:, 0], clip.view_mask_BV, clip.text).mixture

    def clone(self, said: ChunkMixture, z_BTZ: Tensor, spread_BTZ: Tensor | None = None) -> Losses:
        losses = said.cloning_losses(z_BTZ.detach(), spread_BTZ)
        return {"clone": self.cfg.clone * losses["clone"], "choice": self.cfg.choice * losses["choice"]}


class VariationalSource(InverseSource):
    def posterior(self, features_BTD: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.inverse.bottleneck, KLBottleneck)
        return self.inverse.bottleneck.posterior(features_BTD)

    def to_clone(self, features_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """With its spread: cloning means alone, the prior would become too narrow for the posterior."""
        mean_BTZ, log_std_BTZ = self.posterior(features_BTD)
        return mean_BTZ, log_std_BTZ.exp()

    def forward(self, clip: Clip) -> tuple[Tensor, Losses]:
        watched = self.watched(clip)
        features = self.inverse.features(watched)
        mean_BTZ, log_std_BTZ = self.posterior(features)
        noise_BTZ = torch.randn_like(mean_BTZ)
        z_BTZ = mean_BTZ + log_std_BTZ.exp() * noise_BTZ
        said = self.say(clip)
        losses = self.clone(said, *self.latents(clip, features))

        # Posterior to prior. The prior is held still, so that each side is pulled at its own rate.
        said = said.rows(slice(len(z_BTZ)))
        assert said.log_std_Z is not None
        prior = ChunkMixture(said.mean_BMKZ.detach(), said.log_weight_BM.detach(), said.log_std_Z.detach())
        log_posterior_B = (-0.5 * noise_BTZ.square() - log_std_BTZ - HALF_LOG_TAU).sum((1, 2))
        divergence = (log_posterior_B - prior.log_prob(z_BTZ)).mean() / z_BTZ[0].numel()
        losses["posterior_kl"] = self.cfg.posterior_kl * divergence
        if not self.training:
            return mean_BTZ, losses

        # On some clips the world model runs on the prior's z, and the frame loss trains the policy as well.
        # The component is the one that the posterior points to: another would be told to say this future too.
        share_BM = (said.log_weight_BM + said.component_log_prob(mean_BTZ)).softmax(1).detach()
        prior_BTZ = said.take(torch.multinomial(share_BM, 1)[:, 0])
        prior_BTZ = prior_BTZ + said.log_std_Z.exp() * torch.randn_like(prior_BTZ)
        by_prior_B11 = torch.rand(len(z_BTZ), 1, 1, device=z_BTZ.device) < self.cfg.prior_share
        return torch.where(by_prior_B11, prior_BTZ, z_BTZ), losses


SOURCES: dict[str, type[PolicySource] | type[InverseSource]] = {
    "policy": PolicySource,
    "inverse": InverseSource,
    "variational": VariationalSource,
}
Phase = Literal["all", "world", "clone"]


class Recipe(nn.Module):
    """`recipe(clip) -> losses`, whose "loss" is their sum. `encoder` says z, `encoder.policy` is what
    fine-tuning starts from.

    `enter` chooses what is trained: all of it, or first z and the world model ("world") and then, with these
    at rest, the policy ("clone"): latents that keep changing are hard to imitate."""

    def __init__(self, cfg: RecipeConfig):
        super().__init__()
        self.cfg = cfg
        self.phase: Phase = "all"
        self.encoder: PolicySource | InverseSource = SOURCES[cfg.source](cfg, Baku(cfg.policy))
        self.world_model = Rssm(cfg.world_model, cfg.policy.size, len(cfg.policy.cameras), cfg.policy.latent)

    @property
    def policy(self) -> Baku:
        return self.encoder.policy

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        self.requires_grad_(phase != "clone")
        self.policy.requires_grad_(phase != "world")

    def forward(self, clip: Clip) -> Losses:
        assert clip.frames_BTVCHW.shape[1] == self.cfg.policy.chunk + 1, (
            "a clip holds one frame more than latents"
        )
        if self.phase == "clone":
            assert isinstance(self.encoder, InverseSource)
            losses = self.encoder.imitate(clip)
        else:
            # z of the clips that the world model trains on: the first ones
            z_BTZ, losses = self.encoder.infer(clip) if self.phase == "world" else self.encoder(clip)
            losses = losses | self.world_model.loss(clip.rows(slice(len(z_BTZ))), z_BTZ)
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **{k: v.detach() for k, v in losses.items()},
        }
