"""Instructions to vectors.

By default a small encoder of our own: hashed word n-grams and a learnt table, nothing to download.
Any `transformers` text encoder can take its place by name; it is frozen, and each sentence is encoded once.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lawm_policy.types import UserError, within


@dataclass(frozen=True)
class LanguageConfig:
    encoder: str = "ngrams"  # "ngrams", or the name or folder of a transformers text encoder
    width: int = 128
    buckets: int = 4096  # n-grams only
    max_n: int = 3  # longest run of words that has a vector of its own

    def __post_init__(self) -> None:
        within(self, width="[1, inf)", buckets="[2, inf)", max_n="[1, inf)")


def ngram_buckets(text: str, max_n: int, buckets: int) -> list[int]:
    """Table rows of a sentence's word 1..max_n-grams. Row 0 is the null token, for no text at all.

    CRC-32 and not `hash()`: the same sentence must find the same rows in every process, for ever."""
    words = re.findall(r"[\w']+", text.lower())
    grams = [" ".join(words[i : i + n]) for n in range(1, max_n + 1) for i in range(len(words) - n + 1)]
    return [1 + zlib.crc32(gram.encode()) % (buckets - 1) for gram in grams] or [0]


class NgramEncoder(nn.Module):
    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.cfg = cfg
        self.table = nn.EmbeddingBag(cfg.buckets, cfg.width, mode="mean")
        # Normalised at both ends: a mean over twenty n-grams is faint, and whoever listens to a faint voice
        # learns late that it says which block is meant.
        self.project = nn.Sequential(
            nn.LayerNorm(cfg.width),
            nn.Linear(cfg.width, cfg.width),
            nn.SiLU(),
            nn.Linear(cfg.width, cfg.width),
            nn.LayerNorm(cfg.width),
        )
        self._rows: dict[str, list[int]] = {}

    def rows(self, text: str) -> list[int]:
        if text not in self._rows:
            self._rows[text] = ngram_buckets(text, self.cfg.max_n, self.cfg.buckets)
        return self._rows[text]

    def forward(self, text: tuple[str, ...]) -> Tensor:
        bags = [self.rows(t) for t in text]
        device = self.table.weight.device
        starts = torch.tensor([0, *(len(b) for b in bags[:-1])]).cumsum(0)
        flat = torch.tensor([row for bag in bags for row in bag])
        return self.project(self.table(flat.to(device), starts.to(device)))


class PretrainedEncoder(nn.Module):
    """A frozen transformers encoder, mean-pooled, with a learnt projection and a learnt null vector.

    Its weights stay out of the checkpoint: they are named there and loaded from where they came."""

    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.cfg = cfg
        self._frozen: tuple[Any, Any] = self._load(cfg.encoder)  # a tuple, so that it is no submodule
        self.project = nn.Sequential(
            nn.Linear(self._frozen[1].config.hidden_size, cfg.width), nn.LayerNorm(cfg.width)
        )
        self.null = nn.Parameter(torch.zeros(cfg.width))
        self._cache: dict[str, Tensor] = {}

    @staticmethod
    def _load(name: str) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"expected a transformers text encoder with safetensors at '{name}', found none ({reason}): "
                "give a folder or a name that is already downloaded, or set language.encoder=ngrams"
            ) from error
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        return tokenizer, model.eval().requires_grad_(False)

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        if text not in self._cache:
            tokenizer, model = self._frozen
            tokens = tokenizer(text, return_tensors="pt", truncation=True)
            self._cache[text] = model(**tokens).last_hidden_state.mean(1)[0].float()
        return self._cache[text]

    def forward(self, text: tuple[str, ...]) -> Tensor:
        device = self.null.device
        rows = [self.project(self._encode(t).to(device)) if t.strip() else self.null for t in text]
        return torch.stack(rows)


def build_language(cfg: LanguageConfig) -> nn.Module:
    """`module(text: tuple[str, ...]) -> (B, width)`."""
    return NgramEncoder(cfg) if cfg.encoder == "ngrams" else PretrainedEncoder(cfg)
