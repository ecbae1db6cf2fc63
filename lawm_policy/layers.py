"""Blocks that at least two models share. Shapes as in `types.py`; D and E are feature widths."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lawm_policy.types import UserError


def to_unit(frames: Tensor) -> Tensor:
    """uint8 images to floats in [-0.5, 0.5], the range that every network here reads and paints."""
    return frames.float().mul_(1.0 / 255.0).sub_(0.5)


def pixels_last(x_NCHW: Tensor) -> Tensor:
    """The same numbers, the channels of a pixel side by side: convolutions and what follows them are then
    faster on a CPU."""
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def mlp(*widths: int, final_norm: bool = False) -> nn.Sequential:
    """Linear layers with SiLU between them (none after the last)."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        if i:
            layers.append(nn.SiLU())
        layers.append(nn.Linear(a, b))
    if final_norm:
        layers.append(nn.LayerNorm(widths[-1]))
    return nn.Sequential(*layers)


class ConvNorm(nn.Module):
    """3x3 convolution, GroupNorm, an optional feature-wise modulation (FiLM), SiLU.

    The modulation starts near the identity, but not so near that the condition is learnt late."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, kernel: int = 3, condition: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.GroupNorm(min(8, c_out), c_out)
        self.film = nn.Linear(condition, 2 * c_out) if condition else None
        if self.film is not None:
            nn.init.normal_(self.film.weight, std=0.05)
            nn.init.zeros_(self.film.bias)

    def forward(self, x_NCHW: Tensor, condition_NE: Tensor | None = None) -> Tensor:
        x_NCHW = self.norm(self.conv(x_NCHW))
        if self.film is not None:
            assert condition_NE is not None, "this block was built to be conditioned"
            scale, shift = self.film(condition_NE).to(x_NCHW.dtype)[..., None, None].chunk(2, dim=1)
            x_NCHW = torch.addcmul(shift, x_NCHW, 1 + scale)  # one pass: on a CPU these maps are memory-bound
        return F.silu(x_NCHW)


def stem_strides(size: int, grid: int) -> list[int]:
    """How many stride-2 convolutions bring `size` pixels down to a `grid` of cells."""
    strides = []
    while size > grid:
        size //= 2
        strides.append(2)
    assert size == grid, "check_size lets no other pass"
    return strides


def check_size(size: int, grid: int, key: str, whose: str) -> None:
    """Refuses an image size (`key`) that halving does not bring to a grid (which `whose` names)."""
    if size % grid or size == grid or (size // grid).bit_count() != 1:
        choices = ", ".join(str(grid * 2**k) for k in range(1, 5))
        raise UserError(
            f"expected {key} among {choices}, ... ({whose} {grid}, doubled), found {size}: change one of them"
        )


def masked_mean(x_BVD: Tensor, mask_BV: Tensor) -> Tensor:
    """Mean over the views that are there. At least one must be: datasets guarantee it."""
    weight_BV1 = mask_BV[..., None].to(x_BVD.dtype)
    return (x_BVD * weight_BV1).sum(1) / weight_BV1.sum(1).clamp_min(1.0)


class SpatialSoftmax(nn.Module):
    """Where each channel fires: its expected (row, column) in [-1, 1] under a softmax over space."""

    def __init__(self, channels: int):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        n, c, h, w = x_NCHW.shape
        logits = (x_NCHW * self.log_temperature.exp()[:, None, None]).flatten(2)
        weight_NCHW = logits.softmax(-1).view(n, c, h, w)
        rows = torch.linspace(-1, 1, h, device=x_NCHW.device, dtype=weight_NCHW.dtype)
        columns = torch.linspace(-1, 1, w, device=x_NCHW.device, dtype=weight_NCHW.dtype)
        row_NC = (weight_NCHW.sum(3) * rows).sum(-1)
        column_NC = (weight_NCHW.sum(2) * columns).sum(-1)
        return torch.cat([row_NC, column_NC], dim=1)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BND: Tensor, mask: Tensor) -> Tensor:
        """`mask` is boolean, broadcastable to (B, heads, N, N); True where a query may look."""
        b, n, d = x_BND.shape
        qkv = self.qkv(self.norm_attention(x_BND)).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        x_BND = x_BND + self.out(y.transpose(1, 2).reshape(b, n, d))
        return x_BND + F.dropout(self.mlp(self.norm_mlp(x_BND)), dropout, self.training)
