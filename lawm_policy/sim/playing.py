"""One episode: what a policy is shown, and what becomes of the commands that it says."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np

from lawm_policy.policies.ensembling import Ensemble
from lawm_policy.sim.libero_premise import Diverged
from lawm_policy.sim.protocol import Actor, Episode, Seat


class End(NamedTuple):
    """What became of an episode."""

    success: bool
    steps: int  # control steps
    instruction: str  # that was given
    start: str  # where it began: `start_of`


Game = Generator[dict[str, Any], np.ndarray, Any]  # says what the policy sees, is sent a chunk of commands


def play(env: Any, actor: Actor, episode: Episode, **rules: Any) -> End:
    """`playing`, with a policy that sits here."""
    return answered(playing(env, actor, episode, **rules), actor)


def answered(game: Game, actor: Actor) -> Any:
    """What a game ends in whose questions the policy answers."""
    observation = next(game)
    actor.reset()
    while True:
        chunk_NA = actor.act(observation)
        try:
            observation = game.send(chunk_NA)
        except StopIteration as end:
            return end.value


def smoothed(game: Game, ensemble: Ensemble) -> Game:
    """The same game, for a policy that keeps no past."""
    observation = next(game)
    while True:
        chunk_NA = ensemble((yield observation))
        try:
            observation = game.send(chunk_NA)
        except StopIteration as end:
            return end.value


def playing(
    env: Any,
    actor: Seat | Actor,
    episode: Episode,
    *,
    execute: int,
    limit: int,
    blind: bool = False,
    no_language: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Game:
    """One episode, which says what the policy sees and is sent a chunk of commands, and returns its End.

    Whole chunks are executed and only the frame that the policy sees next is rendered. `watch` is
    called after each step for filming; it must not touch the simulation.
    """
    _seed(episode)
    width = env.action_space.shape[0]
    felt = _felt(env, actor)
    env.render_now = not blind
    observation, info = env.reset(seed=episode.init_state, options={"task": episode.task})
    instruction = "" if no_language else str(info["instruction"])
    start, steps = start_of(env), 0
    if watch:
        watch(0)
    while True:
        images = observation["images"]
        if blind:
            images = {name: np.zeros_like(image) for name, image in images.items()}
        said = yield {"images": images, "state": observation["state"][felt], "instruction": instruction}
        chunk_NA = check_chunk(said, execute, width)
        for k in range(execute):
            env.render_now = not blind and k == execute - 1
            try:
                observation, _, terminated, truncated, info = env.step(chunk_NA[k])
            except Diverged:  # by its own commands: a failure, and no error of ours
                return End(False, steps, instruction, start)
            steps += 1
            if watch:
                watch(steps)
            if terminated or truncated or steps >= limit:
                return End(bool(info["success"]), steps, instruction, start)


def start_of(env: Any) -> str:
    """A mark of the state that an environment is in, to a millimetre, where it has MuJoCo's data: episodes of
    two evaluations are pairs if they began alike."""
    where = getattr(getattr(env, "data", None), "qpos", None)
    return "" if where is None else f"{zlib.crc32((np.round(where, 3) + 0.0).tobytes()):08x}"  # no -0.0


def _felt(env: Any, actor: Seat | Actor) -> list[int] | slice:
    """Which numbers of the state the policy knows: it may have learnt from fewer than this robot tells."""
    wanted = (actor.robot or {}).get("state_names")
    if wanted is None:
        return slice(None)
    told = list(env.robot_card()["state_names"])
    return [told.index(name) for name in wanted]


def check_chunk(chunk_NA: Any, execute: int, width: int) -> np.ndarray:
    """The commands, or an error that says what is wrong with them."""
    chunk_NA = np.asarray(chunk_NA)
    if chunk_NA.ndim != 2 or chunk_NA.shape[0] < execute or chunk_NA.shape[1] != width:
        raise ValueError(f"expected commands of shape (>={execute}, {width}), found {chunk_NA.shape}")
    bad = ~np.isfinite(chunk_NA[:execute])
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"expected finite commands, found {chunk_NA[row, column]} at [{row}, {column}]")
    return chunk_NA.astype(np.float32)


def _seed(episode: Episode) -> None:
    """A policy that draws, draws the same whichever worker plays the episode, and after whatever."""
    value = zlib.crc32("/".join(map(str, episode)).encode())
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 (a policy may use it; ours do not)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(value)
