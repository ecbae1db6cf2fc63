"""What a worker of `lawm eval` does: a simulator, episodes one by one, and a policy of its own or a seat
before one that sits in another process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from lawm_policy.sim.crews import load_function
from lawm_policy.sim.matching import check_match, make_env
from lawm_policy.sim.playing import answered, playing, smoothed
from lawm_policy.sim.protocol import Episode, Seat
from lawm_policy.sim.suites import suite_named
from lawm_policy.types import UserError

# An episode of a policy that sits elsewhere: says what it sees, is sent commands, ends in its numbers.
Played = Generator[dict[str, Any], Any, dict[str, Any]]
FILM_HZ, FILM_PIXELS = 10, 128


def begin(
    run: str,
    factory: str,
    sha256: str,
    seat: Seat | None,
    suite: str,
    distractors: int,
    execute: int,
    blind: bool,
    no_language: bool,
    video: str | None,
) -> Callable[[tuple[Episode, bool]], Any]:
    """A worker's start; returns the function that plays one episode."""
    player: Any = seat or load_function(factory)(run)
    if player.sha256 != sha256:
        raise UserError(
            f"expected checkpoint {sha256[:12]} at {run}, found {player.sha256[:12]}: wait for its training "
            "to end, or give the folder of the checkpoint itself"
        )
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if ensemble := getattr(player, "ensemble", None):
        ensemble.execute = execute
    rules = suite_named(suite)
    env = make_env(rules, player, distractors)

    def work(job: tuple[Episode, bool]) -> Played:
        episode, film = job
        began = time.monotonic()
        camera = None
        if film and video is not None:
            from lawm_policy.sim.film import Film

            rate = int(env.robot_card()["rate"])
            every = max(1, rate // FILM_HZ)
            camera = Film(env, player.cameras, FILM_PIXELS, every=every, hz=round(rate / every))
        game = playing(
            env,
            player,
            episode,
            execute=execute,
            limit=rules.limits[episode.task],
            blind=blind,
            no_language=no_language,
            watch=camera.watch if camera else None,
        )
        try:
            end = yield from smoothed(game, seat.ensemble.fresh()) if seat else game
            if camera and video is not None:
                camera.end(end.steps)
                camera.write(Path(video) / film_name(episode))
        finally:
            if camera:
                camera.close()
        return end._asdict() | {"seconds": round(time.monotonic() - began, 3)}

    play: Any = work if seat else lambda job: answered(work(job), player)
    play.close = env.close
    return play


def check(
    run: str, factory: str, seat: Seat | None, suite: str, distractors: int
) -> Callable[[Any], dict[str, Any]]:
    """`check_match` in a process of its own: OpenGL and CUDA do not go together."""
    player: Any = seat or load_function(factory)(run)
    card = check_match(suite_named(suite), player, distractors)
    return lambda _: card


def film_name(episode: Episode) -> str:
    return f"{episode.task}-{episode.init_state}-{episode.seed}.mp4"
