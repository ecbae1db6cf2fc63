"""The report's page. Every string that comes from a folder passes through `esc`."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from lawm_policy.stages.report_charts import COLOURS, Series, curve_chart, interval_chart, swatch

# The page may show what it carries and fetch nothing, whatever a string in it says.
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
    "script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
)

# Films of one row start together; without this script each has its own controls.
SCRIPT = """
for (const row of document.querySelectorAll(".films")) {
  const films = [...row.querySelectorAll("video")], button = document.createElement("button");
  const label = () => {
    const playing = films.some(film => !film.paused && !film.ended);
    button.textContent = playing ? "Pause" : films.length > 1 ? "Play side by side" : "Play";
  };
  button.type = "button";
  button.onclick = () => {
    const playing = films.some(film => !film.paused && !film.ended);
    for (const film of films) {
      if (playing) film.pause();
      else { if (films.every(f => f.ended || f.paused && !f.currentTime)) film.currentTime = 0; film.play(); }
    }
  };
  for (const film of films) {
    film.removeAttribute("controls");
    film.loop = false;
    for (const event of ["play", "pause", "ended"]) film.addEventListener(event, label);
  }
  label();
  row.after(button);
}
"""


def esc(value: Any) -> str:
    return escape(str(value), quote=True)


def page(title: str, lead: str, eyebrow: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole document from (identifier, heading, HTML) sections; empty ones are left out."""
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{esc(heading)}</a>' for name, heading, _ in sections)
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-h">\n<h2 id="{name}-h">{esc(heading)}</h2>\n{html}\n'
        "</section>"
        for name, heading, html in sections
    )
    style = files("lawm_policy.stages").joinpath("report_page.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{esc(POLICY.format(digest))}">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{esc(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="eyebrow">{esc(eyebrow)}</p>
<h1>{esc(title)}</h1>
{paragraphs(lead, "lead")}
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<footer><p>Made by <code>lawm report</code>. This file carries all it shows and fetches nothing.</p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def paragraphs(text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{attribute}>{esc(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.0f}%"


def points(value: float) -> str:
    """A difference, signed with a true minus."""
    return f"{100 * value:+.1f}".replace("-", "−")


def span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return f"{100 * low:.0f}{' to ' if low < 0 else '–'}{100 * high:.0f}".replace("-", "−")


def forest(
    rows: Iterable[tuple[str, float | None, float | None, float | None, int]], low: float, high: float
) -> str:
    """Rates (name, value, low, high, colour) as points with intervals, on one scale."""

    def at(x: float) -> float:
        return 100 * (min(max(x, low), high) - low) / ((high - low) or 1)

    ticks = [low + (high - low) * k / 4 for k in range(5)]
    lines = "".join(f'<i style="left:{at(t):.2f}%"></i>' for t in ticks)
    parts = []
    for name, value, a, b, colour in rows:
        drawn = ""
        if value is not None:
            if a is not None and b is not None:
                drawn = f'<b style="left:{at(a):.2f}%;width:{at(b) - at(a):.2f}%"></b>'
            drawn += f'<u style="left:{at(value):.2f}%"></u>'
        parts.append(
            f'<div role="listitem"><span class="name">{esc(name)}</span>'
            f'<span class="track c{colour % COLOURS + 1}" aria-hidden="true">{lines}{drawn}</span>'
            f'<span class="said">{percent(value)}<small>{span(a, b)}</small></span></div>'
        )
    labels = "".join(f'<span style="left:{at(t):.2f}%">{100 * t:.0f}%</span>' for t in ticks)
    parts.append(
        f'<div aria-hidden="true"><span class="name"></span><span class="scale">{labels}</span>'
        '<span class="said"></span></div>'
    )
    return f'<div class="forest" role="list">{"".join(parts)}</div>'


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    totals: int = 0,
    text_columns: Sequence[int] = (),
) -> str:
    """A table from cells that are HTML already, the last `totals` rows summing up. Scrolls by itself."""
    rows = list(rows)

    def kind(column: int) -> str:
        return ' class="text"' if column in text_columns else ""

    header = "".join(f'<th scope="col"{kind(i)}>{esc(name)}</th>' for i, name in enumerate(head))
    lines = []
    for number, row in enumerate(rows):
        mark = ' class="total"' if totals and number >= len(rows) - totals else ""
        cells = "".join(
            f'<th scope="row"{kind(0)}>{cell}</th>' if i == 0 else f"<td{kind(i)}>{cell}</td>"
            for i, cell in enumerate(row)
        )
        lines.append(f"<tr{mark}>{cells}</tr>")
    return (
        f'<p class="caption">{esc(caption)}</p><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{esc(caption)}"><table aria-label="{esc(caption)}"><thead><tr>{header}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def small(*parts: str, apart: bool = True) -> str:
    """Details below a number; each stays whole when the line breaks."""
    return (
        f"<small{' class=apart' if apart else ''}>"
        + " ".join(f"<span>{esc(part)}</span>" for part in parts)
        + "</small>"
    )


def signed_track(d: Mapping[str, float | None]) -> str:
    """A difference and its interval on a scale from -100 to +100 points, zero in the middle."""
    value, low, high = (d[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return ""
    return (
        f'<span class="track signed" aria-hidden="true"><i style="left:50%"></i>'
        f'<b style="left:{50 + 50 * max(low, -1):.2f}%;width:{50 * (min(high, 1) - max(low, -1)):.2f}%"></b>'
        f'<u style="left:{50 + 50 * value:.2f}%"></u></span>'
    )


def definitions(pairs: Iterable[tuple[str, Any]]) -> str:
    shown = [(key, value) for key, value in pairs if value not in (None, "", [], {})]
    return "<dl>" + "".join(f"<dt>{esc(k)}</dt><dd>{flat(v)}</dd>" for k, v in shown) + "</dl>"


def flat(value: Any) -> str:
    """A value of JSON in one line."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{esc(k)} {flat(v)}" for k, v in value.items() if v not in (None, "", [], {}))
    if isinstance(value, list | tuple):
        return ", ".join(flat(v) for v in value)
    if isinstance(value, float):
        return esc(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")
    return (
        f'<span class="mono">{esc(value)}</span>'
        if isinstance(value, str) and len(value) > 30
        else esc(value)
    )


def photograph(content: bytes, told: str, caption: str = "") -> str:
    return picture(content, told, caption, kind="jpeg")


def picture(content: bytes, told: str, caption: str = "", kind: str = "png") -> str:
    data = b64encode(content).decode()
    below = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{esc(told)}">'
        f'<img class="strip" alt="{esc(told)}" src="data:image/{kind};base64,{data}"></div>{below}</figure>'
    )


def film(content: bytes, poster: bytes, shape: tuple[int, int], told: str, caption: str) -> str:
    video, still = b64encode(content).decode(), b64encode(poster).decode()
    width, height = shape
    return (
        f'<figure><video controls muted loop playsinline preload="none" width="{width}" height="{height}" '
        f'aria-label="{esc(told)}" poster="data:image/jpeg;base64,{still}" '
        f'src="data:video/mp4;base64,{video}"></video>'
        f"<figcaption>{esc(caption)}</figcaption></figure>"
    )


def legend(names: Sequence[str]) -> str:
    return (
        '<ul class="legend">'
        + "".join(f"<li>{swatch(i)}{esc(name)}</li>" for i, name in enumerate(names))
        + "</ul>"
    )


def curves(name: str, metrics: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    """Small multiples, one a metric: training faint, held-out in full."""
    charts = []
    for metric, splits in metrics.items():
        series = [
            Series(split, found, colour=0, faint=split == "train" and len(splits) > 1)
            for split, found in sorted(splits.items(), key=lambda item: item[0] != "train")
        ]
        ends = ", ".join(f"{s.name} {s.points[-1][1]:.4g}" for s in series)
        charts.append(
            f"<figure>{curve_chart(series, f'{metric} of {name}')}"
            f"<figcaption><strong>{esc(metric)}</strong>: {esc(ends)} at the end</figcaption></figure>"
        )
    return f'<div class="grid">{"".join(charts)}</div>' if charts else ""


def amounts(series: Sequence[Series], title: str, x_name: str) -> str:
    """The label-efficiency chart, drawn once for wide pages and once for narrow ones."""
    wide = interval_chart(series, title, x_name, width=880, height=340)
    narrow = interval_chart(series, title, x_name, width=350, height=300)
    return (
        f"{legend([s.name for s in series])}<figure><div class='wide'>{wide}</div>"
        f"<div class='narrow'>{narrow}</div></figure>"
    )
