"""`lawm report`: one self-contained page about training runs, evaluations and benchmarks.

    lawm report runs/pretrained scratch=evals/scratch lawm=evals/lawm --out report.html

The page carries its pictures, films and charts, and fetches nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import tyro

from lawm_policy.config import differences
from lawm_policy.console import say
from lawm_policy.runs import check_file, write_text
from lawm_policy.sim import protocol
from lawm_policy.sim.protocol import Episode
from lawm_policy.stages import report_benchmarks, report_episodes
from lawm_policy.stages import report_page as html
from lawm_policy.stages.compare import compare, interval_of, verdict
from lawm_policy.stages.report_page import esc, percent, points, span
from lawm_policy.stages.report_sources import (
    MP4,
    PNG,
    Evaluation,
    Sources,
    TrainingRun,
    embed,
    read,
)
from lawm_policy.stats import ONE_LOOK
from lawm_policy.types import UserError, within

FILM_BYTES, PICTURE_BYTES = 5_000_000, 2_000_000  # as files; base64 adds a third. The page stays below 10 MB.
NOT_A_LOSS = ("lr", "grad", "seconds", "frames_per")  # beginnings of names


@dataclass(frozen=True)
class ReportArgs:
    """One self-contained page about runs, evaluations and benchmarks."""

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DIR...")]
    """Runs, evaluations, benchmarks, or folders of them; name=DIR gives one a name on the page."""
    out: Path = Path("report.html")
    """The page."""
    title: str = ""
    """The sentence on top; what the folders say when not given."""
    summary: str = ""
    """Two honest sentences below it; or a summary.md in one of the folders."""
    films: int = 8
    """At most this many episodes with films, task by task."""
    force: bool = False
    """Replace an existing page."""


def run(args: ReportArgs) -> int:
    """Writes the page and says where it is."""
    check_file(args.out, "--out", force=args.force)
    if args.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"expected a name that ends in .html for --out, found {args.out}: rename it")
    within(args, films="[0, inf)")
    text = build(read(args.folders), args.title, args.summary, args.films)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, text)
    print(args.out)
    return 0


def build(sources: Sources, title: str = "", summary: str = "", films: int = 8) -> str:
    """The whole page as text."""
    compared = _comparison(sources.evaluations)
    lead = summary or sources.note or (compared["verdict"] if compared else "")
    return html.page(
        title or _title(sources, compared),
        lead,
        f"lawm report · {time.strftime('%-d %B %Y')}",
        [
            ("results", "Success on the robot's tasks", _results(sources.evaluations, compared)),
            ("episodes", "Every episode", report_episodes.section(sources.evaluations)),
            ("failures", "Failures that tell most", report_episodes.failures(sources.evaluations)),
            ("benchmarks", "Benchmarks", "".join(report_benchmarks.section(b) for b in sources.benchmarks)),
            ("rollouts", "Rollouts, side by side", _films(sources.evaluations, films)),
            ("strips", "What the world model expects", _strips(sources.runs)),
            ("curves", "Training curves", _curves(sources.runs)),
            ("provenance", "Provenance", _provenance(sources)),
        ],
    )


def _title(sources: Sources, compared: dict[str, Any] | None) -> str:
    """What the folders say, as a sentence where they say one thing."""
    names = [e.name for e in sources.evaluations]
    suites = ", ".join(sorted({str(e.summary["protocol"].get("suite", "")) for e in sources.evaluations}))
    if compared:
        difference = interval_of(compared["difference"])
        better, worse = reversed(names) if difference.value > 0 else names
        if difference.excludes(0.0):
            gain = f"{100 * abs(difference.value):.0f} points"
            title = f"{better} succeeds {gain} more often than {worse} on {suites}"
        else:
            title = f"{compared['pairs']} episodes do not tell {names[0]} from {names[1]} on {suites}"
    elif names:
        title = f"{_listed(names)} on {suites}"
    else:
        title = _listed([b.name for b in sources.benchmarks] + [r.name for r in sources.runs])
    return title[:1].upper() + title[1:]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- evaluations --------------------------------------------------------------------------------


def _comparison(evaluations: list[Evaluation]) -> dict[str, Any] | None:
    """The paired comparison of exactly two evaluations that may be compared."""
    if len(evaluations) != 2:
        return None
    a, b = evaluations
    try:
        found = compare([a.folder], [b.folder])
    except UserError:  # other protocols, or nothing in common: `_results` says which
        return None
    return {**found, "verdict": verdict(found, a.name, b.name)}


def _results(evaluations: list[Evaluation], compared: dict[str, Any] | None) -> str:
    if not evaluations:
        return ""
    numbers = [protocol.summarize(e.records, e.summary["protocol"].get("held_out", ())) for e in evaluations]
    rows = [
        (e.name, n["all"]["rate"], n["all"]["low"], n["all"]["high"], i)
        for i, (e, n) in enumerate(zip(evaluations, numbers, strict=True))
    ]
    parts = [
        html.forest(rows, 0.0, 1.0),
        '<p class="soft">All episodes; bars are 95% Wilson intervals. An error of a simulator or a worker is '
        "counted apart, never as a failure.</p>",
    ]
    first = evaluations[0].summary["protocol"]
    unlike = (differences(first, e.summary["protocol"]) for e in evaluations[1:])
    other = next(chain.from_iterable(unlike), None)
    pairs = (protocol.paired(evaluations[0].records, e.records) for e in evaluations[1:])
    apart = next((said for pair in pairs if (said := protocol.other_starts(pair))), None)
    if other or apart:
        why = f"the protocols differ in {other}" if other else f"of their pairs there are {apart}"
        parts.append(f'<p class="missed">Not comparable: {esc(why)}.</p>')
    if any(not e.summary.get("complete", True) for e in evaluations):
        unfinished = ", ".join(e.name for e in evaluations if not e.summary.get("complete", True))
        parts.append(f'<p class="missed">Unfinished: {esc(unfinished)}.</p>')
    parts.append(_task_table(evaluations, numbers, compared))
    if compared:
        parts.append(f"<p>{esc(compared['verdict'])}{_to_decide(compared)}</p>")
        parts.append(f'<p class="soft">{esc(ONE_LOOK)}</p>')
    return "".join(parts)


def _to_decide(compared: dict[str, Any]) -> str:
    needed = compared["to_decide"]
    if not needed or needed <= compared["pairs"]:
        return ""
    here = compared["pairs"]
    return f" About {needed} paired episodes would decide a difference of this size; these are {here}."


def _left_out(n: dict[str, Any]) -> list[str]:
    """Of these starts, those that are in no rate."""
    errors, none = n["errors"], n["no_episode"]
    said = [f"{errors} error{'s' if errors > 1 else ''}"] if errors else []
    return said + ([f"{none} start{'s' if none > 1 else ''} no episode"] if none else [])


def _task_table(
    evaluations: list[Evaluation], numbers: list[dict[str, Any]], compared: dict[str, Any] | None
) -> str:
    def cell(n: dict[str, Any] | None) -> str:
        if n is None or not n["episodes"]:
            left = [] if n is None else _left_out(n)
            return f"–{html.small(*left)}" if left else "–"
        told = [f"{n['successes']}/{n['episodes']}", span(n["low"], n["high"])]
        said = percent(n["rate"]) + html.small(*told, *_left_out(n))
        return f'<span class="heat" style="--share:{100 * n["rate"]:.0f}%">{said}</span>'

    def difference(n: dict[str, Any] | None) -> list[str]:
        if not compared:
            return []
        if n is None:
            return ["–"]
        d = n["difference"]
        interval = html.small(f"{points(d['low'])} to", points(d["high"]), apart=False)
        return [points(d["value"]) + interval + html.signed_track(d)]

    tasks = sorted({task for n in numbers for task in n["tasks"]})
    held_out = {task for n in numbers for task, found in n["tasks"].items() if found["held_out"]}
    head = ["Task", *(e.name for e in evaluations)] + (
        [f"{evaluations[1].name} − {evaluations[0].name}, points"] if compared else []
    )
    rows = [
        [
            f"{esc(task.replace('_', ' '))}{' *' if task in held_out else ''}",
            *(cell(n["tasks"].get(task)) for n in numbers),
            *difference(compared["tasks"].get(task) if compared else None),
        ]
        for task in [*(t for t in tasks if t not in held_out), *(t for t in tasks if t in held_out)]
    ]
    if held_out and len(held_out) < len(tasks):
        for key, name in (("seen", "seen in pretraining"), ("held_out", "held out of pretraining *")):
            rows.append([name, *(cell(n[key]) for n in numbers), *([""] if compared else [])])
    rows.append(["all", *(cell(n["all"]) for n in numbers), *difference(compared)])
    note = "Per task, the darker the more often: successes, 95% interval"
    note += " (* held out of pretraining)" if held_out else ""
    return html.table(note, head, rows, totals=len(rows) - len(tasks))


def _films(evaluations: list[Evaluation], most: int) -> str:
    """The same episode under each policy, beside each other; tasks take turns."""
    films = [(e, e.films) for e in evaluations]
    cells = sorted({cell for _, found in films for cell in found})
    if not cells:
        return ""
    parts: list[str] = []
    left, left_out = FILM_BYTES, 0
    by_task: dict[str, list[Episode]] = {}
    for cell in cells:
        by_task.setdefault(cell.task, []).append(cell)
    turns = [c for turn in range(len(cells)) for group in by_task.values() for c in group[turn : turn + 1]]
    for cell in turns:
        size = sum(found[cell].stat().st_size for _, found in films if cell in found)
        if len(parts) >= most or size > left:
            left_out += 1
            continue
        left -= size
        parts.append(_film_row(cell, films))
    if left_out:
        say(f"left out: films of {left_out} of {len(cells)} episodes, to keep the page small")
    return '<p class="soft">The same first state for each policy; front and wrist cameras.</p>' + "".join(
        parts
    )


def _film_row(cell: Episode, films: list[tuple[Evaluation, dict[Episode, Path]]]) -> str:
    figures, heading = [], cell.task.replace("_", " ")
    for evaluation, found in films:
        if cell not in found:
            continue
        record = next(r for r in evaluation.records if r.episode == cell)
        heading = record.instruction or heading
        ended = "ended in an error" if record.success is None else "succeeded" if record.success else "failed"
        caption = f"{evaluation.name}: {ended} after {record.steps} steps"
        content = embed(found[cell], MP4)
        poster, shape = _poster(found[cell])
        figures.append(html.film(content, poster, shape, f"{heading}. {caption}", caption))
    one = " one" if len(figures) == 1 else ""
    return f'<div class="cell"><h3>{esc(heading)}</h3><div class="films{one}">{"".join(figures)}</div></div>'


def _poster(path: Path) -> tuple[bytes, tuple[int, int]]:
    """The frame two thirds in, as JPEG: print and still pages show it."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            wanted = (stream.frames or 1) * 2 // 3
            image = next(islice(container.decode(stream), wanted, None)).to_image()
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise UserError(f"expected a film in {path}, found something else ({error}): remove it") from None
    from io import BytesIO

    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue(), image.size


# --- training runs ------------------------------------------------------------------------------


def _strips(runs: list[TrainingRun]) -> str:
    parts: list[str] = []
    left = PICTURE_BYTES
    for r in runs:
        shown: dict[Path, bytes] = {}
        for path in dict.fromkeys([*r.strips[-1:], *r.strips[:1]]):  # the last matters most
            content = embed(path, PNG)
            if len(content) > left:
                say(f"left out: {path}, to keep the page small")
                continue
            left -= len(content)
            shown[path] = content
        for path, content in sorted(shown.items()):
            told = f"{r.name}: truth, prediction, prediction with the latent actions of another clip"
            parts.append(html.picture(content, told, f"{r.name}, {_words(path.stem)}"))
    if not parts:
        return ""
    return (
        '<p class="soft">Rows: what happened; what the model predicts from the first frame and the latent '
        "actions; the same with the latent actions of another clip.</p>" + "".join(parts)
    )


def _words(stem: str) -> str:
    """step-00000500 -> step 500"""
    return re.sub(r"\b0+(?=\d)", "", stem.replace("-", " ").replace("_", " "))


def _curves(runs: list[TrainingRun]) -> str:
    parts = []
    for r in runs:
        held = [key for key, splits in r.curves.items() if set(splits) - {"train"}]
        wanted = [k for k in (held or list(r.curves)) if not k.startswith(NOT_A_LOSS)]
        first = [k for k in ("loss",) if k in wanted]
        shown = [*first, *(k for k in wanted if k not in first)][:6]
        drawn = html.curves(r.name, {key: r.curves[key] for key in shown})
        if drawn:
            parts.append(f"<h3>{esc(r.name)}</h3>{drawn}")
    if not parts:
        return ""
    return '<p class="soft">Faint: training. Full: held-out.</p>' + "".join(parts)


# --- provenance ---------------------------------------------------------------------------------


def _provenance(sources: Sources) -> str:
    blocks = (
        f"<div><h3>{esc(name)}</h3>{html.definitions(pairs)}</div>" for name, pairs in _origins(sources)
    )
    return f'<div class="origins">{"".join(blocks)}</div>'


def _origins(sources: Sources) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    for r in sources.runs:
        yield r.name, [("kind", "training run"), *_made_by(r.versions)]
    for e in sources.evaluations:
        rules, policy = e.summary["protocol"], e.summary.get("policy", {})
        yield (
            e.name,
            [
                ("kind", "evaluation"),
                ("policy", policy.get("run")),
                ("checkpoint", policy.get("checkpoint_sha256")),
                ("inputs", [k for k in ("blind", "no_language") if policy.get(k)]),
                ("protocol", {k: v for k, v in rules.items() if k not in ("limits", "held_out")}),
                *_made_by(e.summary.get("versions", {})),
            ],
        )
    for b in sources.benchmarks:
        made = {k: b.result.get(k) for k in ("command", "hardware", "seeds", "seconds")}
        versions = b.result.get("versions")
        told = {**versions, **{k: v for k, v in made.items() if v}} if isinstance(versions, dict) else made
        yield b.name, [("kind", "benchmark"), *_made_by(told)]


def _made_by(versions: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("command", versions.get("command")),
        ("commit", versions.get("commit")),
        ("started", versions.get("started")),
        ("seconds", versions.get("seconds")),
        ("seeds", versions.get("seeds")),
        ("data", versions.get("data")),
        ("lawm-policy", versions.get("lawm_policy")),
        ("python", versions.get("python")),
        ("packages", versions.get("packages")),
        ("hardware", versions.get("hardware")),
    ]
