"""What makes two evaluations comparable: the grid of episodes, the rules they are played by, and
the records they leave. Every suite shares this file; `suites.py` says what differs.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from typing import Protocol as Interface

import numpy as np

from lawm_policy.policies.ensembling import Ensemble
from lawm_policy.runs import read_record
from lawm_policy.sim.libero_premise import BrokenPremise
from lawm_policy.stats import wilson
from lawm_policy.types import UserError

# Where the seeds of initial states begin; those below are for training: `lawm collect` draws no others.
SPLITS = {"val": 100_000, "test": 200_000}
EPISODES, SUMMARY, VIDEO = "episodes.jsonl", "summary.json", "video"


class Episode(NamedTuple):
    """One cell of the grid: `init_state` seeds the scene, `seed` the policy's own draws."""

    task: str
    init_state: int
    seed: int


@dataclass(frozen=True)
class Record:
    """One line of episodes.jsonl. `success` is null where an error kept the episode from ending."""

    suite: str
    task: str
    init_state: int
    seed: int
    success: bool | None
    steps: int
    error: str | None
    seconds: float
    checkpoint_sha256: str
    instruction: str = ""
    start: str = ""  # a mark of the state that it began from, where the simulator can tell

    @property
    def episode(self) -> Episode:
        return Episode(self.task, self.init_state, self.seed)

    @property
    def no_episode(self) -> bool:
        return is_no_episode(self.error)


def is_no_episode(error: str | None) -> bool:
    """The initial state does not hold: nobody's failure and no fault, and the same at every try."""
    return error is not None and error.startswith(BrokenPremise.__name__)


_KINDS = {
    "task": (str,),
    "init_state": (int,),
    "seed": (int,),
    "success": (bool, type(None)),
    "steps": (int,),
    "error": (str, type(None)),
    "instruction": (str,),
    "start": (str,),
}


class Actor(Interface):
    """What an evaluation needs of a policy."""

    cameras: tuple[str, ...]
    size: int  # pixels
    execute: int  # commands to execute before asking again
    robot: Mapping[str, Any] | None  # the card of the robot it commands
    sha256: str

    def act(self, observation: Any) -> np.ndarray: ...  # (n, A)

    def reset(self) -> None: ...


@dataclass(frozen=True)
class Seat:
    """What a simulator needs to know of a policy that sits in another process."""

    cameras: tuple[str, ...]
    size: int
    execute: int
    robot: Mapping[str, Any] | None
    sha256: str
    ensemble: Ensemble

    @staticmethod
    def of(actor: Any) -> Seat:
        return Seat(**{f.name: getattr(actor, f.name) for f in fields(Seat)})


@dataclass(frozen=True)
class Suite:
    """A family of tasks with one way to build its environment, a `gymnasium.Env` that also has

    - `reset(seed=..., options={"task": ...})`; it and `step` say `info["instruction"]` and `info["success"]`,
    - observations with `images` (camera -> (H, W, 3) uint8, centre square) and `state` (P,),
    - `robot_card()`: embodiment, command, rate, state_names and action_names, as in a store,
    - `render_now`, which is set to False while nobody looks: images may then be anything,
    - MuJoCo's `data`, where it has one: records then say where an episode began,
    - for films (`lawm eval --video`) that and a `camera_rig`, as in `tabletop_env.py`."""

    name: str
    limits: dict[str, int]  # task -> control steps
    held_out: tuple[str, ...]  # tasks that pretraining never saw
    choose: Callable[[str], tuple[str, ...]]  # what --tasks means
    make: Callable[..., Any]  # (embodiment, command, size, cameras, distractors, images) -> gymnasium.Env
    cameras: tuple[str, ...]
    simulators: tuple[str, ...]  # packages whose version changes the physics
    settle_steps: int = 0
    # the robot that a policy without a card is taken to command
    robot: Mapping[str, str] = field(default_factory=lambda: {"embodiment": "arm6", "command": "joint"})
    rules: Mapping[str, Any] = field(default_factory=dict)  # more of the protocol
    stored_states: int | None = None  # initial states come from a list this long, not from seeds
    slow_tasks: bool = False  # the first episode of a task takes long: better if few workers play it


def first_state(suite: Suite, split: str, episodes: int, seed_base: int | None) -> int:
    """The first initial state of a split."""
    if suite.stored_states is None:
        first = SPLITS[split] if seed_base is None else seed_base
        if first < SPLITS["val"]:
            raise UserError(
                f"expected --seed-base of at least {SPLITS['val']} in suite {suite.name}, found {first}: "
                "leave it out, since those below are what policies train on"
            )
        return first
    if seed_base is None and split != "test":
        raise UserError(
            f"expected --split test in suite {suite.name}, found {split}: its {suite.stored_states} stored "
            "states are what everybody tests on"
        )
    first = seed_base or 0
    if first < 0 or first + episodes > suite.stored_states:
        raise UserError(
            f"expected initial states in 0..{suite.stored_states - 1} in suite {suite.name}, found "
            f"{first}..{first + episodes - 1}: ask for fewer --episodes"
        )
    return first


def describe(suite: Suite, actor: Actor, card: Mapping[str, Any], execute: int, distractors: int) -> dict:
    """The protocol: two evaluations whose protocols differ measure different things."""
    return {
        "suite": suite.name,
        "limits": suite.limits,
        "held_out": list(suite.held_out),
        "settle_steps": suite.settle_steps,
        "cameras": list(actor.cameras),
        "resolution": actor.size,
        "flip": False,
        "execute": execute,
        "control": {key: card[key] for key in ("embodiment", "command", "rate", "controller") if key in card},
        "visuals": {"distractors": distractors},
        "versions": {name: version(name) for name in suite.simulators},
        **suite.rules,
    }


def paired(ours: Iterable[Record], theirs: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Records of the same episode."""
    a, b = ({r.episode: r for r in side} for side in (ours, theirs))
    return [(a[key], b[key]) for key in sorted(a.keys() & b.keys())]


def other_starts(pairs: Sequence[tuple[Record, Record]]) -> str | None:
    """What is said of pairs that did not begin alike, if there are any: one protocol gives two starts where
    the simulator's code is another."""
    apart = [(a, b) for a, b in pairs if a.start and b.start and a.start != b.start]
    if not apart:
        return None
    first, _ = apart[0]
    return f"{len(apart)} of {len(pairs)} that began apart, as {first.task} {first.init_state}"


def grid(tasks: Sequence[str], episodes: int, first: int, seed: int) -> list[Episode]:
    """Initial state by initial state, so that an unfinished run covers all tasks alike (but where a task's
    first episode takes long: there workers finish one after the other)."""
    return [Episode(task, first + i, seed) for i in range(episodes) for task in tasks]


# --- records ------------------------------------------------------------------------------------


def append(descriptor: int, record: Record) -> None:
    """One line, on the disk when this returns."""
    line = json.dumps(asdict(record), allow_nan=False) + "\n"
    if os.write(descriptor, line.encode()) < len(line.encode()):  # the rest of the disk, then nothing
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), EPISODES)
    os.fsync(descriptor)


def read(folder: Path) -> list[Record]:
    """The records of an evaluation. A last line that a kill cut short is left out."""
    path = folder / EPISODES
    if not path.is_file():
        raise UserError(
            f"expected an evaluation in {folder}, found no {EPISODES}: run `lawm eval --out` first"
        )
    *lines, _ = path.read_bytes().split(b"\n")
    return [_record(line, f"{path} line {number}") for number, line in enumerate(lines, 1)]


def _record(line: bytes, where: str) -> Record:
    known = {f.name for f in fields(Record)}
    try:
        found = json.loads(line)
        record = Record(**{key: value for key, value in found.items() if key in known})
        for name, kinds in _KINDS.items():
            if type(getattr(record, name)) not in kinds:
                raise TypeError(f"{name} is {getattr(record, name)!r}")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"expected an episode in {where}, found {line[:40]!r} ({error})") from None
    return record


def read_summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    if not path.exists():
        raise UserError(
            f"expected an evaluation in {folder}, found no {SUMMARY}: run `lawm eval --out` first"
        )
    found = read_record(path, "evaluate again")
    if not isinstance(found.get("protocol"), dict) or not isinstance(found.get("policy", {}), dict):
        raise UserError(
            f"expected an evaluation's protocol and policy in {path}, found otherwise: evaluate again"
        )
    return found


def count(records: Iterable[Record]) -> dict[str, Any]:
    """Successes with a Wilson interval; errors, and states that are no episodes, apart: nobody's failures."""
    records = list(records)
    ended = [r for r in records if r.error is None]
    rate = wilson(sum(bool(r.success) for r in ended), len(ended))
    return {
        "episodes": len(ended),
        "successes": sum(bool(r.success) for r in ended),
        "rate": rate.value if ended else None,
        "low": rate.low,
        "high": rate.high,
        "errors": sum(r.error is not None and not r.no_episode for r in records),
        "no_episode": sum(r.no_episode for r in records),
    }


def summarize(records: Sequence[Record], held_out: Sequence[str]) -> dict[str, Any]:
    """Over all, over tasks seen in pretraining and held out, and per task (sorted: any order in, one out)."""
    tasks = sorted({r.task for r in records})
    apart = set(held_out)
    return {
        "all": count(records),
        "seen": count(r for r in records if r.task not in apart),
        "held_out": count(r for r in records if r.task in apart),
        "tasks": {
            task: {**count(r for r in records if r.task == task), "held_out": task in apart} for task in tasks
        },
    }


def telling_failures(records: Sequence[Record], others: Iterable[Record] = ()) -> list[Record]:
    """Failures, the most informative first: where another policy succeeded from the same start, then where
    the task mostly succeeds; tasks take turns."""
    rate = {task: numbers["rate"] or 0.0 for task, numbers in summarize(records, ())["tasks"].items()}
    won = {r.episode for r in others if r.success}
    ranked = sorted(
        (r for r in records if r.success is False),
        key=lambda r: (r.episode not in won, -rate[r.task], r.task, r.init_state, r.seed),
    )
    turn: Counter[tuple[bool, str]] = Counter()
    place: dict[Episode, tuple[bool, int]] = {}
    for r in ranked:
        group = (r.episode not in won, r.task)
        place[r.episode] = (group[0], turn[group])
        turn[group] += 1
    return sorted(ranked, key=lambda r: place[r.episode])
