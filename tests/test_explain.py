from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from lawm_policy import config
from lawm_policy.explain import explain, field_comments
from lawm_policy.stages.finetune import FinetuneConfig
from lawm_policy.stages.pretrain import PretrainConfig


@dataclass(frozen=True)
class Inner:
    width: int = 3
    """How wide,
    in pixels."""
    mode: Literal["no", "yes"] = "no"  # of two


@dataclass(frozen=True)
class Outer:
    """Its own docstring belongs to no field."""

    name: str = "a: b  # c"  # hard to quote
    inner: Inner = field(default_factory=Inner)  # what is inside
    rate: float = 1e-5
    cameras: tuple[str, ...] = ("front", "wrist")
    share: dict[str, float] = field(default_factory=lambda: {"x": 0.5})
    cache: Path | None = None
    kind: Literal["one"] = (
        "one"  # long enough that the formatter puts brackets around the value and this beside it
    )


def test_every_key_is_shown_with_what_the_source_says_of_it() -> None:
    assert explain(Outer()).splitlines() == [
        "name: 'a: b  # c'  # hard to quote",
        "inner:  # what is inside",
        "  width: 3  # How wide, in pixels.",
        "  mode: 'no'  # no or yes; of two",
        "rate: 1.0e-05",
        "cameras: [front, wrist]",
        "share: {x: 0.5}",
        "cache: null",
        "kind: one  # long enough that the formatter puts brackets around the value and this beside it",
    ]


@pytest.mark.parametrize("made", [Outer(), PretrainConfig(), FinetuneConfig()])
def test_what_is_shown_reads_back_as_the_same(made: object) -> None:
    assert config.from_dict(type(made), config.parse_yaml(explain(made), "it")) == made


def test_a_string_below_a_field_comes_before_a_comment_beside_it() -> None:
    assert field_comments(Inner) == {"width": "How wide, in pixels.", "mode": "of two"}
