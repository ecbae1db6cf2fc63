"""Whether a policy and a suite belong together: cameras, commands, state, and how images are turned."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lawm_policy.sim.libero_premise import BrokenPremise
from lawm_policy.sim.protocol import Actor, Seat, Suite
from lawm_policy.types import UserError

MENDS = {
    "flip": "evaluate it with a protocol whose images are turned as those that it learnt from",
    "visuals": "evaluate it with images drawn as those that it learnt from (@lawm+lite, or without lite)",
}


def make_env(
    suite: Suite, actor: Actor | Seat, distractors: int = 0, card: Mapping[str, Any] | None = None
) -> Any:
    """With the policy's robot, or that of another card."""
    robot = {**suite.robot, **((actor.robot if card is None else card) or {})}
    return suite.make(
        embodiment=robot["embodiment"],
        command=robot["command"],
        size=actor.size,
        cameras=tuple(actor.cameras),
        distractors=distractors,
    )


def check_match(suite: Suite, actor: Actor | Seat, distractors: int = 0) -> dict[str, Any]:
    """The robot card, once the policy and the simulated robot agree on it."""
    unknown = [name for name in actor.cameras if name not in suite.cameras]
    if unknown:
        raise UserError(
            f"expected cameras among {', '.join(suite.cameras)}, found a policy that looks through "
            f"{', '.join(unknown)}: evaluate it where its cameras are"
        )
    try:
        env = make_env(suite, actor, distractors)
    except (KeyError, ValueError) as error:
        if isinstance(error, UserError):  # the suite's own robot may meet it too: LIBERO is not installed
            make_env(suite, actor, distractors, card={}).close()
        raise UserError(
            f"expected a robot of suite {suite.name}, found the policy's ({error}): give the --suite that it "
            "learnt in"
        ) from error
    try:
        with suppress(BrokenPremise):  # this state need not be among those that are asked for
            # It renders: no OpenGL is known here, not later.
            env.reset(seed=0, options={"task": next(iter(suite.limits))})
        card = dict(env.robot_card())
        policys = actor.robot or {}
        for key in ("action_names", "rate", "flip", "visuals"):
            theirs = policys.get(key, card.get(key))
            if theirs != card.get(key):
                raise UserError(
                    f"expected the policy's {key} to be {card.get(key)} as in suite {suite.name}, "
                    f"found {theirs}: {MENDS.get(key, 'fine-tune on demonstrations of this robot')}"
                )
        if strange := set(policys.get("state_names", ())) - set(card["state_names"]):
            raise UserError(
                f"expected the policy's state_names among {card['state_names']} as in suite {suite.name}, "
                f"found {sorted(strange)}: fine-tune on demonstrations of this robot"
            )
    finally:
        env.close()
    return card
