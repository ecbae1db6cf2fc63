"""From pixels to one token a view, listening to the instruction.

All views share the weights: a video from one camera trains what the others use too. Which view it is
enters as one more condition beside the words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lawm_policy.layers import ConvNorm, SpatialSoftmax, pixels_last, stem_strides, to_unit
from lawm_policy.types import multiple, within


@dataclass(frozen=True)
class TrunkConfig:
    channels: int = 64
    grid: int = 16  # cells a side where the keypoints are read
    map_channels: int = 16  # of the small strided map that keeps the layout

    def __post_init__(self) -> None:
        multiple(self, channels=16, grid=2)
        within(self, map_channels="[1, inf)")


class ViewTrunk(nn.Module):
    def __init__(self, cfg: TrunkConfig, size: int, views: int, language: int, width: int):
        super().__init__()
        strides = stem_strides(size, cfg.grid)
        widths = [3, *([cfg.channels // 2] * (len(strides) - 1)), cfg.channels]
        stem: list[nn.Module] = []
        for i, stride in enumerate(strides):
            stem.append(ConvNorm(widths[i], widths[i + 1], stride, kernel=5 if i == 0 else 3))
        self.stem = nn.Sequential(*stem)
        self.listen = nn.ModuleList(
            ConvNorm(cfg.channels, cfg.channels, condition=language) for _ in range(2)
        )
        self.view_embedding_VL = nn.Parameter(0.02 * torch.randn(views, language))
        self.where = SpatialSoftmax(cfg.channels)
        self.layout = nn.Conv2d(cfg.channels, cfg.map_channels, 3, 2, 1)
        features = 3 * cfg.channels + cfg.map_channels * (cfg.grid // 2) ** 2
        self.out = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width))

    def forward(self, frames_BVCHW: Tensor, language_BL: Tensor) -> Tensor:
        b, v = frames_BVCHW.shape[:2]
        condition = (language_BL[:, None] + self.view_embedding_VL[:v]).flatten(0, 1)
        x = self.stem(pixels_last(to_unit(frames_BVCHW.flatten(0, 1))))
        for block in self.listen:
            x = x + block(x, condition)
        features = torch.cat([self.where(x), x.mean((2, 3)), self.layout(x).flatten(1)], dim=1)
        return self.out(features).view(b, v, -1)
