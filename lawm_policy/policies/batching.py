"""One policy for many simulators: it answers up to `width` of them at a time.

Every batch is filled up to the same width, so what one simulator is told does not depend on who else asks:
the same kernels do the same sums, row by row. (Results at another width differ in their last bits.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lawm_policy.types import Observation, UserError


class Batcher:
    """`batcher(observations)` is one chunk of commands for each."""

    def __init__(self, actor: Any, width: int, device: str) -> None:
        if not (hasattr(actor, "act_batch") and hasattr(actor, "ensemble")):
            raise UserError(
                f"expected a policy with `act_batch` and `ensemble` for --batch {width}, found "
                f"{type(actor).__name__}: leave --batch out, and each worker has a policy of its own"
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("expected a GPU for --device cuda, found none: leave --device out")
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.set_num_threads(1)  # sums depend on the number of threads
        self.actor, self.width = actor.to(device) if device != "cpu" else actor, width

    @torch.no_grad()  # whoever calls: a thread has settings of its own
    def __call__(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        chunks: list[np.ndarray] = []
        for first in range(0, len(observations), self.width):
            some = list(observations[first : first + self.width])
            filled = some + [some[-1]] * (self.width - len(some))
            chunks += list(self.actor.act_batch(filled)[: len(some)])
        return chunks
