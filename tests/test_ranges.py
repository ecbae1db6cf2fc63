"""Every number of a configuration has a range, and who leaves it is told the key's whole name."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from lawm_policy.config import load_config
from lawm_policy.stages.finetune import FinetuneConfig
from lawm_policy.stages.pretrain import PretrainConfig
from lawm_policy.types import UserError

STAGES: dict[str, type] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


def numbers(config: Any, at: str = "") -> Iterator[str]:
    """The whole names of all numbers."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{at}{field.name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield at + field.name


def refused(stage: str, key: str, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config("debug", STAGES[stage], [(key, text)], stage=stage)
    message = str(caught.value)
    assert message.startswith("expected ") and "found " in message and "\n" not in message
    return message


@pytest.mark.parametrize("stage", STAGES)
def test_no_number_may_be_anything(stage: str) -> None:
    keys = list(numbers(load_config("debug", STAGES[stage], stage=stage)))
    assert len(keys) > 40
    for key in keys:
        message = refused(stage, key, "-7")
        assert message.startswith(f"expected {key} ") and "found -7" in message


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *((f"recipe.policy.{key}", "0") for key in ("chunk", "latent", "width", "layers", "components")),
        ("recipe.policy.dropout", "2"),
        ("recipe.policy.dropout", "1"),
        ("recipe.policy.trunk.channels", "24"),
        ("recipe.policy.trunk.grid", "7"),
        ("recipe.policy.size", "16"),
        ("recipe.policy.size", "50"),
        ("recipe.policy.size", "96"),
        ("recipe.policy.cameras", "front,front"),
        ("recipe.policy.cameras", "[]"),
        ("recipe.inverse.bottleneck.beta", ".nan"),
        ("recipe.world_model.deter", "0"),
        ("recipe.world_model.channels", "0"),
        ("recipe.world_model.decode_steps", "7"),
        ("recipe.prior_share", "5"),
        ("recipe.world_share", "0"),
        ("recipe.clone", ".inf"),
        ("data.hz", "0"),
        ("data.hz", ".nan"),
        ("data.shift", "32"),
        ("data.early_seconds", "-1"),
        ("weights", "1,0"),
        ("validation_clips", "1"),
        ("train.seed", "99999999999999999999999"),
        ("world.lr", "0"),
    ],
)
def test_what_no_run_could_use_is_refused_by_its_name(key: str, text: str) -> None:
    assert refused("pretrain", key, text).startswith(f"expected {key}")


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("recipe.policy.heads", "3", "expected recipe.policy.width to be a multiple of heads, which is 3"),
        ("recipe.inverse.grid", "5", "expected recipe.policy.size among 10, 20"),
        ("recipe.source", "policy", "expected recipe.policy.density=false"),
        ("recipe.world_share", "1.5", "expected recipe.world_share > 0 and <= 1, found 1.5"),
        ("train.accumulate", "3", "expected train.accumulate to divide batch_size"),
    ],
)
def test_what_does_not_fit_together_names_both(key: str, text: str, said: str) -> None:
    assert refused("pretrain", key, text).startswith(said)


@pytest.mark.parametrize("value", ["64", "128", "256"])
def test_sizes_that_fit_pass(value: str) -> None:
    config = load_config("debug", PretrainConfig, [("recipe.policy.size", value)], stage="pretrain")
    assert config.recipe.policy.size == int(value)


def test_what_would_mean_nothing_is_refused() -> None:
    """A key that is written into the record and changes nothing misleads."""
    told = [("recipe.source", "variational"), ("recipe.inverse.bottleneck.beta", "0.1")]
    with pytest.raises(UserError, match=r"expected no inverse\.bottleneck\.beta with source 'variational'"):
        load_config("debug", PretrainConfig, told, stage="pretrain")
    told = [("world.steps", "5"), ("recipe.world_share", "0.5")]
    with pytest.raises(UserError, match=r"expected recipe\.world_share=1 with world\.steps"):
        load_config("debug", PretrainConfig, told, stage="pretrain")
