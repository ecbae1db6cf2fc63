"""Trained things, ready to use, from a run's folder or a checkpoint's."""

from __future__ import annotations

from pathlib import Path

from lawm_policy import checkpoint
from lawm_policy.config import from_dict
from lawm_policy.data.normalize import Normalization
from lawm_policy.policies.latent_policy import LatentPolicy, LatentPolicyConfig
from lawm_policy.recipe import Recipe, RecipeConfig
from lawm_policy.types import UserError


def load_policy(run: str | Path, which: str = "best") -> LatentPolicy:
    """The policy of a fine-tuning run, in evaluation mode, on the CPU."""
    saved = load_run(run, "finetuned", which)
    cfg = from_dict(LatentPolicyConfig, saved.meta["config"]["policy"])
    policy = LatentPolicy(cfg, Normalization.from_json(saved.meta["normalization"]), saved.meta["robot"])
    checkpoint.load_exactly(policy, saved.tensors("model"), saved.folder)
    policy.sha256 = saved.sha256
    return policy.eval()


def load_pretrained(run: str | Path, which: str = "best") -> Recipe:
    """The parts of a pretraining run: `.encoder`, `.world_model`, `.policy`."""
    saved = load_run(run, "pretrained", which)
    recipe = Recipe(from_dict(RecipeConfig, saved.meta["config"]["recipe"]))
    checkpoint.load_exactly(recipe, saved.tensors("model"), saved.folder)
    return recipe.eval()


def load_run(run: str | Path, kind: str | None = None, which: str = "best") -> checkpoint.Checkpoint:
    """`best` where the run has one (it was validated), else `last`."""
    try:
        return checkpoint.load(run, kind=kind, which=which)
    except UserError:
        if which == "best" and not (Path(run) / "checkpoints" / "best").exists():
            return checkpoint.load(run, kind=kind, which="last")
        raise
