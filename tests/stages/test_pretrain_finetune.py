"""Pretraining and fine-tuning as people run them, at toy size."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_stores import made_store

import lawm_policy as lp
from lawm_policy import checkpoint, config, training
from lawm_policy.cli import main
from lawm_policy.stages import report_sources
from lawm_policy.stages.pretrain import PretrainConfig, pretrain
from lawm_policy.training import FitResult

SMALL = ["--set", "train.steps=6", "train.batch_size=4", "train.save_every=3", "train.log_every=1"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, demonstrations, and one pretraining run."""
    folder = tmp_path_factory.mktemp("runs")
    made_store(folder / "videos", labelled=False)
    made_store(folder / "demos")
    pretrain = ["pretrain", "debug", "--data", str(folder / "videos"), "--out", str(folder / "pretrained")]
    assert main([*pretrain, *SMALL]) == 0
    return folder


def finetune(work: Path, out: str, *more: str) -> int:
    base = ["finetune", "debug", "--data", str(work / "demos"), "--out", str(work / out)]
    return main([*base, *more, *SMALL])


def test_pretraining_leaves_a_run_that_says_what_made_it(work: Path) -> None:
    run = work / "pretrained"
    assert {"config.yaml", "versions.json", "metrics.jsonl", "checkpoints", "strips"} <= {
        p.name for p in run.iterdir()
    }
    saved = checkpoint.load(run)
    assert saved.kind == "pretrained" and "source: inverse" in (run / "config.yaml").read_text()
    validated = [
        json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines() if '"val"' in row
    ]
    assert {
        "loss",
        "frames",
        "clone",
        "moving_mse",
        "shuffled_cost",
        "mean_cost",
        "shuffled_cost_front",
    } <= validated[-1].keys()
    assert all(row["loss"] == row["frames"] for row in validated)  # cloning costs most when z says most
    assert list((run / "strips").glob("*.png"))


def test_the_world_may_be_learnt_first_and_rests_while_the_policy_clones(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "pretrain",
        "debug",
        "--data",
        str(work / "videos"),
        *SMALL,
        "world.steps=4",
        "world.lr=0.01",
    ]
    assert main([*arguments, "--out", str(work / "phases")]) == 0
    first, last = (checkpoint.load(run).tensors("model") for run in (work / "phases/world", work / "phases"))
    for name, tensor in last.items():
        assert torch.equal(tensor, first[name]) != name.startswith("encoder.policy."), name
    rows = [json.loads(row) for row in (work / "phases/metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if row["split"] == "val"]
    assert all(row["loss"] == pytest.approx(row["clone"] + row["choice"]) for row in validated)
    runs = report_sources.read([f"videos={work / 'phases'}"]).runs
    assert [(run.name, bool(run.strips)) for run in runs] == [
        ("videos, z and world model", True),
        ("videos", False),
    ]
    start = ["finetune", "debug", "--data", str(work / "demos"), "--init", str(work / "phases/world")]
    assert "a run whose policy has learnt" in refused(capsys, [*start, "--out", str(work / "x")])
    shutil.rmtree(work / "phases/checkpoints")  # as if it had been stopped between the two
    (work / "phases/metrics.jsonl").unlink()
    assert main([*arguments, "--out", str(work / "phases"), "--resume"]) == 0
    again = checkpoint.load(work / "phases").tensors("model")
    assert all(torch.equal(tensor, again[name]) for name, tensor in last.items())


def test_fine_tuning_starts_from_the_checkpoint_that_was_best(work: Path, tmp_path: Path) -> None:
    run = shutil.copytree(work / "pretrained", tmp_path / "run", symlinks=True)
    (run / "checkpoints/best").unlink(missing_ok=True)
    (run / "checkpoints/best").symlink_to("step-00000003")  # the last is of step 6
    assert finetune(work, "from-best", "--init", str(run), "--train", "controller") == 0
    came = checkpoint.load(work / "from-best").tensors("model")
    best, last = (checkpoint.load(run, which=w).tensors("model") for w in ("best", "last"))
    frozen = [name for name in came if name.startswith("policy.trunk.") and f"encoder.{name}" in best]
    assert frozen and all(torch.equal(came[name], best[f"encoder.{name}"]) for name in frozen)
    assert not all(torch.equal(best[f"encoder.{name}"], last[f"encoder.{name}"]) for name in frozen)


def test_only_a_policy_that_clones_can_wait(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["pretrain", "lawm", "--data", str(work / "videos"), "--out", str(work / "x"), "--set"]
    assert "expected world.steps=0 with source 'policy'" in refused(capsys, [*run, "world.steps=4"])
    run[1] = "debug"
    assert "expected world.steps >= 0, found -4" in refused(capsys, [*run, "world.steps=-4"])
    assert not (work / "x").exists()


def test_the_pretrained_parts_speak_the_protocol(work: Path) -> None:
    parts = lp.load_pretrained(work / "pretrained")
    frames = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)
    state = parts.world_model.encode(frames, torch.ones(1, 2, dtype=torch.bool))
    states = parts.world_model.rollout(state, torch.zeros(1, 6, 8))
    assert parts.world_model.decode(states).shape == (1, 6, 2, 3, 32, 32)


def test_finetuning_says_what_came_from_pretraining(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(work, "finetuned", "--init", str(work / "pretrained"), "--demos", "2") == 0
    told = capsys.readouterr().err
    assert re.search(rf"trained: \d+ steps, .*held-out loss [\d.]+ .*: {work / 'finetuned'}$", told.strip())
    policy = lp.load_policy(work / "finetuned")
    controller = sum(name.startswith("controller.") for name, _ in policy.named_parameters())
    whole = len(policy.state_dict())
    said = (
        f"loaded {whole - controller} of {whole} tensors from pretraining; fresh: controller ({controller})"
    )
    assert said in told


def test_what_came_from_pretraining_is_what_it_trained(work: Path) -> None:
    """With everything but the controller frozen, those tensors are pretraining's, bit for bit."""
    assert finetune(work, "controlled", "--init", str(work / "pretrained"), "--train", "controller") == 0
    before = checkpoint.load(work / "pretrained", which="best").tensors("model")
    after = checkpoint.load(work / "controlled", which="last").tensors("model")
    shared = [name for name in after if name.startswith("policy.")]
    assert shared and all(torch.equal(after[name], before[f"encoder.{name}"]) for name in shared)


@pytest.mark.parametrize(
    "more", [(), ("--init", "pretrained", "--head", "fresh"), ("--init", "pretrained", "--train", "head")]
)
def test_ways_to_finetune_end_in_a_policy_that_acts(work: Path, more: tuple[str, ...]) -> None:
    more = tuple(str(work / m) if m == "pretrained" else m for m in more)
    out = "-".join(["run", *(m.strip("-") for m in more if not m.startswith("/"))])
    assert finetune(work, out, *more) == 0
    policy = lp.load_policy(work / out)
    images = {name: np.zeros((32, 32, 3), np.uint8) for name in policy.cameras}
    chunk = policy.act({"images": images, "state": np.zeros(3, np.float32), "instruction": "go right"})
    assert chunk.shape == (24, 3) and np.isfinite(chunk).all() and policy.execute == 8
    assert policy.sha256 == checkpoint.load(work / out, which="best").sha256


def test_a_robot_card_need_not_repeat_the_names_of_states_and_actions(work: Path, tmp_path: Path) -> None:
    """As in README's example of a store of one's own."""
    shutil.copytree(work / "demos", tmp_path / "demos")
    extra = tmp_path / "demos" / "meta" / "lawm.json"
    told = json.loads(extra.read_text())
    names = {key: told["robot"].pop(key) for key in ("state_names", "action_names")}
    extra.write_text(json.dumps(told))
    assert finetune(tmp_path, "run") == 0
    robot = lp.load_policy(tmp_path / "run").robot
    assert robot == told["robot"] | names and robot["relative_to"] == [0, 1, None]


def test_a_finetuned_run_can_be_finetuned_again_in_its_own_units(work: Path) -> None:
    assert finetune(work, "first") == 0
    assert finetune(work, "again", "--init", str(work / "first"), "--demos", "1") == 0
    first, again = (lp.load_policy(work / name) for name in ("first", "again"))
    assert first.normalization == again.normalization


def test_a_finetuning_is_resumed_from_what_it_began_with_or_not_at_all(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["pretrain", "debug", "--data", str(work / "videos"), "--out", str(work / "other"), *SMALL]
    assert main([*other, "--set", "train.seed=1"]) == 0
    begun = ["--init", str(work / "pretrained")]
    assert finetune(work, "begun", *begun) == 0
    assert finetune(work, "begun", *begun, "--resume") == 0
    for start in ([], ["--init", str(work / "other")]):
        assert finetune(work, "begun", *start, "--resume") == 2
        assert "the run that it starts from" in capsys.readouterr().err


def test_a_finetuning_is_resumed_by_the_request_that_began_it(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before its first checkpoint."""
    begun = ["--init", str(work / "pretrained")]
    assert finetune(work, "asked", *begun, "--demos", "2") == 0
    shutil.rmtree(work / "asked" / "checkpoints")
    for more, said in (
        (["--demos", "1"], "--demos: 2 and 1"),
        (["--demos", "2", "--draw", "3"], "--draw: 0 and 3"),
        (["--demos", "2", "--train", "controller"], '--train: "all" and "controller"'),
        (["--demos", "2", "--set", "pretrained_lr=0.5"], "pretrained_lr: 1.0 and 0.5"),
    ):
        capsys.readouterr()
        assert finetune(work, "asked", *begun, *more, "--resume") == 2
        assert f"found another {said}: give another --out" in capsys.readouterr().err


def test_resuming_gives_what_was_never_stopped(work: Path) -> None:
    data = ["--data", str(work / "videos")]
    whole, parts = str(work / "whole"), str(work / "parts")
    assert main(["pretrain", "debug", *data, "--out", whole, *SMALL]) == 0
    assert main(["pretrain", "debug", *data, "--out", parts, *SMALL]) == 0
    folder = work / "parts" / "checkpoints"  # as if killed after step 3
    for name in ("last", "best"):
        (folder / name).unlink()
    (folder / "last").symlink_to("step-00000003")
    checkpoint.load(folder / "last")
    assert main(["pretrain", "debug", *data, "--out", parts, "--resume", *SMALL]) == 0
    a, b = (checkpoint.load(run, which="last").tensors("model") for run in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_show_prints_what_a_run_would_record_and_writes_nothing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def shown(*argv: str) -> Any:
        capsys.readouterr()
        assert main([*argv, "--show"]) == 0
        (text, err) = capsys.readouterr()
        assert err == "" and "# decay of the weights' average; 0: off" in text
        return config.parse_yaml(text, "what was shown")

    def recorded(run: str) -> Any:
        return config.parse_yaml((work / run / "config.yaml").read_text(), run)

    assert shown("pretrain", "debug", *SMALL) == recorded("pretrained")
    assert finetune(work, "shown", "--init", str(work / "pretrained"), "--head", "fresh") == 0
    start = ["--init", str(work / "pretrained")]
    found = shown("finetune", "debug", *start, "--head", "fresh", "--out", "new", *SMALL)
    assert found == recorded("shown") and found["policy"]["head"] == "fresh"
    assert shown("finetune", "debug", "--policy.head", "fresh")["policy"]["head"] == "fresh"
    assert not list(tmp_path.iterdir())
    assert "expected CONFIG, found nothing" in refused(capsys, ["pretrain", "--show"])
    assert "did you mean 'train.lr'" in refused(capsys, ["pretrain", "debug", "--show", "--train.lrr", "1"])


def test_a_process_of_several_is_given_the_rows_of_the_same_batch(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def no_fit(model: Any, batches: Any, cfg: Any, out: Any, *, share: Any, **_: Any) -> FitResult:
        seen.append((batches(3), share(3, slice(1, 3)) if share else None))
        return FitResult(0, None, None, 0.0, "done")

    monkeypatch.setattr(training, "fit", no_fit)
    data = ["--data", str(work / "videos"), "--out", str(work / "unfit")]
    assert main(["pretrain", "debug", *data, *SMALL]) == 0
    assert finetune(work, "unfit-too") == 0
    for whole, share in seen:
        for part in dataclasses.fields(whole):
            expected, found = (getattr(batch, part.name) for batch in (whole.rows(slice(1, 3)), share))
            assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
    cfg = config.load_config("debug", PretrainConfig, stage="pretrain")
    pretrain(cfg, (work / "videos",), work / "changed", change=lambda step, clip: clip)
    assert [share is None for _, share in seen] == [False, False, True]  # a change needs the whole batch


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "expected" in message and "found" in message
    return message


def test_mistakes_are_one_line_and_write_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, demos, new = str(work / "videos"), str(work / "demos"), str(work / "new")
    one, two = ["pretrain", "debug", "--data"], ["finetune", "debug", "--data"]
    assert "versions.json" not in refused(
        capsys, [*one, videos, "--out", str(work / "pretrained")]
    )  # it exists
    refused(capsys, [*one, str(work / "nowhere"), "--out", new])
    refused(capsys, [*one, str(work / "pretrained"), "--out", new])  # not a store
    refused(capsys, [*two, videos, "--out", new])  # videos have no commands
    refused(capsys, [*two, demos, "--out", new, "--init", str(work / "demos")])  # not a run
    refused(capsys, [*two, demos, "--out", new, "--train", "controller"])  # nothing to freeze
    assert "train.lr" in refused(capsys, [*one, videos, "--out", new, "--train.lrr", "1"])
    refused(capsys, [*one, videos, "--out", new, "--train.lr", "-1"])
    refused(capsys, [*one, videos, "--out", new, "--set", "recipe.source=policy"])  # a density nobody trains
    refused(capsys, [*two, demos, "--out", new, "--set", "policy.policy.cameras=[top]"])
    assert not Path(new).exists()
