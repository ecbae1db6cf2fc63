"""The arguments of the verbs whose stage imports torch, apart from it: help, and a mistake in a
command, should take no seconds. Other stages keep their arguments beside their `run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class PretrainArgs:
    """Pretrain by world modelling on unlabelled videos (stores made by `lawm import` or `lawm collect`)."""

    config: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """a recipe: lawm, inverse-kl, variational, debug, or a YAML file"""
    data: tuple[Path, ...]
    """one or more episode stores; captions are used where there are any, actions never"""
    out: Path
    """the run's folder, made anew"""
    resume: bool = False
    """go on where this run stopped"""
    force: bool = False
    """replace an existing run"""
    overrides: tyro.conf.Suppress[tuple[tuple[str, str], ...]] = ()


@dataclass(frozen=True)
class FinetuneArgs:
    """Fine-tune on labelled demonstrations: from a pretraining run, or from scratch."""

    config: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """a configuration: default, debug, or a YAML file"""
    data: Path
    """an episode store with states and actions"""
    out: Path
    """the run's folder, made anew"""
    init: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(left out: from scratch)")] = None
    """the run to start from, pretrained or fine-tuned"""
    demos: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(left out: all)")] = None
    """labelled demonstrations a task; a smaller number is a subset of a larger one"""
    draw: int = 0
    """which draw of demonstrations"""
    train: Literal["all", "controller", "head"] = "all"
    """what is trained: all, the controller alone (imitation from observation), or head and controller"""
    head: Literal["controller", "fresh"] = "controller"
    """decode latents by a controller, or replace the latent head by a fresh action head (as LAWM does)"""
    resume: bool = False
    """go on where this run stopped"""
    force: bool = False
    """replace an existing run"""
    overrides: tyro.conf.Suppress[tuple[tuple[str, str], ...]] = ()


ARGUMENTS: dict[str, type[Any]] = {"pretrain": PretrainArgs, "finetune": FinetuneArgs}
