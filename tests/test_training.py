import dataclasses
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_run import Killed, Pairs, Tiny, batch, killed_at, losses, train, weights
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lawm_policy import checkpoint, runs
from lawm_policy.training import FitResult, ParamGroup, TrainConfig, fit
from lawm_policy.training_state import (
    Average,
    Prefetch,
    lr_fraction,
    make_optimizer,
    slice_batch,
)
from lawm_policy.types import UserError

torch.set_num_threads(1)


# Learning --------------------------------------------------------------------------------------


def test_it_learns_and_leaves_a_run(tmp_path: Path) -> None:
    result = train(tmp_path, steps=60, eval_every=20, save_every=50, keep_last=1)
    assert (result.step, result.stopped) == (60, "done")
    records = losses(tmp_path)
    first, *_, last = [r["loss"] for r in records if r["split"] == "val"]
    assert last < 0.9 * first
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, 61))
    assert result.best_step in (20, 40, 60) and result.best_metric == min(
        r["loss"] for r in records if r["split"] == "val"
    )
    raw = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    keys = {
        "step",
        "split",
        "loss",
        "absolute",
        "lr",
        "grad_norm",
        "seconds_data",
        "seconds_update",
        "frames_per_second",
    }
    assert set(raw[0]) == keys
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt")]


def test_the_checkpoint_describes_itself(tmp_path: Path) -> None:
    train(tmp_path)
    found = checkpoint.load(tmp_path, "tiny")
    assert found.meta["training"]["step"] == 12
    card = (found.folder / "README.md").read_text()
    assert "tiny checkpoint" in card and "average of training" in card


def test_a_log_line_is_the_mean_since_the_one_before(tmp_path: Path) -> None:
    train(tmp_path / "each")
    train(tmp_path / "fourth", log_every=4)
    each = [r["loss"] for r in losses(tmp_path / "each") if r["split"] == "train"]
    fourth = [r["loss"] for r in losses(tmp_path / "fourth") if r["split"] == "train"]
    assert fourth == pytest.approx([sum(each[i : i + 4]) / 4 for i in (0, 4, 8)])


def test_validation_uses_the_averaged_weights_and_gives_the_others_back(tmp_path: Path) -> None:
    model, seen = Tiny(), []
    raw: list[Tensor] = []

    def validate() -> dict[str, float]:
        assert not model.training
        seen.append(model.head.weight.detach().clone())
        return {"loss": 1.0}

    def step(m: nn.Module, b: Pairs) -> Any:
        assert model.training
        raw.append(model.head.weight.detach().clone())
        return m(b)

    train(tmp_path, model=model, eval_every=12, fit_options={"validate": validate, "step_fn": step})
    assert torch.equal(seen[0], weights(tmp_path)["head.weight"])
    assert torch.equal(model.head.weight, weights(tmp_path, "model_raw")["head.weight"])
    assert not torch.equal(seen[0], model.head.weight)
    assert losses(tmp_path)[-1]["weights"] == "average"


def test_without_an_average_there_is_one_set_of_weights(tmp_path: Path) -> None:
    train(tmp_path, ema=0)
    assert checkpoint.load(tmp_path).names == ("model", "optimizer")
    assert losses(tmp_path)[-1]["weights"] == "last"


def test_accumulation_changes_memory_not_the_result(tmp_path: Path) -> None:
    for n in (1, 4):
        train(tmp_path / str(n), accumulate=n, model=Tiny(dropout=0))
    a, b = weights(tmp_path / "1"), weights(tmp_path / "4")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_bf16_trains_float32_weights(tmp_path: Path) -> None:
    kinds: set[torch.dtype] = set()

    def step(model: nn.Module, b: Pairs) -> Any:
        kinds.add(nn.functional.linear(b.x_BN, torch.ones(2, 8)).dtype)
        return model(b)

    train(tmp_path, precision="bf16", fit_options={"step_fn": step})
    assert kinds == {torch.bfloat16}
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}
    assert losses(tmp_path)[-1]["loss"] < losses(tmp_path)[0]["loss"]


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": True}, torch.float32),  # nobody has measured it there
    ],
)
def test_bf16_is_taken_where_the_processor_has_it(tmp_path: Path, monkeypatch, found, kind) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    kinds: set[torch.dtype] = set()

    def step(model: nn.Module, b: Pairs) -> Any:
        kinds.add(nn.functional.linear(b.x_BN, torch.ones(2, 8)).dtype)
        return model(b)

    train(tmp_path, precision="auto", fit_options={"step_fn": step})
    assert kinds == {kind}
    told = checkpoint.load(tmp_path).meta["training"]["precision"]
    assert told == {torch.float32: "float32", torch.bfloat16: "bf16"}[kind]


def test_a_run_goes_on_in_the_precision_in_which_it_began(tmp_path: Path, monkeypatch) -> None:
    """Also on a processor of the other kind."""
    kinds: list[torch.dtype] = []

    def step(model: nn.Module, b: Pairs) -> Any:
        kinds.append(nn.functional.linear(b.x_BN, torch.ones(2, 8)).dtype)
        if len(kinds) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return model(b)

    for found in ({"avx512_bf16": True}, {}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        train(tmp_path, precision="auto", resume=bool(kinds), fit_options={"step_fn": step})
    assert set(kinds) == {torch.bfloat16} and len(kinds) > 3


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    def loud(i: int) -> Pairs:
        b = batch(i)
        return dataclasses.replace(b, y_B1=b.y_B1 * 1e6)

    seen: list[float] = []

    def spy(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    handle = register_optimizer_step_pre_hook(spy)
    try:
        train(tmp_path, batches=loud, clip_norm=0.5, lr=1e-6)
    finally:
        handle.remove()
    assert losses(tmp_path)[0]["grad_norm"] > 1e3  # as it was before clipping
    assert seen and max(seen) <= 0.5 + 1e-4


def test_groups_learn_at_their_own_rate(tmp_path: Path) -> None:
    model = Tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    groups = [
        ParamGroup("trunk", list(model.trunk.parameters()), lr_multiplier=0.0),
        ParamGroup("head", list(model.head.parameters())),
    ]
    train(tmp_path, model=model, fit_options={"param_groups": groups})
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"head.weight", "head.bias"}


def test_vectors_are_not_decayed() -> None:
    model = Tiny()
    groups = make_optimizer([ParamGroup("all", list(model.parameters()))], 1.0, 0.1).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [
        (0.1, [2, 2]),
        (0.0, [1, 1]),
    ]
    model.requires_grad_(False)
    with pytest.raises(UserError, match="expected parameters to train, found none"):
        make_optimizer([ParamGroup("all", list(model.parameters()))], 1.0, 0.1)


def test_schedule() -> None:
    rates = [lr_fraction(s, 100, 10, "cosine", 0.1) for s in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[54] == pytest.approx(0.1 + 0.9 * 0.5)  # half-way
    assert {lr_fraction(s, 100, 0, "constant", 0.1) for s in range(1, 101)} == {1.0}


def test_the_average_is_an_exponential_one() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = Average(layer, 0.9)
    nn.init.ones_(layer.weight)
    expected = 0.0
    for step in range(1, 200):
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay)
    assert float(average.weights["weight"]) == pytest.approx(expected)


# Stopping --------------------------------------------------------------------------------------


def worse_after(step: int) -> Any:
    calls = iter(range(1, 1000))
    return lambda: {"loss": float(abs(next(calls) - step))}


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    options = {"validate": worse_after(3)}
    result = train(
        tmp_path, steps=40, eval_every=2, save_every=100, patience=2, keep_last=1, fit_options=options
    )
    assert result == FitResult(10, 6, 0.0, result.seconds, "early")
    assert checkpoint.load(tmp_path, which="best").meta["training"]["step"] == 6
    assert checkpoint.load(tmp_path).meta["training"]["step"] == 10
    again = train(tmp_path, steps=40, eval_every=2, save_every=100, patience=2, keep_last=1, resume=True)
    assert again == result  # a finished run is not trained on


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_a_non_finite_loss_keeps_the_batch_and_the_checkpoint(tmp_path: Path, where: str) -> None:
    def poisoned(i: int) -> Pairs:
        b = batch(i)
        return dataclasses.replace(b, x_BN=torch.full_like(b.x_BN, float("nan"))) if i == 7 else b

    def step(model: nn.Module, b: Pairs) -> Any:
        found = dict(model(b))
        if where == "gradient norm" and b.x_BN.isnan().any():
            found["loss"] = (model.head.bias * 0).sqrt().sum()  # finite, its slope is not
        return found

    with pytest.raises(UserError) as caught:
        train(tmp_path, batches=poisoned, fit_options={"step_fn": step})
    said = str(caught.value)
    assert f"expected a finite {where}" in said and "at step 8" in said and "\n" not in said
    kept = tmp_path / "batch-00000008.safetensors"
    assert str(kept) in said
    with safe_open(kept, "pt") as file:
        assert file.get_tensor("x_BN").isnan().all()
        assert json.loads(file.metadata()["text"])[0] == "row 0"
    assert checkpoint.load(tmp_path).meta["training"]["step"] == 6


def test_a_non_finite_held_out_loss_stops(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a finite held-out loss, found nan at step 4"):
        train(tmp_path, fit_options={"validate": lambda: {"loss": float("nan")}})


# Parts -----------------------------------------------------------------------------------------


def test_fit_has_freed_memory_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("lawm_policy.training.keep_freed_memory", lambda: asked.append(True))
    train(tmp_path / "run")
    assert asked


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_steps_free_is_kept_for_the_next() -> None:
    count = """
import resource, torch
from lawm_policy.training_state import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def steps():
    start = faults()
    for _ in range(20):
        torch.zeros(2**22)
    return faults() - start
before = steps()
keep_freed_memory()
steps()
print(before, steps())
"""
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 20


def test_slices_cover_the_batch() -> None:
    whole = batch(0)
    parts = [slice_batch(whole, i, 4) for i in range(4)]
    assert torch.equal(torch.cat([p.x_BN for p in parts]), whole.x_BN)
    assert sum((p.text for p in parts), ()) == whole.text
    with pytest.raises(UserError, match="divides, found 8"):
        slice_batch(whole, 0, 3)


def test_prefetching_keeps_order_and_passes_errors_on() -> None:
    ahead = Prefetch(lambda i: i * i, 3, 7)
    assert [ahead.get() for _ in range(4)] == [9, 16, 25, 36]
    ahead.close()
    failing = Prefetch(killed_at(1), 0, 3)
    failing.get()
    with pytest.raises(Killed):
        failing.get()
    failing.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "expected steps >= 1, found 0"),
        ({"lr": 0.0}, "expected lr > 0, found 0.0"),
        ({"lr": float("nan")}, "expected lr > 0, found nan"),
        ({"ema": 1.0}, "expected ema >= 0 and < 1, found 1.0"),
        ({"accumulate": 3}, "expected accumulate to divide batch_size"),
        ({"patience": 2}, "expected eval_every > 0 with patience 2"),
        ({"seed": -1}, "expected seed >= 0"),
    ],
)
def test_a_training_configuration_is_checked(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TrainConfig(**change)


# Run folders -----------------------------------------------------------------------------------


def test_a_run_folder_records_what_made_it(tmp_path: Path) -> None:
    out = runs.open_run(tmp_path / "run", TrainConfig(), data={"store": "abc"}, seeds={"train": 3})
    assert "steps: 1000" in (out / "config.yaml").read_text()
    record = json.loads((out / "versions.json").read_text())
    assert record["data"] == {"store": "abc"} and record["seeds"] == {"train": 3}
    assert (
        record["packages"]["torch"]
        and record["hardware"]["cores"] >= 1
        and record["command"].startswith("lawm")
    )
    for place in ("store", "/elsewhere/store"):  # data may have moved
        runs.open_run(out, TrainConfig(), data={place: "abc"}, resume=True)
    for config, data, said in (
        (TrainConfig(lr=1.0), "abc", "found another lr"),
        (TrainConfig(), "abd", "found others"),
    ):
        with pytest.raises(UserError, match=said):
            runs.open_run(out, config, data={"store": data}, resume=True)


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    out = runs.open_run(tmp_path / "run", TrainConfig())
    with pytest.raises(UserError, match="give another --out, --resume or --force"):
        runs.check_out(out)
    (out / "old").write_text("x")
    runs.open_run(out, TrainConfig(lr=1.0), force=True)
    assert not (out / "old").exists()
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.jpg").write_text("x")
    for options in ({"force": True}, {"resume": True}):
        with pytest.raises(UserError, match="found other files"):
            runs.open_run(other, TrainConfig(), **options)
    with pytest.raises(UserError, match=r"give another --out$"):  # nothing else would help
        runs.check_out(other)
    assert (other / "photo.jpg").exists()
    with pytest.raises(UserError, match="found a file at"):
        runs.check_out(other / "photo.jpg")


def test_fit_needs_nothing_but_a_model_and_batches(tmp_path: Path) -> None:
    result = fit(Tiny(), batch, TrainConfig(steps=3, batch_size=8, warmup=0), tmp_path)
    assert result.step == 3 and result.best_step is None
    assert not (tmp_path / "checkpoints" / "best").exists()
