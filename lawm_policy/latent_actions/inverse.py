"""The inverse model: from a frame and the next one, what was done between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lawm_policy.latent_actions.bottlenecks import BOTTLENECKS, BottleneckConfig, KLBottleneck, NoBottleneck
from lawm_policy.layers import ConvNorm, masked_mean, mlp, pixels_last, stem_strides, to_unit
from lawm_policy.types import Clip, multiple, within


@dataclass(frozen=True)
class InverseConfig:
    channels: int = 48
    grid: int = 8
    width: int = 256
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    disguise: bool = False  # in training, exchange the colours of what it sees, clip by clip

    def __post_init__(self) -> None:
        multiple(self, channels=16)
        within(self, grid="[1, inf)", width="[1, inf)")


class InverseEncoder(nn.Module):
    """Reads [x_k, x_{k+1} - x_k]: the difference, and not the next frame itself, leaves less to smuggle.

    z_k sees frames k and k+1 only, never the instruction."""

    def __init__(self, cfg: InverseConfig, size: int, views: int, latent: int):
        super().__init__()
        strides = stem_strides(size, cfg.grid)
        widths = [6, *([cfg.channels // 2] * (len(strides) - 1)), cfg.channels]
        layers = [
            ConvNorm(a, b, stride, kernel=5 if i == 0 else 3)
            for i, (a, b, stride) in enumerate(zip(widths[:-1], widths[1:], strides, strict=True))
        ]
        self.cfg = cfg
        self.stem = nn.Sequential(*layers, ConvNorm(cfg.channels, cfg.channels))
        self.view_embedding_VD = nn.Parameter(0.02 * torch.randn(views, cfg.width))
        self.flat = nn.Linear(cfg.channels * cfg.grid**2, cfg.width)
        self.mix = nn.Sequential(nn.LayerNorm(cfg.width), mlp(cfg.width, cfg.width, cfg.width), nn.SiLU())
        self.bottleneck: KLBottleneck | NoBottleneck = BOTTLENECKS[cfg.bottleneck.kind](
            cfg.bottleneck, cfg.width, latent
        )

    def features(self, clip: Clip) -> Tensor:
        frames = to_unit(clip.frames_BTVCHW)
        if self.training and self.cfg.disguise:
            frames = disguise(frames)
        pairs = torch.cat([frames[:, :-1], frames[:, 1:] - frames[:, :-1]], dim=3)
        b, t, v = pairs.shape[:3]
        x = self.stem(pixels_last(pairs.flatten(0, 2)))
        x_NVD = self.flat(x.flatten(1)).view(b * t, v, -1) + self.view_embedding_VD[:v]
        mask_NV = clip.view_mask_BV.repeat_interleave(t, dim=0)
        return self.mix(masked_mean(x_NVD, mask_NV)).view(b, t, -1)

    def infer(self, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        """T frames to T-1 latents."""
        return self.bottleneck(self.features(clip), clip)


def disguise(frames_BTVCHW: Tensor) -> Tensor:
    """Exchanges the colour channels of each clip, and inverts some, alike in all of its frames and views.

    What the world model predicts keeps its colours: z cannot name them, and is left with what moved."""
    b, device = len(frames_BTVCHW), frames_BTVCHW.device
    order_BC = torch.rand(b, 3, device=device).argsort(1)
    sign_BC = 1.0 - 2.0 * torch.randint(0, 2, (b, 3), device=device).to(frames_BTVCHW.dtype)
    index = order_BC[:, None, None, :, None, None].expand_as(frames_BTVCHW)
    return frames_BTVCHW.gather(3, index) * sign_BC[:, None, None, :, None, None]
