"""The arguments of the verbs whose stage imports torch, apart from it: help, and a mistake in a
command, should take no seconds. Other stages keep their arguments beside their `run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro


@dataclass(frozen=True)
class PretrainArgs:
    """Pretrain by world modelling on unlabelled videos (stores made by `lawm import` or `lawm collect`)."""

    config: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """a recipe: lawm, inverse-kl, variational, debug, or a YAML file"""
    data: tuple[Path, ...]
    """one or more episode stores; captions are used where there are any; commands, where there are any, only
    to leave out an episode's still beginning and end (--set data.trim_still=false: not even for that)"""
    out: Path
    """the run's folder, made anew"""
    resume: bool = False
    """go on where this run stopped"""
    force: bool = False
    """replace an existing run"""
    show: bool = False
    """print the configuration, every key and what is said of it, and end; needs neither --data nor --out"""
    overrides: tyro.conf.Suppress[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def to_show(cls) -> Self:
        """What is required, and not with --show."""
        return cls(config=tyro.MISSING, data=(), out=Path())


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
    head: Literal["configured", "controller", "fresh"] = "configured"
    """decode latents by a controller, or replace the latent head by a fresh action head (as LAWM does);
    configured: as policy.head of the configuration says"""
    resume: bool = False
    """go on where this run stopped"""
    force: bool = False
    """replace an existing run"""
    show: bool = False
    """print the configuration, every key and what is said of it, and end; needs neither --data nor --out"""
    overrides: tyro.conf.Suppress[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def to_show(cls) -> Self:
        """What is required, and not with --show."""
        return cls(config=tyro.MISSING, data=Path(), out=Path())


ARGUMENTS: dict[str, type[Any]] = {"pretrain": PretrainArgs, "finetune": FinetuneArgs}
