"""fit(): the one optimisation loop, on a CPU, a GPU or several; killed anywhere, it resumes exactly.

Exact resumption rests on three things: batches are a function of the step, random numbers are
seeded from (seed, step, process), and everything else is in the checkpoint.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from lawm_policy import checkpoint, config
from lawm_policy.console import progress
from lawm_policy.training_state import (
    Average,
    Log,
    ParamGroup,
    Prefetch,
    count_frames,
    keep_batch,
    keep_freed_memory,
    lr_fraction,
    make_optimizer,
    model_card,
    move,
    own_part,
    pin,
    seed_everything,
    sigterm,
    slice_batch,
)
from lawm_policy.types import UserError, within

__all__ = ["FitResult", "ParamGroup", "TrainConfig", "fit"]

StepFn = Callable[[nn.Module, Any], Mapping[str, Tensor]]


class Stateful(Protocol):
    """Anything else whose state a resumed run needs, e.g. an adversary's optimiser."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class TrainConfig:
    """How to optimise. A step is one update on one batch of `batch_size` (over all processes)."""

    steps: int = 1000
    batch_size: int = 16
    lr: float = 3e-4
    weight_decay: float = 0.01
    warmup: int = 50  # steps
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr_fraction: float = 0.05
    clip_norm: float = 1.0  # 0: no clipping
    ema: float = 0.0  # decay of the weights' average; 0: off
    precision: Literal["auto", "no", "bf16"] = "no"  # auto: bf16 where the hardware computes in it
    accumulate: int = 1  # parts a batch is cut into to save memory; noise is drawn for each part
    log_every: int = 10
    eval_every: int = 0  # 0: only at the end
    save_every: int = 200
    keep_last: int = 2
    patience: int = 0  # evaluations without improvement before stopping; 0: never
    seed: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep_last")
        or_none = ("warmup", "eval_every", "patience", "weight_decay", "clip_norm")
        within(self, **dict.fromkeys(counts, "[1, inf)"), **dict.fromkeys(or_none, "[0, inf)"))
        within(self, lr="(0, inf)", ema="[0, 1)", final_lr_fraction="[0, 1]", seed="[0, 1e18]")
        if self.batch_size % self.accumulate:
            found = f"{self.accumulate} for {self.batch_size}"
            raise UserError(f"expected accumulate to divide batch_size, found {found}: change one")
        if self.patience and not self.eval_every:
            raise UserError(f"expected eval_every > 0 with patience {self.patience}, found 0: set eval_every")


@dataclass(frozen=True)
class FitResult:
    step: int
    best_step: int | None
    best_metric: float | None  # held-out loss
    seconds: float  # over all resumed parts
    stopped: Literal["done", "early", "sigterm"]

    def __str__(self) -> str:
        how = {"done": "trained", "early": "stopped early, no better any more", "sigterm": "told to stop"}
        said = f"{how[self.stopped]}: {self.step} steps, {self.seconds / 60:.1f} minutes"
        if self.best_metric is not None:
            said += f", held-out loss {self.best_metric:.4g} at its lowest (step {self.best_step})"
        return said


@dataclass
class _Progress:
    """The loop's own state, as the checkpoint's JSON holds it."""

    step: int = 0
    best_step: int | None = None
    best_metric: float | None = None
    bad_evaluations: int = 0
    seconds: float = 0.0
    stopped: str = ""
    window: dict[str, float] = field(default_factory=dict)  # sums since the last log line
    window_steps: int = 0


def fit(
    model: nn.Module,
    batches: Callable[[int], Any],
    cfg: TrainConfig,
    out: str | Path,
    *,
    share: Callable[[int, slice], Any] | None = None,
    step_fn: StepFn | None = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    on_validate: Callable[[int], None] | None = None,
    param_groups: Sequence[ParamGroup] | None = None,
    extra_state: Mapping[str, Stateful] | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> FitResult:
    """Trains `model` and leaves checkpoints and logs in `out`.

    batches      batch of update `i` (from 0), a pure function: a resumed run asks for the same ones.
    share        those rows of batch `i`: several processes then fetch what they need, not the whole.
    step_fn      `(model, batch) -> {"loss": scalar, ...}`; by default `model(batch)`.
    validate     held-out metrics with "loss" among them, called in eval mode with the averaged
                 weights where `ema` is on; decides `best` and early stopping.
    on_validate  called with the step after each validation, same weights (film strips).
    metadata     goes into the checkpoint: kind, configuration, statistics, data.
    resume       go on from `out/checkpoints/last` if there is one.
    """
    keep_freed_memory()
    loop = _Loop(model, cfg, Path(out), step_fn, param_groups, extra_state or {}, metadata or {})
    return loop.run(batches, share, validate, on_validate, resume)


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster there. A CPU without its instructions takes up to twice as long as in
    float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        cfg: TrainConfig,
        out: Path,
        step_fn: StepFn | None,
        groups: Sequence[ParamGroup] | None,
        extra: Mapping[str, Stateful],
        metadata: Mapping[str, Any],
    ) -> None:
        self.cfg, self.out, self.model = cfg, out, model
        self.extra, self.metadata = extra, metadata
        self.step_fn: StepFn = step_fn or (lambda m, batch: m(batch))
        # Parts of a model that a recipe does not use get no gradient, which several processes must expect.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[unused])
        self.device = self.accelerator.device
        self.bf16 = cfg.precision == "bf16" or (cfg.precision == "auto" and has_bf16(self.device))
        self.main = self.accelerator.is_main_process
        model.to(self.device)
        if cfg.compile:
            if self.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
                raise UserError(
                    "expected a C++ compiler for compile, found none: install g++ or set compile false"
                )
            model.compile()
        groups = groups or [ParamGroup("model", list(model.parameters()))]
        optimizer = make_optimizer(groups, cfg.lr, cfg.weight_decay)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.trained = [p for g in groups for p in g.params if p.requires_grad]
        self.average = Average(model, cfg.ema) if cfg.ema else None
        self.at = _Progress()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def run(
        self,
        batches: Callable[[int], Any],
        share: Callable[[int, slice], Any] | None,
        validate: Callable[[], Mapping[str, float]] | None,
        on_validate: Callable[[int], None] | None,
        resume: bool,
    ) -> FitResult:
        cfg, at = self.cfg, self.at
        last = self.out / "checkpoints" / "last"
        if last.exists() and not resume:
            raise UserError(
                f"expected a new run folder, found checkpoints in {self.out}: give another --out or --resume"
            )
        if resume and last.exists():
            self._restore()
            at = self.at
        if at.stopped in ("done", "early"):
            return self._result(at.stopped)
        self.out.mkdir(parents=True, exist_ok=True)
        log = Log(self.out, at.step) if self.main else None
        self.optimizer.zero_grad()  # whatever the caller tried before
        on_gpu = self.device.type == "cuda"
        self.batches, mine = batches, own_part(batches, share, cfg.batch_size, self.accelerator)
        prefetch = Prefetch((lambda i: pin(mine(i))) if on_gpu else mine, at.step, cfg.steps)
        began, before = time.monotonic(), at.seconds
        try:
            with sigterm() as told, progress("train", cfg.steps, unit="steps", done=at.step) as bar:
                while not at.stopped:
                    at.step += 1
                    stop = self._step(prefetch, told)
                    if at.step % cfg.log_every == 0 or at.step == cfg.steps:
                        bar.advance(0, note=f"loss {at.window['loss'] / at.window_steps:.4g}")
                        self._log_window(log)
                    bar.advance()
                    final = at.step == cfg.steps
                    improved = False
                    if validate is not None and (final or (cfg.eval_every and at.step % cfg.eval_every == 0)):
                        improved = self._validate(validate, on_validate, log)
                    if final:
                        at.stopped = "done"
                    elif cfg.patience and at.bad_evaluations >= cfg.patience:
                        at.stopped = "early"
                    at.seconds = before + time.monotonic() - began
                    if at.stopped or stop or improved or at.step % cfg.save_every == 0:
                        self._save(log)
                    if stop and not at.stopped:
                        return self._result("sigterm")
        except torch.OutOfMemoryError:
            size = f"{cfg.batch_size} in {cfg.accumulate} parts"
            raise UserError(
                f"expected GPU memory for a batch of {size}, found too little: raise accumulate"
            ) from None
        finally:
            prefetch.close()
            if log is not None:
                log.close()
        return self._result(at.stopped)

    def _step(self, prefetch: Prefetch, told: threading.Event) -> bool:
        """One update. True when some process was told to stop."""
        cfg, at, accelerator = self.cfg, self.at, self.accelerator
        start = time.monotonic()
        mine = prefetch.get()
        fetched = time.monotonic()
        seed_everything(cfg.seed, at.step, accelerator.process_index)
        fraction = lr_fraction(at.step, cfg.steps, cfg.warmup, cfg.schedule, cfg.final_lr_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = cfg.lr * fraction * group["lr_multiplier"]
        self.model.train()
        totals: dict[str, Tensor] = {}
        for part in range(cfg.accumulate):
            batch = move(slice_batch(mine, part, cfg.accumulate), self.device)
            wait = accelerator.no_sync(self.wrapped) if part < cfg.accumulate - 1 else nullcontext()
            with wait:
                with self.autocast():
                    metrics = self.step_fn(self.wrapped, batch)
                accelerator.backward(metrics["loss"] / cfg.accumulate)
            for name, value in metrics.items():
                totals[name] = (
                    totals.get(name, 0.0) + torch.as_tensor(value).detach().float() / cfg.accumulate
                )
        also = torch.tensor([float(count_frames(mine)), float(told.is_set())], device=self.device)
        own = torch.cat([torch.stack([v.to(self.device) for v in totals.values()]), also])
        *values, frames, stopped = accelerator.reduce(own, "mean").tolist()
        losses = dict(zip(totals, values, strict=True))
        norm = float(accelerator.clip_grad_norm_(self.trained, cfg.clip_norm or float("inf")))
        for name, found in (("loss", losses["loss"]), ("gradient norm", norm)):
            if not math.isfinite(found):
                self._stop_non_finite(name, found)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(at.step)
        seen = {
            **losses,
            "grad_norm": norm,
            "seconds_data": fetched - start,
            "seconds_update": time.monotonic() - fetched,
            "frames": frames * accelerator.num_processes,
        }
        at.window = {k: at.window.get(k, 0.0) + v for k, v in seen.items()}
        at.window_steps += 1
        return stopped > 0

    def _stop_non_finite(self, name: str, value: float) -> None:
        step = self.at.step
        where = keep_batch(self.batches(step - 1), self.out, step) if self.main else self.out
        raise UserError(
            f"expected a finite {name}, found {value} at step {step} (batch kept in {where}):"
            " lower lr, or look at that batch"
        )

    def _log_window(self, log: Log | None) -> None:
        at = self.at
        mean = {k: v / at.window_steps for k, v in at.window.items()}
        frames = mean.pop("frames")
        seconds = mean["seconds_data"] + mean["seconds_update"]
        if frames:
            mean["frames_per_second"] = frames / max(seconds, 1e-9)
        if log is not None:
            lr = self.cfg.lr * lr_fraction(
                at.step, self.cfg.steps, self.cfg.warmup, self.cfg.schedule, self.cfg.final_lr_fraction
            )
            log.write({"step": at.step, "split": "train", **mean, "lr": lr})
        at.window, at.window_steps = {}, 0

    def _validate(
        self,
        validate: Callable[[], Mapping[str, float]],
        on_validate: Callable[[int], None] | None,
        log: Log | None,
    ) -> bool:
        """Held-out metrics with the weights that will be used; True when they are the best so far."""
        at = self.at
        seed_everything(self.cfg.seed, 0, 0)
        self.model.eval()
        with self.average.applied() if self.average is not None else nullcontext():
            with torch.no_grad(), self.autocast():
                found = {k: float(v) for k, v in validate().items()}
            if on_validate is not None and self.main:
                on_validate(at.step)
        # Processes must agree on what to do next, whatever their rounding.
        loss = float(self.accelerator.reduce(torch.tensor(found["loss"], device=self.device), "mean"))
        if not math.isfinite(loss):
            raise UserError(f"expected a finite held-out loss, found {loss} at step {at.step}: lower lr")
        if log is not None:
            weights = "average" if self.average is not None else "last"
            log.write({"step": at.step, "split": "val", **found, "weights": weights})
        better = at.best_metric is None or loss < at.best_metric
        if better:
            at.best_step, at.best_metric, at.bad_evaluations = at.step, loss, 0
        else:
            at.bad_evaluations += 1
        return better

    def _save(self, log: Log | None) -> None:
        at = self.at
        if self.main:
            assert log is not None
            log.sync()
            own = self.model.state_dict()
            groups: dict[str, Mapping[str, Tensor]] = {"model": own}
            if self.average is not None:
                groups = {"model": {**own, **self.average.weights}, "model_raw": own}
            groups["optimizer"], optimizer = checkpoint.flatten(self.optimizer.state_dict())
            groups["extra"], extra = checkpoint.flatten({k: v.state_dict() for k, v in self.extra.items()})
            training = {
                **vars(at),
                "weights": "average" if self.average is not None else "last",
                "config": config.to_dict(self.cfg),
                "precision": "bf16" if self.bf16 else "float32",
                "optimizer": optimizer,
                "extra": extra,
            }
            meta = {**self.metadata, "training": training}
            folder = checkpoint.step_folder(self.out, at.step)
            checkpoint.save(folder, {k: v for k, v in groups.items() if v}, meta, model_card(meta))
            checkpoint.point(self.out, "last", at.step)
            if at.best_step == at.step:
                checkpoint.point(self.out, "best", at.step)
            checkpoint.prune(self.out, self.cfg.keep_last)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        found = checkpoint.load(self.out)
        training = dict(found.meta["training"])
        if self.cfg.precision == "auto":  # as it began, also on another machine
            self.bf16 = training["precision"] == "bf16"
        optimizer, extra = training.pop("optimizer"), training.pop("extra")
        if key := config.difference(training["config"], config.to_dict(self.cfg)):
            said = f"expected the training configuration of {self.out} to resume it, found another {key}"
            raise UserError(f"{said}: give another --out")
        self.at = _Progress(**{k: training[k] for k in vars(_Progress())})
        weights = found.tensors("model")
        if self.average is not None:
            self.average.weights = {n: weights[n].to(self.device) for n in self.average.weights}
            weights = found.tensors("model_raw")
        checkpoint.load_exactly(self.model, weights, found.folder)
        tensors = found.tensors("optimizer")
        self.optimizer.load_state_dict(checkpoint.unflatten(tensors, optimizer))
        if self.extra:
            states = checkpoint.unflatten(found.tensors("extra"), extra)
            for name, part in self.extra.items():
                part.load_state_dict(states[name])

    def _result(self, stopped: Any) -> FitResult:
        at = self.at
        return FitResult(at.step, at.best_step, at.best_metric, at.seconds, stopped)
