"""Gate 2 at small size, on real clips of the tabletop: z is used. `benchmarks/gates.py` asks full runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from controls import MODULES

from lawm_policy import measures
from lawm_policy.config import load_config
from lawm_policy.policies.loading import load_pretrained
from lawm_policy.recipe import Recipe
from lawm_policy.sim.futures import paired_clips
from lawm_policy.sim.tabletop_env import TabletopEnv
from lawm_policy.stages.collect import CollectArgs
from lawm_policy.stages.collect import run as collect
from lawm_policy.stages.importing import ImportArgs
from lawm_policy.stages.importing import run as import_videos
from lawm_policy.stages.pretrain import PretrainConfig, pretrain, validation_batches
from lawm_policy.types import Clip

SMALL = (
    ("train.steps", "500"),
    ("train.batch_size", "16"),
    ("train.save_every", "500"),
    ("validation_clips", "64"),
)
TASKS = "push_red,push_blue,open_drawer,close_drawer"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ordinary mp4 files, imported: what pretraining gets."""
    folder = tmp_path_factory.mktemp("videos")
    arguments = CollectArgs(
        "tabletop", folder / "mp4", kind="videos", tasks=TASKS, episodes=10, fps=10, size=32, workers=0
    )
    assert collect(arguments) == 0
    assert not import_videos(
        ImportArgs("videos", (folder / "mp4",), folder / "store", fps="10", size=32, workers=1)
    )
    return folder / "store"


def train(source: str, videos: Path, out: Path, module: str = "") -> PretrainConfig:
    overrides = [*SMALL, ("recipe.source", source)]
    if source == "policy":
        overrides += [("recipe.policy.components", "1"), ("recipe.policy.density", "false")]
    cfg = load_config("debug", PretrainConfig, overrides, stage="pretrain")
    pretrain(cfg, (videos,), out, module=MODULES.get(module))
    return cfg


@pytest.fixture(scope="module", params=["inverse", "variational"])
def trained(
    request: pytest.FixtureRequest, videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator:  # type: ignore[type-arg]
    out = tmp_path_factory.mktemp(request.param)
    cfg = train(request.param, videos, out / "run")
    yield load_pretrained(out / "run"), validation_batches((videos,), cfg)


@pytest.mark.slow
def test_another_clips_z_and_the_mean_z_both_cost(trained: tuple[Recipe, list[Clip]]) -> None:
    recipe, clips = trained
    use = measures.z_use(recipe, clips)
    assert use["shuffled_cost"] >= 0.1 and use["mean_cost"] >= 0.1


@pytest.mark.slow
def test_prediction_beats_copying_where_things_moved(trained: tuple[Recipe, list[Clip]]) -> None:
    recipe, clips = trained
    rows = measures.psnr(recipe, clips, steps=(2, 6))
    for step in (2, 6):
        gaps = torch.tensor([row[f"model_{step}"] - row[f"copy_{step}"] for row in rows])
        assert float(gaps[gaps.isfinite()].mean()) >= 0.5


@pytest.mark.slow
def test_two_instructions_give_two_futures_of_one_image() -> None:
    """The material of the paired gate: same state, same first image, different films."""
    env = TabletopEnv(size=32)
    a, b = paired_clips(env, range(4), chunk=6, stride=4)
    env.close()
    assert torch.equal(a.frames_BTVCHW[:, 0], b.frames_BTVCHW[:, 0])
    assert all(x != y for x, y in zip(a.text, b.text, strict=True))
    differs = (a.frames_BTVCHW[:, -1] != b.frames_BTVCHW[:, -1]).flatten(1).float().mean(1)
    assert bool((differs > 0.01).all())


def test_the_paired_measure_tells_a_listener_from_one_who_does_not_hear() -> None:
    """Calibration: z read off the future tells the two apart, a constant z cannot."""
    import tiny

    torch.manual_seed(0)
    a = tiny.clip(8, seed=0)
    b = replace(tiny.clip(8, seed=0), frames_BTVCHW=a.frames_BTVCHW.clone())
    b.frames_BTVCHW[:, 1:] = a.frames_BTVCHW[:, :1]  # in B nothing moves
    recipe = Recipe(tiny.RECIPES["inverse"])
    optimiser = torch.optim.AdamW(recipe.parameters(), 3e-3)
    for step in range(80):
        loss = recipe(a if step % 2 else b)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(measures.paired_futures(recipe, a, b).float().mean()) > 0.9
    deaf = MODULES["z-free"](tiny.RECIPES["inverse"])
    assert not measures.paired_futures(deaf, a, b).any()
