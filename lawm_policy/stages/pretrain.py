"""`lawm pretrain`: latent actions, a world model and a policy from unlabelled videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lawm_policy.console import say
from lawm_policy.data.clips import ClipConfig, ClipDataset
from lawm_policy.recipe import RecipeConfig
from lawm_policy.stages.arguments import PretrainArgs
from lawm_policy.training import FitResult, TrainConfig
from lawm_policy.types import UserError, within

if TYPE_CHECKING:
    from torch import Tensor

    from lawm_policy.recipe import Recipe
    from lawm_policy.types import Clip


@dataclass(frozen=True)
class WorldFirst:
    """z and the world model learn first, and rest while the policy, as `train` says, clones z."""

    steps: int = 0  # 0: all of it learns together
    batch_size: int = 16
    lr: float = 5e-4

    def __post_init__(self) -> None:
        within(self, steps="[0, inf)", batch_size="[1, inf)", lr="(0, inf)")


@dataclass(frozen=True)
class PretrainConfig:
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    data: ClipConfig = field(default_factory=ClipConfig)  # cameras, size and length follow the policy's
    weights: tuple[float, ...] = ()  # how often each --data is drawn from; left out: all alike
    world: WorldFirst = field(default_factory=WorldFirst)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation_clips: int = 256

    def __post_init__(self) -> None:
        within(self, weights="(0, inf)", validation_clips="[2, inf)")
        if self.world.steps and self.recipe.source != "inverse":
            raise UserError(
                f"expected world.steps=0 with source '{self.recipe.source}', found {self.world.steps}: "
                "only a policy that clones latents can wait for them"
            )
        if self.world.steps and self.recipe.world_share < 1:
            raise UserError(
                f"expected recipe.world_share=1 with world.steps, found {self.recipe.world_share}: the world "
                "model, which is learnt first, sees all clips; change world.batch_size"
            )


DERIVED = {  # keys of the data -> what they follow from
    "data.size": "recipe.policy.size",
    "data.cameras": "recipe.policy.cameras",
    "data.length": "recipe.policy.chunk",
}


def run(args: PretrainArgs) -> int:
    from lawm_policy.config import load_config, refuse_ignored
    from lawm_policy.explain import explain

    cfg = load_config(args.config, PretrainConfig, args.overrides, stage="pretrain")
    resolved = replace(cfg, data=clip_config(cfg))
    refuse_ignored(args.overrides, cfg, resolved, DERIVED)
    if args.show:
        print(explain(resolved), end="")
        return 0
    result = pretrain(cfg, args.data, args.out, resume=args.resume, force=args.force)
    stopped = result.stopped == "sigterm"
    say(f"{result}: {args.out}{' (--resume goes on)' if stopped else ''}")
    return 143 if stopped else 0


def pretrain(
    cfg: PretrainConfig,
    data: tuple[Path, ...],
    out: Path,
    *,
    module: Callable[[RecipeConfig], Recipe] | None = None,
    change: Callable[[int, Clip], Clip] | None = None,
    resume: bool = False,
    force: bool = False,
) -> FitResult:
    """Trains a recipe. For experiments: another `module` in the recipe's place, and a `change` of each
    training batch (a function of the step, so that a resumed run sees the same)."""
    import torch

    from lawm_policy.checkpoint import load_exactly
    from lawm_policy.config import to_dict
    from lawm_policy.policies.loading import load_run
    from lawm_policy.recipe import Recipe
    from lawm_policy.runs import WORLD, check_out, open_run
    from lawm_policy.training import fit

    check_out(out, resume=resume, force=force)
    cfg = replace(cfg, data=clip_config(cfg))
    first = replace(cfg.train, **to_dict(cfg.world)) if cfg.world.steps else None
    torch.manual_seed(cfg.train.seed)
    recipe = (module or Recipe)(cfg.recipe)
    clips = ClipDataset(_weighted(data, cfg.weights), cfg.data, split="train")
    held_out = validation_batches(data, cfg)
    facts = dict(clips.fingerprints)
    open_run(out, cfg, data=facts, seeds={"train": cfg.train.seed}, resume=resume, force=force)
    say(
        f"source {cfg.recipe.source}, {_millions(recipe)} parameters, "
        f"{len(clips)} clips of {cfg.data.length} frames"
    )

    def train(settings: TrainConfig, out: Path) -> FitResult:
        def batch(step: int, rows: slice | None = None) -> Clip:
            drawn = clips.batch(step, settings.batch_size, settings.seed, rows)
            return drawn if change is None else change(step, drawn)

        return fit(
            recipe,
            batch,
            settings,
            out,
            share=batch if change is None else None,  # a change may mix the rows
            validate=lambda: validate(recipe, held_out),
            on_validate=None if recipe.phase == "clone" else partial(_film, recipe, held_out, out),
            metadata={"kind": "pretrained", "config": to_dict(cfg), "data": facts, "phase": recipe.phase},
            resume=resume,
        )

    if first is None:
        return train(cfg.train, out)
    recipe.enter("world")
    done = train(first, out / WORLD)
    if done.stopped == "sigterm":
        return done
    best = load_run(out / WORLD)
    load_exactly(recipe, best.tensors("model"), best.folder)
    recipe.enter("clone")
    return train(cfg.train, out)


def clip_config(cfg: PretrainConfig) -> ClipConfig:
    """The policy's shapes decide what a clip looks like."""
    shape = cfg.recipe.policy
    return replace(cfg.data, size=shape.size, cameras=shape.cameras, length=shape.chunk + 1)


def _weighted(data: tuple[Path, ...], weights: tuple[float, ...]) -> list[Path | tuple[Path, float]]:
    if weights and len(weights) != len(data):
        raise UserError(
            f"expected one weight for each --data, found {len(weights)} for {len(data)}: change weights"
        )
    return list(zip(data, weights, strict=True)) if weights else list(data)


def validation_batches(data: tuple[Path, ...], cfg: PretrainConfig) -> list[Clip]:
    held_out = ClipDataset(data, replace(clip_config(cfg), shift=0), split="val")
    size = min(64, cfg.validation_clips)
    return [held_out.batch(i, size, seed=0) for i in range(max(1, cfg.validation_clips // size))]


def validate(recipe: Recipe, clips: list[Clip]) -> dict[str, float]:
    """Held-out losses, and whether z is used. "loss", which decides `best`, is of the frames alone where z is
    learnt: cloning it and its bottleneck cost nothing at first, and more the more it says."""
    import torch

    from lawm_policy.measures import z_use

    device = next(recipe.parameters()).device
    clips = [clip.to(device) for clip in clips]
    was_training = recipe.training
    recipe.eval()
    with torch.no_grad():
        losses = [recipe(clip) for clip in clips]
    metrics = {key: _mean([row[key] for row in losses]) for key in losses[0]}
    metrics |= z_use(recipe, clips) | {"loss": metrics.get("frames", metrics["loss"])}
    recipe.train(was_training)
    return metrics


def _mean(values: list[Tensor]) -> float:
    return float(sum(float(value) for value in values) / len(values))


def _film(recipe: Recipe, clips: list[Clip], out: Path, step: int) -> None:
    from lawm_policy.pictures import film_strip

    device = next(recipe.parameters()).device
    film_strip(recipe, clips[0].to(device), out / "strips" / f"step-{step:08d}.png")


def _millions(recipe: Recipe) -> str:
    return f"{sum(p.numel() for p in recipe.parameters()) / 1e6:.1f}M"
