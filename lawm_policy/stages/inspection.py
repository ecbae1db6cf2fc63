"""`lawm inspect`: what a store holds, what is damaged, and a contact sheet."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from lawm_policy.data.health import damage, ranges
from lawm_policy.data.store import EpisodeStore
from lawm_policy.runs import check_file
from lawm_policy.types import UserError

SHEET_EPISODES = 12
SHEET_MOMENTS = 6


@dataclass(frozen=True)
class InspectArgs:
    """What a store holds and what is damaged. A store whose writing was interrupted is first brought to
    rest, and what was kept and removed is said. Exit status: 0 sound, 1 damaged (each damage is a line),
    2 not a store."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """The store."""
    sheet: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(left out: none)")] = None
    """Write a contact sheet (PNG) here."""
    json: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(left out: nowhere)")] = None
    """Write everything that is printed here, as JSON."""
    full: bool = False
    """Decode every frame instead of counting them."""
    force: bool = False
    """Replace existing files."""


def run(args: InspectArgs) -> int | None:
    for option, path in (("--sheet", args.sheet), ("--json", args.json)):
        if path is not None:
            check_file(path, option, force=args.force)
    if args.sheet is not None and args.sheet.suffix.lower() != ".png":
        raise UserError(f"expected a name that ends in .png for --sheet, found {args.sheet}: rename it")
    store = EpisodeStore.open(args.data)
    facts = describe(store)
    facts["damage"] = list(damage(store, args.full))
    for line in _lines(facts):
        print(line)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    if args.sheet is not None:
        contact_sheet(store, args.sheet)
        print(f"contact sheet: {args.sheet}")
    return 1 if facts["damage"] else 0


def describe(store: EpisodeStore) -> dict[str, Any]:
    """Counts, durations, cameras, rates and ranges, as JSON."""
    episodes = store.episodes
    seconds = np.array([e.length / store.fps for e in episodes])
    return {
        "store": str(store.path),
        "fingerprint": store.fingerprint,
        "episodes": len(episodes),
        "frames": sum(e.length for e in episodes),
        "fps": store.fps,
        "hours": float(seconds.sum() / 3600),
        "seconds": {
            "shortest": float(seconds.min()),
            "median": float(np.median(seconds)),
            "longest": float(seconds.max()),
        },
        "cameras": {
            name: {"height": h, "width": w, "episodes": sum(name in e.cameras for e in episodes)}
            for name, (h, w) in store.cameras.items()
        },
        "labelled": store.labelled,
        "captioned": sum(bool(e.text) for e in episodes),
        "captions": len({e.text for e in episodes if e.text}),
        "splits": dict(sorted(Counter(e.split for e in episodes).items())),
        "embodiments": dict(sorted(Counter(e.embodiment or "(unnamed)" for e in episodes).items())),
        "tasks": dict(sorted(Counter(e.task for e in episodes if e.task).items())),
        "ranges": ranges(store)[0],
        "robot": store.robot,
        "recovery": str(store.recovery) if store.recovery else None,
        "bytes": sum(p.stat().st_size for p in store.path.rglob("*") if p.is_file()),
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    def counts(of: dict[str, int]) -> str:
        return ", ".join(f"{name} {number}" for name, number in of.items())

    s = facts["seconds"]
    lines = [
        f"store        {facts['store']}  ({facts['bytes'] / 1e6:.1f} MB, {facts['fingerprint'][:12]})",
        f"episodes     {facts['episodes']}  ({counts(facts['splits'])})",
        f"frames       {facts['frames']} at {facts['fps']} Hz, {facts['hours']:.2f} h",
        f"duration     {s['shortest']:.1f} s to {s['longest']:.1f} s, median {s['median']:.1f} s",
        "cameras      "
        + ", ".join(
            f"{name} {c['height']}x{c['width']} ({c['episodes']} episodes)"
            for name, c in facts["cameras"].items()
        ),
        f"labels       {'states and actions' if facts['labelled'] else 'none: video only'}",
        f"captions     {facts['captioned']} of {facts['episodes']} episodes, {facts['captions']} different",
        f"embodiments  {counts(facts['embodiments'])}",
    ]
    if facts["tasks"]:
        lines.append(f"tasks        {counts(facts['tasks'])}")
    for key, dimensions in facts["ranges"].items():
        lines.append(f"{key}")
        for name, r in dimensions.items():
            spread = f"mean {r['mean']:>8.3f}  std {r['std']:>7.3f}"
            lines.append(f"    {name:<20} {r['min']:>9.3f} to {r['max']:>9.3f}   {spread}")
    if facts["recovery"]:
        lines.append(f"recovery     {facts['recovery']}")
    lines += [f"damaged      {line}" for line in facts["damage"]]
    lines.append(f"{len(facts['damage'])} damages found" if facts["damage"] else "nothing damaged")
    return lines


def contact_sheet(store: EpisodeStore, path: Path) -> None:
    """A strip of moments for each of a dozen episodes spread over the store, one column a camera."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = np.unique(np.linspace(0, len(store.episodes) - 1, SHEET_EPISODES).round().astype(int))
    shape = (len(chosen), len(store.cameras))
    figure, axes = pyplot.subplots(*shape, figsize=(7 * shape[1], 1.6 * shape[0]), squeeze=False)
    for axes_of_row, index in zip(axes, chosen, strict=True):
        for axis, camera in zip(axes_of_row, store.cameras, strict=True):
            axis.axis("off")
            episode = store.episodes[index]
            if camera not in episode.cameras:
                continue
            seconds = episode.length / store.fps
            title = f"{index}  {camera}  {episode.embodiment}  {seconds:.1f} s  {episode.text}"
            axis.set_title(title[:90], fontsize=8, loc="left")
            try:
                frames = store.frames(index, camera)
            except UserError as error:  # a sheet of a damaged store shows the rest
                axis.text(0, 0.5, str(error)[:90], color="red", fontsize=7)
                continue
            moments = np.linspace(0, episode.length - 1, SHEET_MOMENTS).round().astype(int)
            axis.imshow(np.concatenate(list(frames[moments]), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
