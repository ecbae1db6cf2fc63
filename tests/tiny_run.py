"""A training run of a second, as a module for tests and as a program to be killed.

python tests/tiny_run.py OUT [--steps N] [--seconds S a step] [--resume] [--share] [key=value ...]
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lawm_policy import checkpoint, config
from lawm_policy.training import FitResult, TrainConfig, fit
from lawm_policy.types import Batch


@dataclass(frozen=True)
class Pairs(Batch):
    x_BN: Tensor
    y_B1: Tensor
    view_mask_BV: Tensor
    text: tuple[str, ...]


class Tiny(nn.Module):
    """Dropout makes its loss depend on the random numbers of the step."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(16, 1)

    def forward(self, batch: Pairs) -> dict[str, Tensor]:
        error = self.head(self.trunk(batch.x_BN)).float() - batch.y_B1
        return {"loss": (error**2).mean(), "absolute": error.abs().mean()}


def batch(index: int, size: int = 8) -> Pairs:
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(index))
    mask = torch.ones(size, 2, dtype=torch.bool)
    return Pairs(x, x[:, :3].sum(1, keepdim=True), mask, tuple(f"row {i}" for i in range(size)))


def train(
    out: Path,
    *,
    resume: bool = False,
    model: Tiny | None = None,
    batches: Callable[[int], Any] = batch,
    fit_options: dict[str, Any] | None = None,
    **changes: Any,
) -> FitResult:
    model = model or Tiny()
    plain = {
        "steps": 12,
        "batch_size": 8,
        "log_every": 1,
        "save_every": 3,
        "eval_every": 4,
        "ema": 0.9,
        "lr": 1e-2,
    }
    cfg = TrainConfig(**{**plain, "warmup": 3, **changes})

    def validate() -> dict[str, float]:
        return {k: float(v) for k, v in model(batch(10**6, 64)).items()}

    options = {"validate": validate, "metadata": {"kind": "tiny"}, **(fit_options or {})}
    return fit(model, batches, cfg, out, resume=resume, **options)


def losses(out: Path) -> list[dict[str, Any]]:
    """The log without what clocks say."""
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if "second" not in k} for r in records]


def weights(out: Path, name: str = "model", which: str = "last") -> dict[str, Tensor]:
    return checkpoint.load(out, which=which).tensors(name)


class Killed(BaseException):
    """Stands for a death that no handler sees."""


def killed_at(index: int) -> Any:
    def batches(i: int) -> Pairs:
        if i == index:
            raise Killed
        return batch(i)

    return batches


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--share", action="store_true", help="each process makes its rows alone")
    parser.add_argument("changes", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    changes = {k: config.parse_yaml(v, k) for k, _, v in (c.partition("=") for c in args.changes)}

    def slow(index: int) -> Pairs:
        time.sleep(args.seconds)
        print("batch", index, flush=True)
        return batch(index)

    def share(index: int, rows: slice) -> Pairs:
        print(f"rows {rows.start}-{rows.stop} of {index}", flush=True)
        return batch(index).rows(rows)

    options = {"share": share} if args.share else {}
    done = train(
        args.out,
        resume=args.resume,
        batches=slow,
        model=Tiny(args.dropout),
        fit_options=options,
        **changes,
    )
    print(done.stopped, flush=True)


if __name__ == "__main__":
    main()
