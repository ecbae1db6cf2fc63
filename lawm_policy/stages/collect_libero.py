"""What `lawm collect` needs to know of LIBERO: its tasks, how an episode is made and stored."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lawm_policy.sim.libero_protocol import LiberoProtocol, choose, protocol_named
from lawm_policy.sim.libero_robot import CONTROL_HZ, panda_card
from lawm_policy.sim.protocol import SPLITS
from lawm_policy.stages.collect_args import CollectArgs, Played, Slot, closing
from lawm_policy.types import UserError

if TYPE_CHECKING:
    from lawm_policy.sim.libero_env import LiberoEnv

EMBODIMENT = "panda"
SIZES = (64, 128, 256)
SCENES = 4  # of an episode: where the expert gives one up, or nobody could do the task, another is tried
ELSEWHERE = 10**9  # the others' seeds are this far away: in no other collection, and no evaluation


def resolved(args: CollectArgs) -> CollectArgs:
    """With what was left out."""
    return replace(
        args,
        embodiment=args.embodiment or EMBODIMENT,
        command=args.command or "ee",
        size=args.pixels,
    )


def check(args: CollectArgs) -> list[Slot]:
    """The episodes that are asked for: seeds of drawn states, the same for each task."""
    if args.pixels not in SIZES:
        raise UserError(f"expected --size 64, 128 or 256 for LIBERO, found {args.size}: choose one")
    if args.embodiment != EMBODIMENT:
        raise UserError(f"expected --embodiment panda for LIBERO, found {args.embodiment}: leave it out")
    if "distractors" in rules_of(args).perturbations:
        raise UserError(
            f"expected a protocol without distractors to collect, found {args.protocol}: "
            "the experts take them for the table; perturb when you evaluate"
        )
    if args.command != "ee":
        raise UserError(
            "expected hand commands for LIBERO, found --command joint: leave it out, and fine-tune with "
            "--set data.command=joint"
        )
    if rules_of(args).factor is None:
        raise UserError(
            f"expected a protocol whose states are drawn (+fresh or +wide:3), found {args.protocol}: "
            "the stored states are what everybody tests on"
        )
    if args.seed + args.episodes > SPLITS["val"]:
        raise UserError(
            f"expected seeds below {SPLITS['val']}, where validation begins, found {args.seed} and "
            f"{args.episodes} episodes: lower --seed or --episodes"
        )
    return [
        Slot(EMBODIMENT, task, args.seed + k, EMBODIMENT)
        for task in choose(args.suite, "all" if args.tasks is None else args.tasks)
        for k in range(args.episodes)
    ]


def rules_of(args: CollectArgs) -> LiberoProtocol:
    """The protocol, rendered as large as the images shall be."""
    rules = protocol_named(args.protocol)
    return rules if args.pixels <= rules.resolution else replace(rules, resolution=args.pixels)


def open_env(args: CollectArgs, task: str | None = None) -> LiberoEnv:
    from lawm_policy.sim.libero_env import LiberoEnv

    name = choose(args.suite, "all" if args.tasks is None else args.tasks)[0] if task is None else task
    return LiberoEnv(name, size=args.pixels, protocol=rules_of(args))


def card(args: CollectArgs) -> dict[str, Any]:
    """The robot card, with nothing compiled."""
    rules = rules_of(args)
    return panda_card("ee", tuple(rules.cameras), rules.flip, rules.visuals)


def performer(args: CollectArgs, attempts: int) -> Any:
    """Plays slots; `close` closes what is open."""
    from lawm_policy.sim.libero_experts import rollout
    from lawm_policy.sim.libero_premise import BrokenPremise, Diverged
    from lawm_policy.sim.libero_suite import Tasks

    tasks = Tasks(lambda task: open_env(args, task))
    stride = CONTROL_HZ // args.fps

    def perform(slot: Slot) -> Played:
        env, failures = tasks[slot.task], 0
        for scene in range(slot.seed, slot.seed + SCENES * ELSEWHERE, ELSEWHERE):
            with suppress(BrokenPremise):  # nobody could do the task from there
                for attempt in range(attempts):
                    with suppress(Diverged):
                        episode = rollout(env, scene, attempt=attempt, frame_stride=stride)
                        if episode.success:
                            return Played(episode, failures, attempt)
                    failures += 1
        return Played(None, failures)

    return closing(perform, tasks.made)
