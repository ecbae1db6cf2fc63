"""BAKU-like policy: language and view tokens, a causal transformer, a chunk of latents out.

Proprioception does not enter here: videos have none, so all of this file can be trained by them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lawm_policy.data.language import LanguageConfig, build_language
from lawm_policy.layers import TransformerBlock, check_size
from lawm_policy.policies.heads import ChunkHead, ChunkMixture
from lawm_policy.policies.trunk import TrunkConfig, ViewTrunk
from lawm_policy.types import UserError, each_once, within


@dataclass(frozen=True)
class BakuConfig:
    size: int = 64  # pixels a side
    cameras: tuple[str, ...] = ("front", "wrist")
    chunk: int = 6  # latents
    latent: int = 32
    width: int = 256
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    components: int = 5  # of the mixture over chunks; 1 is plain regression
    density: bool = True  # the head can clone latents by likelihood
    language: LanguageConfig = field(default_factory=LanguageConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)

    def __post_init__(self) -> None:
        within(
            self, **dict.fromkeys(("chunk", "latent", "width", "layers", "heads", "components"), "[1, inf)")
        )
        within(self, dropout="[0, 1)")
        check_size(self.size, self.trunk.grid, "size", "trunk.grid")
        if self.width % self.heads:
            raise UserError(
                f"expected width to be a multiple of heads, which is {self.heads}, found {self.width}: "
                "change one of them"
            )
        each_once(self, "cameras")


@dataclass(frozen=True)
class PolicyOutput:
    mixture: ChunkMixture
    query_BKD: Tensor  # one token a latent, for an action head that is not the latent one
    view_BVD: Tensor  # what the trunk saw, for the controller


class Baku(nn.Module):
    def __init__(self, cfg: BakuConfig):
        super().__init__()
        self.cfg = cfg
        views = len(cfg.cameras)
        self.language = build_language(cfg.language)
        self.trunk = ViewTrunk(cfg.trunk, cfg.size, views, cfg.language.width, cfg.width)
        self.language_token = nn.Linear(cfg.language.width, cfg.width)
        self.position_ND = nn.Parameter(0.02 * torch.randn(1 + views + cfg.chunk, cfg.width))
        self.blocks = nn.ModuleList(
            TransformerBlock(cfg.width, cfg.heads, cfg.dropout) for _ in range(cfg.layers)
        )
        self.norm = nn.LayerNorm(cfg.width)
        self.head = ChunkHead(cfg.width, cfg.latent, cfg.components, cfg.density)

    def forward(self, frames_BVCHW: Tensor, view_mask_BV: Tensor, text: tuple[str, ...]) -> PolicyOutput:
        b, v = view_mask_BV.shape
        language_BL = self.language(text)
        view_BVD = self.trunk(frames_BVCHW, language_BL) * view_mask_BV[..., None]
        context = torch.cat([self.language_token(language_BL)[:, None], view_BVD], dim=1)
        queries = context.new_zeros(b, self.cfg.chunk, self.cfg.width)
        x_BND = torch.cat([context, queries], dim=1) + self.position_ND
        mask = self._may_look(view_mask_BV)
        for block in self.blocks:
            x_BND = block(x_BND, mask)
        query_BKD = self.norm(x_BND[:, 1 + v :])
        return PolicyOutput(self.head(query_BKD), query_BKD, view_BVD)

    def _may_look(self, view_mask_BV: Tensor) -> Tensor:
        """(B, 1, N, N): context sees the context, each query the context and the queries up to itself,
        nobody an absent view (but a token may always see itself, or its softmax would be empty)."""
        b, v = view_mask_BV.shape
        n = 1 + v + self.cfg.chunk
        device = view_mask_BV.device
        order = torch.ones(n, n, dtype=torch.bool, device=device).tril()
        order[: 1 + v, : 1 + v] = True
        there = torch.ones(b, n, dtype=torch.bool, device=device)
        there[:, 1 : 1 + v] = view_mask_BV
        itself = torch.eye(n, dtype=torch.bool, device=device)
        return ((order & there[:, None, :]) | itself)[:, None]
