"""`lawm finetune`: a policy that acts, from labelled demonstrations and (or not) from pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lawm_policy.config import from_dict, load_config, refuse_ignored, to_dict, value_at
from lawm_policy.console import say
from lawm_policy.data.clips import DemoConfig, DemoDataset
from lawm_policy.data.normalize import Normalization
from lawm_policy.explain import explain
from lawm_policy.policies.baku import BakuConfig
from lawm_policy.policies.latent_policy import LatentPolicyConfig
from lawm_policy.stages.arguments import FinetuneArgs
from lawm_policy.training import FitResult, ParamGroup, TrainConfig
from lawm_policy.types import UserError, within

if TYPE_CHECKING:
    from lawm_policy.checkpoint import Checkpoint, InitReport
    from lawm_policy.policies.latent_policy import LatentPolicy
    from lawm_policy.types import Demo


PRETRAINED_POLICY = "encoder.policy."  # where a pretraining checkpoint keeps it


@dataclass(frozen=True)
class FinetuneConfig:
    policy: LatentPolicyConfig = field(default_factory=LatentPolicyConfig)
    data: DemoConfig = field(default_factory=DemoConfig)  # cameras, size and chunk follow the policy's
    train: TrainConfig = field(default_factory=TrainConfig)
    pretrained_lr: float = 1.0  # of what came from pretraining, as a share of train.lr
    validation_batches: int = 4

    def __post_init__(self) -> None:
        within(self, pretrained_lr="[0, inf)", validation_batches="[1, inf)")


DERIVED = {  # keys -> what they follow from
    "data.size": "policy.policy.size",
    "data.cameras": "policy.policy.cameras",
    "data.chunk": "policy.policy.chunk",
    "data.commands_per_latent": "policy.controller.commands_per_latent",
    "policy.policy": "--init",
    "policy.head": "--head",
}


def run(args: FinetuneArgs) -> int:
    within(args, draw="[0, inf)")
    asked = load_config(args.config, FinetuneConfig, args.overrides, stage="finetune")
    cfg = asked
    if args.head != "configured":
        cfg = replace(cfg, policy=replace(cfg.policy, head=args.head))
    start = _load(args.init) if args.init else None
    cfg = resolve(cfg, start)
    refuse_ignored(args.overrides, asked, cfg, DERIVED)
    if args.show:
        print(explain(cfg), end="")
        return 0
    result = finetune(
        cfg,
        args.data,
        args.out,
        init=start,
        demos=args.demos,
        draw=args.draw,
        train=args.train,
        resume=args.resume,
        force=args.force,
    )
    stopped = result.stopped == "sigterm"
    say(f"{result}: {args.out}{' (--resume goes on)' if stopped else ''}")
    return 143 if stopped else 0


def finetune(
    cfg: FinetuneConfig,
    data: Path,
    out: Path,
    *,
    init: Path | Checkpoint | None = None,
    demos: int | None = None,
    draw: int = 0,
    train: Literal["all", "controller", "head"] = "all",
    fresh: tuple[str, ...] = (),
    resume: bool = False,
    force: bool = False,
) -> FitResult:
    """Trains a policy. `fresh` names parts of it that start anew although the run to start from has them."""
    import torch

    from lawm_policy.policies.latent_policy import LatentPolicy
    from lawm_policy.runs import check_out, open_run
    from lawm_policy.training import fit

    check_out(out, resume=resume, force=force)
    pretrained = _load(init) if isinstance(init, Path) else init
    if pretrained is None and train != "all":
        raise UserError(
            f"expected --init with --train {train}, found none: from scratch there is nothing to freeze"
        )
    cfg = resolve(cfg, pretrained, fresh)
    demonstrations = DemoDataset(data, cfg.data, split="train", demos_per_task=demos, draw_seed=draw)
    held_out = DemoDataset(data, replace(cfg.data, shift=0), split="val")

    torch.manual_seed(cfg.train.seed)
    normalization = demonstrations.statistics()
    if pretrained is not None and pretrained.kind == "finetuned":  # its controller speaks in its own units
        normalization = Normalization.from_json(pretrained.meta["normalization"])
    # Of a store without a robot card commands are taken as they are, not as offsets from a state.
    names = {"state_names": demonstrations.state_names, "action_names": demonstrations.action_names}
    robot = {key: list(value) for key, value in names.items()} | {"relative_to": None}
    robot |= demonstrations.robot or {}
    if pretrained is not None and "controller" not in fresh:
        check_robot(robot, pretrained, data)
    policy = LatentPolicy(cfg.policy, normalization, robot)
    came: tuple[str, ...] = ()
    if pretrained is not None:
        report = initialise(policy, pretrained, fresh)
        came = report.loaded
        say(str(report))
    learnt_from = {str(data): demonstrations.fingerprint}
    if pretrained is not None:
        learnt_from[str(pretrained.folder)] = pretrained.sha256
    open_run(
        out,
        cfg,
        data=learnt_from,
        seeds={"train": cfg.train.seed, "draw": draw},
        asked={"--demos": demos, "--draw": draw, "--train": train, "fresh": list(fresh)},
        resume=resume,
        force=force,
    )
    say(f"{len(demonstrations.episodes)} demonstrations, {len(demonstrations)} moments; training {train}")
    batches = [held_out.batch(i, cfg.train.batch_size, seed=0) for i in range(cfg.validation_batches)]

    def batch(step: int, rows: slice | None = None) -> Demo:
        return demonstrations.batch(step, cfg.train.batch_size, cfg.train.seed, rows)

    return fit(
        policy,
        batch,
        cfg.train,
        out,
        share=batch,
        validate=lambda: validate(policy, batches),
        param_groups=groups(policy, came, train, cfg.pretrained_lr),
        metadata={
            "kind": "finetuned",
            "config": to_dict(cfg),
            "normalization": normalization.to_json(),
            "robot": robot,
            "demos": demos,
            "draw": draw,
            "init": None if pretrained is None else pretrained.sha256,
            "pretrained_tensors": len(came),
        },
        resume=resume,
    )


def resolve(cfg: FinetuneConfig, start: Checkpoint | None, fresh: tuple[str, ...] = ()) -> FinetuneConfig:
    """What follows from the rest: the policy from the run to start from, the data from the policy."""
    if start is not None:
        cfg = replace(cfg, policy=replace(cfg.policy, policy=policy_of(start)))
        check_start(cfg, start, fresh)
    if cfg.policy.execute > cfg.policy.policy.chunk:
        raise UserError(
            f"expected policy.execute <= {cfg.policy.policy.chunk}, the latents of a chunk, found "
            f"{cfg.policy.execute}: lower it"
        )
    return replace(cfg, data=demo_config(cfg))


def check_start(cfg: FinetuneConfig, start: Checkpoint, fresh: tuple[str, ...]) -> None:
    """What was learnt from one kind of data means nothing in another."""
    keys = ["data.hz"]
    if start.kind == "finetuned" and "controller" not in fresh:
        parts = ("kind", "width", "features", "commands_per_latent")
        keys += ["policy.head", *(f"policy.controller.{part}" for part in parts)]
    for key in keys:
        was, now = value_at(start.meta["config"], key), value_at(to_dict(cfg), key)
        if was != now:
            raise UserError(
                f"expected {key}={was}, as in the run to start from, found {now}: add --set {key}={was}, or "
                "start from another run"
            )


def check_robot(robot: dict[str, Any], start: Checkpoint, data: Path) -> None:
    """A controller that has learnt commands one robot."""
    for key in ("state_names", "action_names") if start.kind == "finetuned" else ():
        was, now = (", ".join(card[key]) for card in (start.meta["robot"], robot))
        if was != now:
            raise UserError(
                f"expected {key} {was} in {data}, as in the run to start from, found {now}: "
                "give demonstrations of that robot, or start from a pretrained run"
            )


def demo_config(cfg: FinetuneConfig) -> DemoConfig:
    shape = cfg.policy.policy
    return replace(
        cfg.data,
        size=shape.size,
        cameras=shape.cameras,
        chunk=shape.chunk,
        commands_per_latent=cfg.policy.controller.commands_per_latent,
    )


def _load(init: Path) -> Checkpoint:
    from lawm_policy.policies.loading import load_run

    found = load_run(init)
    if found.kind not in ("pretrained", "finetuned"):
        raise UserError(
            f"expected a pretrained or finetuned run, found '{found.kind}' at {init}: give another --init"
        )
    if found.meta.get("phase") == "world":
        raise UserError(
            f"expected a run whose policy has learnt, found the world model's at {init}: "
            "give the run that it lies in"
        )
    return found


def policy_of(start: Checkpoint) -> BakuConfig:
    """The architecture that the run to start from has: its tensors fit no other."""
    part = "recipe" if start.kind == "pretrained" else "policy"
    return from_dict(BakuConfig, start.meta["config"][part]["policy"])


def initialise(policy: LatentPolicy, start: Checkpoint, fresh: tuple[str, ...] = ()) -> InitReport:
    """The whole latent path from pretraining. Only labelled data can train the controller; a fine-tuned run
    has one already."""
    from lawm_policy.checkpoint import init_from

    tensors = start.tensors("model")
    if start.kind == "pretrained":
        said = {name: t for name, t in tensors.items() if name.startswith(PRETRAINED_POLICY)}
        tensors = {f"policy.{name.removeprefix(PRETRAINED_POLICY)}": t for name, t in said.items()}
        fresh = (*fresh, "controller")
    return init_from(policy, tensors, finetune_only=fresh, where=start.folder)


def groups(
    policy: LatentPolicy, came: tuple[str, ...], train: Literal["all", "controller", "head"], rate: float
) -> list[ParamGroup]:
    """What is trained, and how fast. The rest is frozen."""
    trained = {"all": ("",), "controller": ("controller.",), "head": ("controller.", "policy.head.")}[train]
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    parameters = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    fresh = [p for n, p in parameters.items() if n not in came]
    pretrained = [p for n, p in parameters.items() if n in came]
    named = [ParamGroup("fresh", fresh), ParamGroup("pretrained", pretrained, lr_multiplier=rate)]
    return [group for group in named if group.params]


def validate(policy: LatentPolicy, batches: list[Demo]) -> dict[str, float]:
    import torch

    device = next(policy.parameters()).device
    was_training = policy.training
    policy.eval()
    with torch.no_grad():
        rows = [policy.loss(batch.to(device)) for batch in batches]
    policy.train(was_training)
    return {key: float(sum(float(row[key]) for row in rows) / len(rows)) for key in rows[0]}
