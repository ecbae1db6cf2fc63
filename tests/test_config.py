from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from lawm_policy import config
from lawm_policy.types import UserError


@dataclass(frozen=True)
class Small:
    kind: Literal["small"] = "small"
    width: int = 8


@dataclass(frozen=True)
class Large:
    kind: Literal["large"] = "large"
    width: int = 64
    depth: int = 4

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth {self.depth}, which is below 1")


@dataclass(frozen=True)
class Optimiser:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int | None = None
    precision: Literal["no", "bf16"] = "bf16"


@dataclass(frozen=True)
class Recipe:
    name: str
    model: Small | Large = field(default_factory=Small)
    optimiser: Optimiser = field(default_factory=lambda: Optimiser(lr=5e-4, warmup=10))
    cameras: tuple[str, ...] = ("front", "wrist")
    mixture: dict[str, float] = field(default_factory=dict)
    cache: Path | None = None
    compile: bool = False


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pretrain").mkdir()
    monkeypatch.setattr(config, "config_dir", lambda: tmp_path)
    return tmp_path / "pretrain"


def load(text: str, folder: Path, *overrides: tuple[str, str]) -> Recipe:
    (folder / "recipe.yaml").write_text(text)
    return config.load_config("recipe", Recipe, overrides, stage="pretrain")


def refused(text: str, folder: Path, *overrides: tuple[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        load(text, folder, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_holds_only_differences(folder: Path) -> None:
    recipe = load("name: a\noptimiser:\n  betas: [0.8, 0.9]\n", folder)
    # `warmup` and `lr` keep the outer class's default, not Optimiser's own
    assert recipe == Recipe("a", optimiser=Optimiser(lr=5e-4, warmup=10, betas=(0.8, 0.9)))


def test_base_then_file_then_overrides(folder: Path) -> None:
    (folder / "root.yaml").write_text("name: root\ncompile: true\noptimiser: {lr: 1e-2, warmup: 3}\n")
    recipe = load("base: root\noptimiser: {lr: 2e-2}\n", folder, ("optimiser.lr", "3e-4"), ("name", "12"))
    assert (recipe.name, recipe.compile) == ("12", True)
    assert (recipe.optimiser.lr, recipe.optimiser.warmup) == (3e-4, 3)


def test_a_path_works_as_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n")
    assert config.load_config(path, Recipe).name == "mine"


def test_kind_chooses_and_drops_what_belongs_to_the_other(folder: Path) -> None:
    (folder / "root.yaml").write_text("name: root\nmodel: {kind: large, depth: 9}\n")
    assert load("base: root\n", folder).model == Large(depth=9)
    assert load("base: root\nmodel: {width: 5}\n", folder).model == Large(width=5, depth=9)
    assert load("base: root\nmodel: {kind: small}\n", folder).model == Small()
    assert load("base: root\n", folder, ("model", "small"), ("model.width", "3")).model == Small(width=3)
    assert "did you mean 'large'" in refused("name: a\nmodel: {kind: larg}\n", folder)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("cameras", "front", ("front",)),
        ("cameras", "front,wrist", ("front", "wrist")),
        ("cameras", "[front, wrist]", ("front", "wrist")),
        ("optimiser.betas", "0.5,0.6", (0.5, 0.6)),
        ("optimiser.warmup", "none", None),
        ("optimiser.warmup", "1e3", 1000),
        ("optimiser.precision", "no", "no"),
        ("mixture", "{hand: 1, play: 0.5}", {"hand": 1.0, "play": 0.5}),
        ("mixture.hand", "2", {"hand": 2.0}),
        ("cache", "some/where", Path("some/where")),
        ("compile", "true", True),
        ("optimiser.lr", "1", 1.0),
    ],
)
def test_overrides_are_read_as_their_field_is_typed(folder: Path, key: str, text: str, value: Any) -> None:
    found: Any = load("name: a\n", folder, (key, text))
    for part in key.split(".") if key != "mixture.hand" else ["mixture"]:
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_yaml_means_what_it_looks_like(folder: Path) -> None:
    recipe = load("name: a\noptimiser: {precision: no, lr: 1e-4}\n", folder)
    assert recipe.optimiser.precision == "no"
    assert recipe.optimiser.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nam: a\n", "expected a known key, found 'nam': did you mean 'name'?"),
        ("name: a\noptimiser: {lrr: 1}\n", "found 'optimiser.lrr': did you mean 'optimiser.lr'?"),
        ("compile: true\n", "expected a value for name, found none"),
        ("name: 3\n", "expected text for name, found 3"),
        ("name: a\ncompile: yes\n", "expected true or false for compile, found 'yes'"),
        ("name: a\noptimiser: {lr: fast}\n", "expected a number for optimiser.lr, found 'fast'"),
        ("name: a\noptimiser: {lr: true}\n", "expected a number for optimiser.lr, found True"),
        ("name: a\noptimiser: {betas: [1]}\n", "expected 2 values for optimiser.betas, found [1]"),
        (
            "name: a\noptimiser: {precision: fp8}\n",
            "expected 'no' or 'bf16' for optimiser.precision, found 'fp8'",
        ),
        ("name: a\noptimiser: {warmup: 1.5}\n", "expected a whole number for optimiser.warmup, found 1.5"),
        ("name: a\noptimiser: 3\n", "expected keys and values (lr, betas, warmup, precision) for optimiser"),
        (
            "name: a\nmodel: {kind: large, depth: 0}\n",
            "expected valid model, found depth 0, which is below 1",
        ),
        ("name: a\ncameras: front\n", "expected a list for cameras, found 'front'"),
        ("name: a\nname: b\n", "expected each key once, found 'name' again in line 2"),
        ("- a\n", "expected keys and values in"),
        ("name: [a\n", "expected YAML in"),
        ("base: nothing\n", "expected a configuration of pretrain, found 'nothing'"),
        ("base: recipe\n", "expected a chain of bases with an end"),
    ],
)
def test_mistakes_in_a_file_name_the_key(folder: Path, text: str, said: str) -> None:
    assert said in refused(text, folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimizer.lr", "1", "did you mean 'optimiser'?"),
        ("optimiser.lr", "fast", "expected a number for optimiser.lr, found 'fast'"),
        ("compile", "1", "expected true or false for compile, found 1"),
        ("optimiser.lr.x", "1", "expected a number for optimiser.lr"),
        ("", "1", "expected a key like a.b"),
        ("optimiser.", "1", "for optimiser"),
    ],
)
def test_mistakes_in_an_override(folder: Path, key: str, value: str, said: str) -> None:
    assert said in refused("name: a\n", folder, (key, value))


def test_a_missing_configuration_names_the_nearest(folder: Path) -> None:
    (folder / "inverse-kl.yaml").write_text("name: a\n")
    with pytest.raises(UserError, match="did you mean 'inverse-kl'"):
        config.load_config("inverse_kl", Recipe, stage="pretrain")
    with pytest.raises(UserError, match="found nothing at"):
        config.load_config("no/such.yaml", Recipe, stage="pretrain")


def test_round_trip_through_yaml_and_dict(folder: Path) -> None:
    recipe = Recipe("a", Large(depth=2), Optimiser(precision="no"), ("front",), {"x": 0.5}, Path("c"), True)
    assert config.from_dict(Recipe, config.to_dict(recipe)) == recipe
    assert load(config.dump(recipe), folder) == recipe
    assert list(yaml.safe_load(config.dump(recipe)))[:2] == ["name", "model"]


def test_difference_names_the_first_key() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}}
    assert config.difference(old, {"a": 1, "b": {"c": 2, "d": 3}}) is None
    assert config.difference(old, {"a": 1, "b": {"c": 2, "d": 4}}) == "b.d: 3 and 4"
    assert config.difference(old, {"a": 1, "b": {"c": 2, "d": 3, "e": 1}}) == "b.e: null and 1"


def test_config_dir_holds_the_shipped_recipes() -> None:
    assert (config.config_dir() / "pretrain").is_dir()


def test_what_follows_from_another_key_is_refused_with_its_values() -> None:
    from lawm_policy.stages.finetune import DERIVED, FinetuneConfig, resolve

    asked = config.load_config("default", FinetuneConfig, (("data.size", "96"),), stage="finetune")
    said = r"expected data\.size=64, which follows from policy\.policy\.size, found 96"
    with pytest.raises(UserError, match=said):
        config.refuse_ignored((("data.size", "96"),), asked, resolve(asked, None), DERIVED)
