"""`lawm compare A B`: two policies, episode by episode.

    lawm compare evals/scratch evals/lawm
    lawm compare "evals/scratch-0,evals/scratch-1" "evals/lawm-0,evals/lawm-1"     # seeds, in pairs

The same task, initial state and seed is one pair, if both episodes began alike. Evaluations whose protocols
or starts differ are refused, or with --across compared all the same, and the result says in what they differ.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lawm_policy import stats
from lawm_policy.config import differences
from lawm_policy.console import say
from lawm_policy.runs import check_file, write_text
from lawm_policy.sim import protocol
from lawm_policy.sim.protocol import SUMMARY, Record
from lawm_policy.stats import Pairs
from lawm_policy.types import UserError


@dataclass(frozen=True)
class CompareArgs:
    """Two evaluations, episode by episode, with paired statistics."""

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR_A")]
    """An evaluation; or several, one a seed: separated by commas, or a folder of them."""
    b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR_B")]
    """The same for the other side, in the same order."""
    across: bool = False
    """Compare also where the protocols or starts differ; the result says in what."""
    json: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(left out: nowhere)")] = None
    """Write the numbers here too."""
    force: bool = False
    """Replace that file."""


def run(args: CompareArgs) -> int:
    """Prints what A and B did on the episodes they share."""
    if args.json is not None:
        check_file(args.json, "--json", force=args.force)
    found = compare(evaluations(args.a), evaluations(args.b), across=args.across)
    show(found)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.json, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return 0


def evaluations(sides: str) -> list[Path]:
    """The evaluation folders that one side names."""
    folders: list[Path] = []
    for name in filter(None, (part.strip() for part in sides.split(","))):
        folder = Path(name)
        inside = sorted(p.parent for p in folder.glob(f"*/{SUMMARY}"))
        if (folder / SUMMARY).is_file() or not inside:
            folders.append(folder)  # read() says what is wrong with one that is no evaluation
        else:
            folders += inside
    if not folders:
        raise UserError(f"expected evaluations, found {sides!r}: name a folder that `lawm eval` wrote")
    return folders


def compare(side_a: Sequence[Path], side_b: Sequence[Path], *, across: bool = False) -> dict[str, Any]:
    """All numbers of the comparison, ready for JSON. Folder i of A is paired with folder i of B."""
    if len(side_a) != len(side_b):
        raise UserError(
            f"expected as many evaluations on both sides, found {len(side_a)} and {len(side_b)}: "
            "pair them by seed"
        )
    summaries = [protocol.read_summary(folder) for folder in (*side_a, *side_b)]
    unlike: dict[str, None] = {}  # in order, each once
    for folder, summary in zip((*side_a[1:], *side_b), summaries[1:], strict=True):
        found = list(differences(summaries[0]["protocol"], summary["protocol"]))
        if suites := [line for line in found if line.startswith("suite:")]:
            raise UserError(
                f"expected evaluations of one suite, found another {suites[0]} in {side_a[0]} and {folder}: "
                "compare those of one"
            )
        if found and not across:
            raise UserError(
                f"expected equal protocols, found other {found[0]} in {side_a[0]} and {folder}: "
                "evaluate alike, or add --across"
            )
        unlike |= dict.fromkeys(found)
        if starts := [line for line in found if line.startswith("libero.initial")]:
            raise UserError(
                f"expected episodes from the same starts, found other {starts[0]} in {side_a[0]} and "
                f"{folder}: the same number is not the same start there, so nothing can be paired"
            )
    seeds = [_pair(a, b) for a, b in zip(side_a, side_b, strict=True)]
    shared = [pair for seed in seeds for pair in seed["pairs"]]
    if not shared:
        raise UserError(
            f"expected episodes in common, found none in {side_a[0]} and {side_b[0]}: evaluate alike"
        )
    if apart := protocol.other_starts(shared):
        if not across:
            raise UserError(
                f"expected pairs that began alike, found {apart}: evaluate both with one version of the "
                "simulator, or add --across"
            )
        unlike[f"starts: {apart}"] = None
    held_out = set(summaries[0]["protocol"].get("held_out", ()))
    tasks = sorted({a.task for a, _ in shared})
    per_seed = [Pairs.count(*_successes(seed["pairs"])) for seed in seeds if seed["pairs"]]
    result = {
        "a": [str(folder) for folder in side_a],
        "b": [str(folder) for folder in side_b],
        "protocols_differ": list(unlike),
        **_numbers(shared),
        "seeds": [pairs.rate_b - pairs.rate_a for pairs in per_seed],
        "over_seeds": None,
        "tasks": {
            task: {**_numbers([p for p in shared if p[0].task == task]), "held_out": task in held_out}
            for task in tasks
        },
        "left_out": {
            key: sum(seed[key] for seed in seeds)
            for key in ("errors", "no_episode", "only_in_a", "only_in_b")
        },
    }
    if len(per_seed) > 1:
        result["over_seeds"] = stats.seed_difference(result["seeds"]).to_json()
    result["verdict"] = verdict(result) + (" Their protocols differ." if unlike else "")
    return result


def show(found: dict[str, Any]) -> None:
    """The table, as the terminal allows; plain text when piped."""
    from rich.console import Console
    from rich.table import Table

    # Piped, no window limits the width: a cut number would be a wrong number.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = [(f"{name}{' *' if n['held_out'] else ''}", n) for name, n in found["tasks"].items()] + [
        ("all", found)
    ]
    short = ("only A", "only B", "to decide") if console.width < 100 else ()  # left out where it is narrow
    for column in (c for c in _cells("", found) if c not in short):
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column), overflow="fold")
    for name, n in rows:
        cells = [cell for column, cell in _cells(name, n).items() if column not in short]
        table.add_row(*cells, style="bold" if n is found else None)
    for letter in ("a", "b"):
        print(f"{letter.upper()}: {', '.join(found[letter])}")
    for line in found["protocols_differ"]:
        print(f"Not alike! {line}")
    console.print(table)
    if any(n["held_out"] for n in found["tasks"].values()):
        print("* held out of pretraining")
    if len(found["seeds"]) > 1:
        points = ", ".join(f"{100 * d:+.1f}" for d in found["seeds"])
        print(f"over {len(found['seeds'])} seeds, in points: {points}")
    print(found["verdict"])
    if found["to_decide"] and found["to_decide"] > found["pairs"]:
        print(
            f"To find a difference of this size with power 80%: about {found['to_decide']} paired episodes "
            f"({found['pairs']} here)."
        )
    print(stats.ONE_LOOK)
    out = found["left_out"]
    if any(out.values()):
        say(
            f"left out: {out['errors']} pairs with an error, {out['only_in_a']} episodes only in A, "
            f"{out['only_in_b']} only in B"
            + (f", {out['no_episode']} pairs whose start is no episode" if out["no_episode"] else "")
        )


def _pair(a: Path, b: Path) -> dict[str, Any]:
    ours, theirs = ({r.episode: r for r in protocol.read(folder)} for folder in (a, b))
    shared = protocol.paired(ours.values(), theirs.values())
    ended = [pair for pair in shared if all(r.error is None for r in pair)]
    return {
        "pairs": ended,
        "no_episode": sum(any(r.no_episode for r in pair) for pair in shared),
        "errors": sum(any(r.error and not r.no_episode for r in pair) for pair in shared),
        "only_in_a": len(ours.keys() - theirs.keys()),
        "only_in_b": len(theirs.keys() - ours.keys()),
    }


def _successes(pairs: Sequence[tuple[Record, Record]]) -> tuple[list[bool], list[bool]]:
    return [bool(a.success) for a, _ in pairs], [bool(b.success) for _, b in pairs]


def _numbers(shared: Sequence[tuple[Record, Record]]) -> dict[str, Any]:
    pairs = Pairs.count(*_successes(shared))
    difference = stats.paired_difference(pairs)
    return {
        "pairs": pairs.total,
        "rate_a": pairs.rate_a,
        "rate_b": pairs.rate_b,
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "difference": difference.to_json(),
        "p_value": stats.mcnemar_exact(pairs.only_a, pairs.only_b),
        "to_decide": stats.episodes_to_decide(difference.value, (pairs.only_a + pairs.only_b) / pairs.total),
    }


def verdict(found: dict[str, Any], a: str = "A", b: str = "B") -> str:
    """In a sentence. Over seeds where there are several: a new seed varies more than a new episode."""
    if found["over_seeds"]:
        interval = interval_of(found["over_seeds"])
        return stats.verdict(interval, a=a, b=b) + f" Student's t over {len(found['seeds'])} seeds."
    return stats.verdict(interval_of(found["difference"]), found["p_value"], a=a, b=b)


def interval_of(found: dict[str, float | None]) -> stats.Interval:
    value, low, high = found["value"], found["low"], found["high"]
    assert value is not None
    return stats.Interval(value, -math.inf if low is None else low, math.inf if high is None else high)


def _cells(name: str, n: dict[str, Any]) -> dict[str, str]:
    """Column -> cell of one row."""
    d = n["difference"]
    return {
        "": name,
        "A": f"{100 * n['rate_a']:.1f}%",
        "B": f"{100 * n['rate_b']:.1f}%",
        "B - A": f"{100 * d['value']:+.1f}",
        "95% interval": f"{100 * d['low']:+.1f} to {100 * d['high']:+.1f}",
        "only A": str(n["only_a"]),
        "only B": str(n["only_b"]),
        "p": stats.probability(n["p_value"]),
        "to decide": "-" if n["to_decide"] is None else str(n["to_decide"]),
    }
