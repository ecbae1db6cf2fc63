import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lawm_policy import checkpoint
from lawm_policy.types import UserError

META = {"kind": "pretrained", "config": {"width": 4}, "statistics": [1.5, None]}


def tensors(value: float = 1.0) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"a.weight": torch.full((3, 4), value), "b": torch.arange(5)},
        "optimizer": {"m": torch.zeros(2, dtype=torch.bfloat16)},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "step", tensors(), META, "# card")
    return tmp_path / "step"


def refused(path: Path, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        found = checkpoint.load(path, **options)
        for name in found.names:
            found.tensors(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite_manifest(folder: Path) -> None:
    """Makes the manifest agree with the files, as someone who tampers would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        path = folder / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": checkpoint.sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_round_trip(folder: Path) -> None:
    found = checkpoint.load(folder, "pretrained")
    assert found.meta == META and found.kind == "pretrained" and found.names == ("model", "optimizer")
    for name, group in tensors().items():
        for key, tensor in found.tensors(name).items():
            assert tensor.dtype == group[key].dtype
            assert torch.equal(tensor, group[key])
    assert (folder / "README.md").read_text() == "# card\n"
    assert found.sha256 == checkpoint.sha256_of(folder / "manifest.json")
    assert sorted(p.name for p in folder.parent.iterdir()) == ["step"]


def test_the_hash_follows_the_content(tmp_path: Path) -> None:
    hashes = [
        checkpoint.save(tmp_path / str(i), tensors(v), META, "card") for i, v in enumerate((1.0, 1.0, 2.0))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_tied_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    checkpoint.save(tmp_path / "c", {"model": {"a": weight, "b": weight, "t": weight.T}}, META, "")
    found = checkpoint.load(tmp_path / "c").tensors()
    assert (
        torch.equal(found["a"], weight)
        and torch.equal(found["b"], weight)
        and torch.equal(found["t"], weight.T)
    )


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "meta.json", "README.md"])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_byte_is_found(folder: Path, name: str, where: float) -> None:
    data = bytearray((folder / name).read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    (folder / name).write_bytes(data)
    said = refused(folder)
    assert name in said and said.startswith("expected")


@pytest.mark.parametrize("name", ["model.safetensors", "meta.json", "manifest.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"expected {name} in {folder}, found it missing" in refused(folder)


def test_a_truncated_file_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert "bytes in" in refused(folder)
    rewrite_manifest(folder)
    assert "expected safetensors in" in refused(folder)


class Trap:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("pickle-was-run",)


def test_a_renamed_pickle_is_refused_and_never_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "extra.safetensors").write_bytes(pickle.dumps(Trap()))
    assert "expected safetensors in" in refused(folder) and "never pickle" in refused(folder)
    shutil.move(folder / "extra.safetensors", folder / "model.safetensors")
    rewrite_manifest(folder)
    assert "never pickle" in refused(folder)
    assert not (tmp_path / "pickle-was-run").exists()


def test_tensors_that_the_manifest_does_not_list_are_refused(folder: Path) -> None:
    save_file({"x": torch.ones(1)}, folder / "extra.safetensors")
    assert "found extra.safetensors: remove it" in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    group = load_file(folder / "model.safetensors")
    group["a.weight"][1, 2] = value
    save_file(group, folder / "model.safetensors")
    rewrite_manifest(folder)
    assert "NaN or infinity in a.weight" in refused(folder)


def test_the_wrong_kind_is_named(folder: Path) -> None:
    assert "expected a finetuned checkpoint, found a pretrained one" in refused(folder, kind="finetuned")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 9, "files": {}}', '{"format": 1, "files": {"meta.json": 3}}']
)
def test_a_broken_manifest_is_one_line(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    refused(folder)


def test_a_manifest_cannot_reach_outside_its_folder(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    (folder.parent / "secret").write_text("x")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "expected ../secret in" in refused(folder)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert "found nothing at" in refused(tmp_path / "absent")
    assert "found a file at" in refused(tmp_path / "file")
    assert "expected a finished checkpoint `last`" in refused(tmp_path / "run")
    assert "found neither in" in refused(tmp_path / "other")


def test_a_run_means_its_last_or_best(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(checkpoint.step_folder(tmp_path, step), tensors(step), META, "")
        checkpoint.point(tmp_path, "last", step)
    checkpoint.point(tmp_path, "best", 1)
    assert checkpoint.load(tmp_path).folder.name == "step-00000002"
    assert checkpoint.load(tmp_path, which="best").folder.name == "step-00000001"
    shutil.copytree(tmp_path, tmp_path / "moved", symlinks=True)  # links are relative
    assert (
        checkpoint.load(tmp_path / "moved", which="best").folder.parent == tmp_path / "moved" / "checkpoints"
    )


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        checkpoint.save(checkpoint.step_folder(tmp_path, step), tensors(step), META, "")
    checkpoint.point(tmp_path, "best", 2)
    checkpoint.point(tmp_path, "last", 6)
    (tmp_path / "checkpoints" / ".step-00000009.writing").mkdir()  # left by a kill
    checkpoint.prune(tmp_path, keep_last=2)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["best", "last", "step-00000002", "step-00000005", "step-00000006"]


def test_saving_again_replaces(folder: Path) -> None:
    checkpoint.save(folder, tensors(7.0), META, "")
    assert checkpoint.load(folder).tensors()["a.weight"][0, 0] == 7.0
    assert [p.name for p in folder.parent.iterdir()] == ["step"]


WRITER = """
import resource, signal, sys, torch
from lawm_policy import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    meta, steps = {"kind": "k"}, [2]
else:
    meta, steps = {"kind": "k"}, range(1, 1000)
from pathlib import Path
run = Path(sys.argv[1])
for step in steps:
    group = {"w": torch.full((100_000,), float(step))}
    checkpoint.save(checkpoint.step_folder(run, step), {"model": group}, meta, "")
    checkpoint.point(run, "last", step)
    checkpoint.prune(run, 2)
    print(step, flush=True)
"""


def writer(run: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(run), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path) -> None:
    checkpoint.save(checkpoint.step_folder(tmp_path, 1), tensors(), META, "")
    checkpoint.point(tmp_path, "last", 1)
    _, err = writer(tmp_path, "full").communicate(timeout=60)
    assert "OSError: [Errno 27]" in err
    assert checkpoint.load(tmp_path).folder.name == "step-00000001"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["last", "step-00000001"]


def test_killed_while_writing_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    child = writer(tmp_path, "many")
    assert child.stdout is not None
    for _ in range(3):
        done = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    found = checkpoint.load(tmp_path)
    step = int(found.folder.name.removeprefix("step-"))
    assert step >= done
    assert torch.equal(found.tensors()["w"], torch.full((100_000,), float(step)))


def test_a_checkpoint_takes_its_place_only_when_it_is_whole(tmp_path: Path, monkeypatch: Any) -> None:
    target, seen = checkpoint.step_folder(tmp_path, 1), []
    sync = checkpoint._sync

    def synced(path: Path) -> None:
        if path.suffix:  # a file of it
            seen.append(target.exists())
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync", synced)
        checkpoint.save(target, tensors(), META, "")
    assert len(seen) >= 3 and not any(seen), "files under their name before they were on the disk"
    checkpoint.point(tmp_path, "last", 1)
    checkpoint.save(checkpoint.step_folder(tmp_path, 2), tensors(), META, "")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.point(tmp_path, "last", 2)
    assert checkpoint.load(tmp_path).folder.name == "step-00000001", "there is a `last` at every moment"


# init_from -------------------------------------------------------------------------------------


def model(controller: int = 2) -> nn.ModuleDict:
    return nn.ModuleDict({"trunk": nn.Linear(3, 4), "controller": nn.Linear(4, controller)})


def pretrained() -> dict[str, Tensor]:
    state = {f"policy.trunk.{k}": torch.ones_like(v) for k, v in nn.Linear(3, 4).state_dict().items()}
    return {**state, "world_model.w": torch.ones(2)}


def test_init_from_says_what_it_loaded() -> None:
    module = model()
    before = module["controller"].weight.clone()
    report = checkpoint.init_from(module, pretrained(), prefix="policy.", finetune_only=("controller",))
    assert str(report) == "loaded 2 of 4 tensors from pretraining; fresh: controller (2)"
    assert report.loaded == ("trunk.weight", "trunk.bias") and report.unused == ()
    assert torch.equal(module["trunk"].weight, torch.ones(4, 3))
    assert torch.equal(module["controller"].weight, before)


def test_init_from_lists_what_it_did_not_use() -> None:
    given = {**pretrained(), "policy.extra": torch.ones(1)}
    report = checkpoint.init_from(model(), given, prefix="policy.", finetune_only=("controller",))
    assert report.unused == ("extra",) and "unused: 1" in str(report)


@pytest.mark.parametrize(
    ("prefix", "only", "said"),
    [
        ("policies.", ("controller",), "expected tensors that fit under 'policies.', found none"),
        ("policy.", (), "found 2 neither (controller.weight, controller.bias)"),
        ("policy.", ("control",), "found 2 neither"),  # a name, not any prefix of one
    ],
)
def test_init_from_refuses_what_it_cannot_explain(prefix: str, only: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        checkpoint.init_from(model(), pretrained(), prefix=prefix, finetune_only=only)
    assert said in str(caught.value)


def test_another_architecture_is_refused_before_anything_is_copied() -> None:
    module, given = model(), pretrained()
    given["policy.trunk.bias"] = torch.ones(9)
    before = module["trunk"].weight.clone()
    with pytest.raises(UserError, match=r"expected shape \(4,\) for trunk.bias, found \(9,\) in runs/a"):
        checkpoint.init_from(module, given, prefix="policy.", finetune_only=("controller",), where="runs/a")
    assert torch.equal(module["trunk"].weight, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trunk.bias": None}, "expected the tensor trunk.bias"),
        ({"trunk.more": torch.ones(1)}, "expected no tensor trunk.more"),
        ({"trunk.bias": torch.ones(1)}, r"expected shape \(4,\) for trunk.bias, found \(1,\) in runs/a"),
    ],
)
def test_load_exactly_refuses_any_difference(change: dict[str, Tensor | None], said: str) -> None:
    given = {k: v for k, v in {**model().state_dict(), **change}.items() if v is not None}
    with pytest.raises(UserError, match=said):
        checkpoint.load_exactly(model(), given, "runs/a")


def test_nested_state_round_trip(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    state, skeleton = checkpoint.flatten(optimizer.state_dict())
    back = checkpoint.unflatten(state, json.loads(json.dumps(skeleton)))
    other = torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=0.5)
    other.load_state_dict(back)
    assert other.param_groups[0]["lr"] == 0.1
    assert torch.equal(
        other.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
