"""Recurrent state-space world model, in pixels.

The *open-loop path* is the one that predicts and the one that trains policy and latent-action encoder: its
state comes from x_t and z alone. It paints `mask * new + (1 - mask) * x_t`, so that what stands still costs
nothing and capacity goes where things move.

With `stochastic > 0` the state has Gaussian latents besides. A *posterior path*, which sees the later
frames, then trains encoder and decoder and tells the prior where to be; no state of it ever reaches the
open-loop path, whose latents come from the prior."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm_policy.layers import ConvNorm, masked_mean, mlp, pixels_last, stem_strides, to_unit
from lawm_policy.types import Clip, multiple, within

GRID = 16  # cells a side of the map that the decoder reads x_t from


@dataclass(frozen=True)
class RssmConfig:
    deter: int = 512  # recurrent state
    channels: int = 48  # of encoder and decoder at the finest grid
    stochastic: int = 0  # Gaussian latents; 0 is the deterministic default
    free_nats: float = 1.0
    kl_dynamics: float = 0.5  # pulls the prior to the posterior
    kl_representation: float = 0.1  # and the posterior to the prior
    moving_weight: float = 10.0  # of a pixel that moved, against 1 for one that did not
    moving_threshold: float = 0.06  # of full range, on the largest channel difference from x_t
    decode_steps: int = 0  # decode this many random steps of a clip in training (the last always); 0 is all

    def __post_init__(self) -> None:
        multiple(self, channels=16)
        weights = ("free_nats", "kl_dynamics", "kl_representation", "moving_weight")
        within(self, deter="[1, inf)", moving_threshold="[0, 1]", **dict.fromkeys(weights, "[0, inf)"))
        within(self, stochastic="[0, inf)", decode_steps="[0, inf)")


@dataclass(frozen=True)
class RssmState:
    """Opaque to callers. `deter_BTD` may hold many steps; what the decoder needs of x_t travels along."""

    deter_BTD: Tensor
    stoch_BTS: Tensor
    fine_BVCHW: Tensor  # encoder map at half the finest decoding grid
    frames_BVCHW: Tensor  # x_t, in [-0.5, 0.5]
    view_mask_BV: Tensor

    def steps(self, index: Tensor | slice) -> RssmState:
        return replace(self, deter_BTD=self.deter_BTD[:, index], stoch_BTS=self.stoch_BTS[:, index])


class Encoder(nn.Module):
    """Frames to a vector a view, and the 16-cell map that the decoder reads x_t from."""

    def __init__(self, cfg: RssmConfig, size: int, views: int):
        super().__init__()
        strides = stem_strides(size, GRID)
        widths = [3, *([cfg.channels // 2] * (len(strides) - 1)), cfg.channels]
        self.stem = nn.Sequential(
            *(
                ConvNorm(widths[i], widths[i + 1], s, kernel=5 if i == 0 else 3)
                for i, s in enumerate(strides)
            ),
        )
        self.coarse = ConvNorm(cfg.channels, cfg.channels, 2)
        self.flat = nn.Linear(cfg.channels * 64, cfg.deter)
        self.view_embedding_VD = nn.Parameter(0.02 * torch.randn(views, cfg.deter))

    def forward(self, frames_BVCHW: Tensor, view_mask_BV: Tensor) -> tuple[Tensor, Tensor]:
        b, v = frames_BVCHW.shape[:2]
        fine = self.stem(pixels_last(frames_BVCHW.flatten(0, 1)))
        view_BVD = self.flat(self.coarse(fine).flatten(1)).view(b, v, -1) + self.view_embedding_VD[:v]
        return masked_mean(view_BVD, view_mask_BV), fine.view(b, v, *fine.shape[1:])


class Decoder(nn.Module):
    def __init__(self, cfg: RssmConfig, size: int, views: int):
        super().__init__()
        c, state = cfg.channels, cfg.deter + cfg.stochastic
        self.view_embedding_VD = nn.Parameter(0.02 * torch.randn(views, state))
        self.start = nn.Linear(state, c * 64)
        self.join = ConvNorm(2 * c, c, condition=state)
        doublings = len(stem_strides(max(size, 32), 32))  # to half of `size`; the last is a pixel shuffle
        self.refine = nn.ModuleList()
        for _ in range(doublings):
            self.refine.append(ConvNorm(c, cfg.channels // 2, condition=state))
            c = cfg.channels // 2
        self.paint = nn.Conv2d(c, 16, 3, 1, 1)  # four sub-pixels of (mask, red, green, blue)
        nn.init.normal_(self.paint.weight, std=0.01)
        assert self.paint.bias is not None
        nn.init.zeros_(self.paint.bias)

    def forward(self, state_BTS: Tensor, fine_BVCHW: Tensor, frames_BVCHW: Tensor) -> Tensor:
        b, t, _ = state_BTS.shape
        v = frames_BVCHW.shape[1]
        state_NS = (state_BTS[:, :, None] + self.view_embedding_VD[:v]).flatten(0, 2)
        x = F.interpolate(self.start(state_NS).view(b * t * v, -1, 8, 8), scale_factor=2.0)
        skip = fine_BVCHW[:, None].expand(b, t, *fine_BVCHW.shape[1:]).flatten(0, 2)
        x = self.join(pixels_last(torch.cat([x, skip], dim=1)), state_NS)
        for block in self.refine:
            x = block(F.interpolate(x, scale_factor=2.0), state_NS)
        painted = F.pixel_shuffle(self.paint(x), 2).float().unflatten(0, (b, t, v))
        mask, new = (painted[:, :, :, :1] - 1.0).sigmoid(), painted[:, :, :, 1:]
        return mask * new + (1 - mask) * frames_BVCHW[:, None]


class Rssm(nn.Module):
    def __init__(self, cfg: RssmConfig, size: int, views: int, latent: int):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg, size, views)
        self.decoder = Decoder(cfg, size, views)
        self.read_latent = nn.Linear(latent, cfg.deter)
        self.cell = nn.GRUCell(cfg.deter + cfg.stochastic, cfg.deter)
        if cfg.stochastic:
            self.prior = mlp(cfg.deter, cfg.deter, 2 * cfg.stochastic)
            self.posterior = mlp(2 * cfg.deter, cfg.deter, 2 * cfg.stochastic)

    # The protocol: encode, rollout, decode, distance, loss.

    def encode(self, frames_BVCHW: Tensor, view_mask_BV: Tensor) -> RssmState:
        frames = to_unit(frames_BVCHW)
        deter_BD, fine = self.encoder(frames, view_mask_BV)
        stoch_BS = deter_BD.new_zeros(len(deter_BD), self.cfg.stochastic)
        return RssmState(deter_BD.tanh()[:, None], stoch_BS[:, None], fine, frames, view_mask_BV)

    def rollout(self, state: RssmState, z_BTZ: Tensor) -> RssmState:
        """States after each z, from the last step of `state`, by the prior alone."""
        deter, stoch = state.deter_BTD[:, -1], state.stoch_BTS[:, -1]
        deters, stochs = [], []
        for inputs in self.read_latent(z_BTZ).unbind(1):
            deter = self.cell(torch.cat([inputs, stoch], dim=-1), deter)
            if self.cfg.stochastic:
                stoch = self._draw(self.prior(deter))
            deters.append(deter)
            stochs.append(stoch)
        return replace(state, deter_BTD=torch.stack(deters, 1), stoch_BTS=torch.stack(stochs, 1))

    def decode(self, states: RssmState) -> Tensor:
        """(B, T, V, C, H, W) in [-0.5, 0.5]."""
        state_BTS = torch.cat([states.deter_BTD, states.stoch_BTS], dim=-1)
        return self.decoder(state_BTS, states.fine_BVCHW, states.frames_BVCHW)

    def distance(self, state: RssmState, goal: RssmState) -> Tensor:
        """(B,) how far the last step of `state` is from the last of `goal`."""
        return (state.deter_BTD[:, -1] - goal.deter_BTD[:, -1]).square().mean(-1)

    def loss(self, clip: Clip, z_BTZ: Tensor) -> dict[str, Tensor]:
        """Open-loop prediction of every frame after the first; beside it, with stochastic latents, the
        posterior path."""
        first = self.encode(clip.frames_BTVCHW[:, 0], clip.view_mask_BV)
        states = self.rollout(first, z_BTZ)
        steps = self._steps_to_decode(z_BTZ.shape[1], z_BTZ.device)
        target = to_unit(clip.frames_BTVCHW[:, 1:])
        painted = self.decode(states.steps(steps))
        losses = {"frames": self._frame_loss(painted, target[:, steps], first)}
        if self.cfg.stochastic:
            losses |= self._posterior_losses(first, target, z_BTZ, steps)
        return losses

    # Inside.

    def _steps_to_decode(self, steps: int, device: torch.device) -> Tensor:
        if not self.training or self.cfg.decode_steps in (0, steps):
            return torch.arange(steps, device=device)
        some = torch.randperm(steps - 1)[: self.cfg.decode_steps - 1].sort().values
        return torch.cat([some, torch.tensor([steps - 1])]).to(device)

    def _frame_loss(self, painted: Tensor, target: Tensor, first: RssmState) -> Tensor:
        weight = 1.0 + self.cfg.moving_weight * moved(target, first.frames_BVCHW, self.cfg.moving_threshold)
        weight = weight * first.view_mask_BV[:, None, :, None, None, None]
        error = (painted - target).abs() + 4.0 * (painted - target).square()
        # Each view counts alike: all of a wrist camera's pixels move, and few of a still one's.
        total_V, weight_V = (x.sum((0, 1, 3, 4, 5)) for x in (weight * error, weight.expand_as(error)))
        there_V = weight_V > 0
        return (total_V / weight_V.clamp_min(1.0)).sum() / there_V.sum()

    def _draw(self, params: Tensor) -> Tensor:
        mean, log_std = self._split(params)
        return mean + log_std.exp() * torch.randn_like(mean) if self.training else mean

    @staticmethod
    def _split(params: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = params.chunk(2, dim=-1)
        return mean, log_std.clamp(-4.0, 1.0)

    def _posterior_losses(
        self, first: RssmState, target: Tensor, z_BTZ: Tensor, steps: Tensor
    ) -> dict[str, Tensor]:
        b, t = target.shape[:2]
        mask_NV = first.view_mask_BV.repeat_interleave(t, dim=0)
        seen_BTD = self.encoder(target.flatten(0, 1), mask_NV)[0].view(b, t, -1)
        inputs_BTD = self.read_latent(z_BTZ.detach())  # it has seen later frames: nothing of it trains z
        deter, stoch = first.deter_BTD[:, -1], first.stoch_BTS[:, -1]
        deters, stochs, divergences = [], [], []
        for k in range(t):
            deter = self.cell(torch.cat([inputs_BTD[:, k], stoch], dim=-1), deter)
            prior = self.prior(deter)
            posterior = self.posterior(torch.cat([deter, seen_BTD[:, k]], dim=-1))
            divergences.append(
                self.cfg.kl_dynamics * self._kl(posterior.detach(), prior)
                + self.cfg.kl_representation * self._kl(posterior, prior.detach())
            )
            stoch = self._draw(posterior)
            deters.append(deter)
            stochs.append(stoch)
        states = replace(first, deter_BTD=torch.stack(deters, 1), stoch_BTS=torch.stack(stochs, 1))
        painted = self.decode(states.steps(steps))
        return {
            "posterior_frames": self._frame_loss(painted, target[:, steps], first),
            "posterior_kl": torch.stack(divergences).mean() / self.cfg.stochastic,
        }

    def _kl(self, p: Tensor, q: Tensor) -> Tensor:
        (mean_p, log_p), (mean_q, log_q) = self._split(p), self._split(q)
        variance = (2 * log_p).exp() + (mean_p - mean_q).square()
        nats = (log_q - log_p + 0.5 * variance * (-2 * log_q).exp() - 0.5).sum(-1)
        return nats.clamp_min(self.cfg.free_nats).mean()


def moved(frames_BTVCHW: Tensor, first_BVCHW: Tensor, threshold: float) -> Tensor:
    """(B, T, V, 1, H, W) 1.0 where a pixel differs from x_t by more than `threshold` of the full range."""
    difference = (frames_BTVCHW - first_BVCHW[:, None]).abs().amax(3, keepdim=True)
    return (difference > threshold).to(frames_BTVCHW.dtype)
