"""Training that was stopped, by whatever, and goes on; and training by several processes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from tiny_run import Killed, Pairs, Tiny, killed_at, losses, train, weights
from torch import Tensor, nn

from lawm_policy import checkpoint
from lawm_policy.training_state import truncate_after
from lawm_policy.types import UserError

torch.set_num_threads(1)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("log_every", [1, 5])
@pytest.mark.parametrize("step", [3, 7, 8])
def test_resumed_equals_never_stopped(tmp_path: Path, step: int, log_every: int) -> None:
    train(tmp_path / "whole", log_every=log_every)
    with pytest.raises(Killed):
        train(tmp_path / "parts", batches=killed_at(step), log_every=log_every)
    torch.manual_seed(999)  # a new process starts with other generators and weights
    other = Tiny()
    with torch.no_grad():
        other.head.weight.mul_(3)
    result = train(tmp_path / "parts", resume=True, log_every=log_every, model=other)
    assert result.stopped == "done"
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name in ("model", "model_raw", "optimizer"):
        assert same(weights(tmp_path / "parts", name), weights(tmp_path / "whole", name))


def test_every_source_of_random_numbers_is_the_steps_own(tmp_path: Path) -> None:
    def step(model: nn.Module, b: Pairs) -> Any:
        found = dict(model(b))
        return {**found, "noise": torch.rand(()) + np.random.rand() + random.random()}  # noqa: NPY002

    train(tmp_path / "whole", fit_options={"step_fn": step})
    with pytest.raises(Killed):
        train(tmp_path / "parts", batches=killed_at(5), fit_options={"step_fn": step})
    train(tmp_path / "parts", resume=True, fit_options={"step_fn": step})
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    noise = [r["noise"] for r in losses(tmp_path / "whole") if r["split"] == "train"]
    assert len(set(noise)) == len(noise)


def test_a_second_optimiser_is_resumed(tmp_path: Path) -> None:
    def adversary() -> tuple[nn.Linear, torch.optim.Adam, Any]:
        torch.manual_seed(5)
        layer = nn.Linear(8, 1)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)

        def step(model: nn.Module, b: Pairs) -> Any:
            own = (layer(b.x_BN) ** 2).mean()
            optimizer.zero_grad()
            own.backward()
            optimizer.step()
            return {**model(b), "adversary": own}

        return layer, optimizer, step

    def go(out: Path, **options: Any) -> None:
        layer, optimizer, step = adversary()
        extra = {"layer": layer, "optimizer": optimizer}
        train(out, fit_options={"step_fn": step, "extra_state": extra}, **options)

    go(tmp_path / "whole")
    with pytest.raises(Killed):
        go(tmp_path / "parts", batches=killed_at(8))
    go(tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path / "parts", batches=killed_at(1))
    train(tmp_path / "parts", resume=True)
    train(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_run_is_not_trained_over(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match="expected a new run folder, found checkpoints"):
        train(tmp_path)
    with pytest.raises(UserError, match="found another lr"):
        train(tmp_path, resume=True, lr=0.5)


def test_a_damaged_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, batches=killed_at(8))
    path = checkpoint.load(tmp_path).folder / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="changed bytes"):
        train(tmp_path, resume=True)


def test_another_model_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, batches=killed_at(8))
    model = Tiny()
    model.head = nn.Linear(16, 2)
    with pytest.raises(UserError, match=r"expected shape \(2, 16\) for head.weight, found \(1, 16\)"):
        train(tmp_path, resume=True, model=model)


def test_a_log_cut_short_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    truncate_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1}\n{"step": 2')
    truncate_after(path, 2)
    assert path.read_text() == '{"step": 1}\n'


def program(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, tiny_run.__file__, str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    changes = ("steps=30", "save_every=2")
    whole = program(tmp_path / "whole", *changes)
    assert whole.wait(timeout=100) == 0
    moments = random.Random(4)
    for _ in range(3):
        child = program(tmp_path / "parts", *changes, "--resume", "--seconds", "0.02")
        assert child.stdout is not None
        child.stdout.readline()  # it trains
        time.sleep(moments.uniform(0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
    last = program(tmp_path / "parts", *changes, "--resume")
    assert last.wait(timeout=100) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_saves_and_ends(tmp_path: Path) -> None:
    child = program(tmp_path / "parts", "save_every=1000", "--seconds", "0.05")
    assert child.stdout is not None
    for _ in range(5):
        child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert out.splitlines()[-1] == "sigterm"
    assert 0 < checkpoint.load(tmp_path / "parts").meta["training"]["step"] < 12
    train(tmp_path / "parts", resume=True, save_every=1000)
    train(tmp_path / "whole", save_every=1000)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("share", [(), ("--share",)])
def test_two_processes_equal_one(tmp_path: Path, share: tuple[str, ...]) -> None:
    changes = ["steps=6", "save_every=3", "ema=0.9", "--dropout", "0"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, tiny_run.__file__, str(tmp_path / "two"), *changes, *share],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr
    if share:  # nobody made a whole batch
        expected = sorted(f"rows {rows} of {i}" for rows in ("0-4", "4-8") for i in range(6))
        assert sorted(re.findall(r"rows \S+ of \d|batch \d", done.stdout)) == expected
    assert program(tmp_path / "one", *changes).wait(timeout=100) == 0
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(two) == len(one)
    for a, b in zip(two, one, strict=True):
        assert a.keys() == b.keys()
        for key in ("loss", "grad_norm", "absolute"):
            assert a.get(key, 0) == pytest.approx(b.get(key, 0), rel=1e-4)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-4, atol=1e-5)
