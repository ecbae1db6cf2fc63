"""What `fit` carries from step to step: averaged weights, random numbers, the optimiser, the logs."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from lawm_policy.types import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that learn at `lr_multiplier` times the rate of the rest."""

    name: str
    params: Sequence[nn.Parameter]
    lr_multiplier: float = 1.0


def keep_freed_memory() -> None:
    """Has glibc keep the large blocks that each step frees, instead of giving them to the kernel and faulting
    them in again page by page: a third of a training step on a CPU."""
    with suppress(AttributeError, OSError):  # another C library manages without
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_MAX, 0)


def seed_everything(seed: int, step: int, rank: int) -> None:
    """Makes all random numbers of one step a function of (seed, step, rank).

    So the state of the generators need not be stored: a resumed run, or one that validated in
    between, draws the same numbers.
    """
    words = np.random.SeedSequence((seed, step, rank)).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 (for libraries that still use it)
    random.seed(int(words[2]))


def lr_fraction(step: int, steps: int, warmup: int, schedule: str, final: float) -> float:
    """The learning rate at `step` (1 is the first) as a fraction of its peak."""
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(steps - warmup, 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_optimizer(groups: Sequence[ParamGroup], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) are not decayed."""
    made: list[dict[str, Any]] = []
    for group in groups:
        params = [p for p in group.params if p.requires_grad]
        matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
        for part, amount in ((matrices, weight_decay), (vectors, 0.0)):
            if part:
                named = {"name": group.name, "lr_multiplier": group.lr_multiplier}
                made.append({"params": part, "weight_decay": amount, "lr": lr, **named})
    if not made:
        raise UserError("expected parameters to train, found none: unfreeze a part")
    return torch.optim.AdamW(made, betas=(0.9, 0.95), fused=any(p.is_cuda for g in made for p in g["params"]))


class Average:
    """An exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.weights = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # the first steps are not worth remembering
        own = [p.detach() for _, p in self.module.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), own, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with averaged weights inside the block, with its own after it."""
        kept = {n: p.detach().clone() for n, p in self.module.named_parameters()}
        self._copy(self.weights)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.copy_(weights[name])


class Prefetch:
    """Runs `batches(i)` a few steps ahead in a thread; order and values are those of plain calls."""

    def __init__(self, batches: Callable[[int], Any], start: int, stop: int, ahead: int = 2) -> None:
        self._batches, self._next, self._stop = batches, start, stop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._waiting: list[Future[Any]] = []
        for _ in range(ahead):
            self._submit()

    def _submit(self) -> None:
        if self._next < self._stop:
            self._waiting.append(self._pool.submit(self._batches, self._next))
            self._next += 1

    def get(self) -> Any:
        batch = self._waiting.pop(0).result()
        self._submit()
        return batch

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Log:
    """`metrics.jsonl` (one line a record) and TensorBoard events; a resumed log ends at its step."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "metrics.jsonl"
        truncate_after(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(finite) + "\n")  # JSON has no NaN
        self._file.flush()
        split, step = record["split"], record["step"]
        for key, value in record.items():
            if isinstance(value, (int, float)) and key != "step":
                self._board.add_scalar(f"{split}/{key}", value, step)

    def sync(self) -> None:
        """On the disk before a checkpoint that claims this step."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._board.close()


def truncate_after(path: Path, step: int) -> None:
    """Drops records after `step` and a last line that a kill cut short."""
    if not path.exists():
        return
    kept = 0
    with path.open("r+b") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                past = json.loads(line)["step"] > step
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"expected a record in line {number} of {path}, found it damaged: remove the line"
                ) from None
            if past:
                break
            kept += len(line)
        file.truncate(kept)


@contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the loop can save before it ends."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def model_card(meta: Mapping[str, Any]) -> str:
    """What someone who finds this folder needs to know."""
    training = meta["training"]
    held_out = (
        f"{training['best_metric']:.6g} (step {training['best_step']})"
        if training["best_step"]
        else "not measured"
    )
    kind = meta.get("kind", "model")
    source = meta.get("config", {}).get("recipe", {}).get("source")
    return "\n".join(
        [
            "---",
            "library_name: lawm_policy",
            "tags: [robotics, latent-actions]",
            "---",
            f"# A {kind} checkpoint",
            "",
            *([f"Source of its latents: {source}."] if source else []),
            f"Updates: {training['step']}. Best held-out loss: {held_out}.",
            f"`model.safetensors` holds the weights to use ({training['weights']} of training).",
            "`meta.json`: configuration, statistics, data; `manifest.json`: the SHA-256 of each file.",
            "",
            "Trained on the data named there only; it knows no other robot, camera or task.",
            "",
            "```python",
            "import lawm_policy as lp",
            f'lp.{"load_policy" if kind == "finetuned" else "load_pretrained"}("path/of/this/folder")',
            "```",
        ]
    )


# Batches are dataclasses or mappings; the first dimension of their tensors is the batch -----------


def _items(batch: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    assert isinstance(batch, Mapping), f"a batch is a dataclass or a mapping, not {type(batch)}"
    return dict(batch)


def _with(batch: Any, items: dict[str, Any]) -> Any:
    return items if isinstance(batch, Mapping) else dataclasses.replace(batch, **items)


def batch_length(batch: Any) -> int:
    return next(v.shape[0] for v in _items(batch).values() if isinstance(v, Tensor) and v.ndim)


def part_of(length: int, index: int, parts: int) -> slice:
    """The rows of part `index` of `parts` equal parts."""
    if length % parts:
        raise UserError(
            f"expected a batch_size that processes x accumulate ({parts}) divides, found {length}: change it"
        )
    return slice(index * length // parts, (index + 1) * length // parts)


def slice_batch(batch: Any, index: int, parts: int) -> Any:
    """Part `index` of `parts` equal parts: rows of the tensors, items of tuples as long as the batch."""
    if parts == 1:
        return batch
    length = batch_length(batch)
    rows = part_of(length, index, parts)

    def cut(value: Any) -> Any:
        sized = value.ndim > 0 if isinstance(value, Tensor) else isinstance(value, (tuple, list))
        return value[rows] if sized and len(value) == length else value

    return _with(batch, {k: cut(v) for k, v in _items(batch).items()})


def own_part(
    batches: Callable[[int], Any],
    share: Callable[[int, slice], Any] | None,
    size: int,
    accelerator: Accelerator,
) -> Callable[[int], Any]:
    """This process's part of each batch of `size`: fetched alone with `share`, else cut from the whole."""
    index, processes = accelerator.process_index, accelerator.num_processes
    if share is None or processes == 1:
        return lambda i: slice_batch(batches(i), index, processes)
    rows = part_of(size, index, processes)
    return lambda i: share(i, rows)


def move(batch: Any, device: torch.device) -> Any:
    items = _items(batch)
    moved = {k: v.to(device, non_blocking=True) for k, v in items.items() if isinstance(v, Tensor)}
    return _with(batch, {**items, **moved})


def pin(batch: Any) -> Any:
    """In memory that a GPU reads without waiting for the processor."""
    items = _items(batch)
    pinned = {k: v.pin_memory() for k, v in items.items() if isinstance(v, Tensor)}
    return _with(batch, {**items, **pinned})


def count_frames(batch: Any) -> int:
    """Images in a batch: present views times their steps; 0 for a batch without images."""
    items = _items(batch)
    if "view_mask_BV" not in items:
        return 0
    return int(items["view_mask_BV"].sum()) * (
        items["frames_BTVCHW"].shape[1] if "frames_BTVCHW" in items else 1
    )


def keep_batch(batch: Any, folder: Path, step: int) -> Path:
    """The batch as `batch-STEP.safetensors`, with what is not a tensor in its metadata."""
    items = _items(batch)
    tensors = {k: v.detach().cpu().contiguous() for k, v in items.items() if isinstance(v, Tensor)}
    rest = {k: json.dumps(v, default=str) for k, v in items.items() if not isinstance(v, Tensor)}
    path = folder / f"batch-{step:08d}.safetensors"
    save_file(tensors, path, metadata=rest)
    return path
