"""The report's episodes: each as a mark, failures as strips of their films."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from lawm_policy.sim import protocol
from lawm_policy.sim.protocol import Record
from lawm_policy.stages import report_page as html
from lawm_policy.stages.report_page import esc, percent
from lawm_policy.stages.report_sources import MP4, Evaluation, embed
from lawm_policy.types import UserError

MOST_MARKED, MOST_MARKS = 4, 6000  # evaluations and episodes of which each has a mark
FRAMES, HEIGHT = 6, 96  # of a strip
STRIPS = 6


def section(evaluations: Sequence[Evaluation]) -> str:
    """Where each policy succeeds, start by start."""
    marked = 0 < len(evaluations) <= MOST_MARKED and sum(len(e.records) for e in evaluations) <= MOST_MARKS
    return _marks(evaluations) if marked else ""


def _marks(evaluations: Sequence[Evaluation]) -> str:
    """One mark an episode; the same start stands in the same column for every policy."""
    starts = sorted({(r.init_state, r.seed) for e in evaluations for r in e.records})
    rows = []
    for task in _tasks(evaluations):
        for e in evaluations:
            found = {(r.init_state, r.seed): r for r in e.records if r.task == task}
            if found:
                name = esc(_words(task)) + (f"<small>{esc(e.name)}</small>" if len(evaluations) > 1 else "")
                rows.append(
                    [name, f'<span class="marks">{"".join(_mark(found.get(s)) for s in starts)}</span>']
                )
    caption = "Each episode, by initial state: full, a success; hollow, a failure; crossed, an error"
    return html.table(caption, ["Task", "Initial states"], rows, text_columns=(1,))


def _mark(record: Record | None) -> str:
    if record is None:
        return "<i></i>"
    if record.no_episode:
        return f'<i title="state {record.init_state}: no episode, its premise does not hold"></i>'
    kind = "error" if record.success is None else "yes" if record.success else "no"
    ended = {"error": "error", "yes": "success", "no": "failure"}[kind]
    told = f"state {record.init_state}: {ended} after {record.steps} steps"
    return f'<i class="{kind}" title="{esc(told)}"></i>'


def failures(evaluations: Sequence[Evaluation], most: int = STRIPS) -> str:
    """Strips from the films of failures that there are, the most informative first."""
    parts: list[str] = []
    for e in evaluations:
        films, others = e.films, [r for o in evaluations if o is not e for r in o.records]
        won = {r.episode for r in others if r.success}
        rates = protocol.summarize(e.records, ())["tasks"]
        filmed = [r for r in protocol.telling_failures(e.records, others) if r.episode in films]
        for record in filmed[: max(1, most // len(evaluations))]:
            told = (
                f"{e.name}: failed after {record.steps} steps from state {record.init_state}; "
                f"this task succeeds in {percent(rates[record.task]['rate'])} of its episodes"
            )
            told += "; another policy here succeeds from the same start" if record.episode in won else ""
            caption = record.instruction or _words(record.task)
            strip = film_strip(films[record.episode])
            shown = html.photograph(strip, f"{caption}. {told}", told)
            parts.append(f'<div class="cell"><h3>{esc(caption)}</h3>{shown}</div>')
    if not parts:
        return ""
    return (
        '<p class="soft">Time runs to the right; the last frame is how it ended. First what another policy '
        "does from the same start, then what mostly succeeds.</p>" + "".join(parts)
    )


def film_strip(path: Path) -> bytes:
    """Frames of a film side by side, evenly spaced, the last one included, as JPEG."""
    import av
    from PIL import Image

    embed(path, MP4)
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except av.FFmpegError as error:
        raise UserError(f"expected a film in {path}, found something else ({error}): remove it") from None
    if not frames:
        raise UserError(f"expected a film in {path}, found no frames: remove it")
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    images = [Image.fromarray(frames[i]) for i in chosen]
    width = round(images[0].width * HEIGHT / images[0].height)
    strip = Image.new("RGB", ((width + 4) * len(images) - 4, HEIGHT), "white")
    for k, image in enumerate(images):
        strip.paste(image.resize((width, HEIGHT)), (k * (width + 4), 0))
    buffer = BytesIO()
    strip.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _tasks(evaluations: Iterable[Evaluation]) -> list[str]:
    """In the order of their numbers where they have some: task-2 before task-10."""
    tasks = {r.task for e in evaluations for r in e.records}

    def place(task: str) -> tuple[str, int]:
        name, _, number = task.rpartition("-")
        return (name, int(number)) if number.isdigit() else (task, -1)

    return sorted(tasks, key=place)


def _words(task: str) -> str:
    return task.replace("_", " ")
