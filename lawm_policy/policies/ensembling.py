"""Temporal ensembling (as in ACT): averages a chunk with what earlier ones said of the same moments. Without
torch, so that a simulator can do it for a policy that sits elsewhere."""

from __future__ import annotations

from collections import deque

import numpy as np


class Ensemble:
    """Of one episode: up to `chunks` chunks overlap, one every `execute` commands. The oldest weighs most,
    the i-th exp(-rate * i); it smooths the seams. A rate of 0 executes the newest chunk alone."""

    def __init__(self, rate: float, chunks: int, execute: int) -> None:
        self.rate, self.chunks, self.execute = rate, chunks, execute
        self._past: deque[np.ndarray] = deque(maxlen=chunks)

    def __call__(self, chunk_NA: np.ndarray) -> np.ndarray:
        if not self.rate:
            return chunk_NA
        self._past.append(chunk_NA)
        total = np.zeros_like(chunk_NA)
        weight_N1 = np.zeros((len(chunk_NA), 1), dtype=chunk_NA.dtype)
        for i, past_NA in enumerate(self._past):
            offset = (len(self._past) - 1 - i) * self.execute
            rows = max(len(chunk_NA) - offset, 0)
            weight = np.float32(np.exp(-self.rate * i))
            total[:rows] += weight * past_NA[offset : offset + rows]
            weight_N1[:rows] += weight
        return total / weight_N1

    def fresh(self) -> Ensemble:
        """With the same numbers and no past."""
        return Ensemble(self.rate, self.chunks, self.execute)
