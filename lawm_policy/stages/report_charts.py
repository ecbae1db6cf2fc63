"""The report's charts as inline SVG: colours come from the page's style sheet, so they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 6  # --c1 ... --c6 in the style sheet


@dataclass(frozen=True)
class Series:
    """A named line; `low_high` are intervals about the points, where there are any."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    low_high: Sequence[tuple[float, float]] = ()
    faint: bool = False


def curve_chart(series: Sequence[Series], title: str, x_name: str = "step", width: int = 360) -> str:
    """Lines over steps; logarithmic where the values span more than a factor of 20."""
    height, left, right, top, bottom = 200, 48, 12, 10, 30
    shown = [s for s in series if s.points]
    values = [y for s in shown for _, y in s.points]
    steps = [x for s in shown for x, _ in s.points]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high > 20 * low
    to_y = math.log10 if logarithmic else float
    ticks_y = _log_ticks(low, high) if logarithmic else _ticks(low, high, 4)
    y0, y1 = to_y(min(low, ticks_y[0])), to_y(max(high, ticks_y[-1]))
    ticks_x = _ticks(0, max(steps), 4)
    x1 = max(max(steps), 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (width - left - right) * x / x1
        return across, top + (height - top - bottom) * (1 - (to_y(y) - y0) / ((y1 - y0) or 1))

    parts = _grid_y([(place(0, y)[1], _short(y)) for y in ticks_y], left, width - right)
    parts += [_text(place(x, low)[0], height - 12, _short(x)) for x in ticks_x if x <= x1]
    parts.append(_text(width - right, height - 1, x_name, "end"))
    for s in shown:
        path = "M" + "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in _thin(s.points))
        kind = "line faint" if s.faint else "line"
        parts.append(f'<path class="{kind} c{s.colour % COLOURS + 1}" d="{path}"/>')
        if not s.faint:  # also what shows that there is one point only
            x, y = place(*s.points[-1])
            parts.append(
                f'<circle class="mark c{s.colour % COLOURS + 1}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            )
    told = "; ".join(f"{s.name} ends at {_short(s.points[-1][1])}" for s in shown)
    return _svg(parts, width, height, f"{title}. {told}.")


def interval_chart(series: Sequence[Series], title: str, x_name: str, width: int, height: int = 300) -> str:
    """Means with intervals over a few amounts (evenly spaced), dodged so that intervals stay apart."""
    left, right, top, bottom = 44, 14, 12, 44
    amounts = sorted({x for s in series for x, _ in s.points})
    bounds = [b for s in series for pair in s.low_high for b in pair] + [
        y for s in series for _, y in s.points
    ]
    low, high = min(0.0, *bounds), max(bounds)
    ticks = _ticks(low, high, 5)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    cell = (width - left - right) / len(amounts)
    step = min(16.0, cell * 0.7 / max(1, len(series)))

    def across(x: float, index: int) -> float:
        return left + cell * (amounts.index(x) + 0.5) + step * (index - (len(series) - 1) / 2)

    def down(y: float) -> float:
        return top + (height - top - bottom) * (1 - (y - low) / ((high - low) or 1))

    parts = _grid_y([(down(y), f"{_short(y)}%") for y in ticks], left, width - right)
    parts += [_text(left + cell * (i + 0.5), height - 24, _short(x)) for i, x in enumerate(amounts)]
    parts.append(_text((left + width - right) / 2, height - 6, x_name))
    for index, s in enumerate(series):
        colour = f"c{s.colour % COLOURS + 1}"
        places = [(across(x, index), down(y)) for x, y in s.points]
        if len(places) > 1:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path class="line thin {colour}" d="{path}"/>')
        for (x, _), (a, b) in zip(places, s.low_high, strict=False):
            parts.append(
                f'<path class="line {colour}" d="M{x:.1f} {down(a):.1f}V{down(b):.1f}'
                f'M{x - 4:.1f} {down(a):.1f}h8M{x - 4:.1f} {down(b):.1f}h8"/>'
            )
        for (x, y), (amount, value) in zip(places, s.points, strict=True):
            hint = f"{s.name}, {x_name} {_short(amount)}: {value:.1f}%"
            parts.append(_mark(s.colour, x, y, hint))
    told = "; ".join(
        f"{s.name}: " + ", ".join(f"{y:.0f}% at {_short(x)}" for x, y in s.points) for s in series
    )
    return _svg(parts, width, height, f"{title}. {told}.")


def swatch(colour: int) -> str:
    """The mark of a series, for a legend."""
    return f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{_mark(colour, 7, 7, "")}</svg>'


def _mark(colour: int, x: float, y: float, hint: str) -> str:
    """Shapes differ too, not only colours."""
    shapes = (
        '<circle r="4.5"/>',
        '<rect x="-4" y="-4" width="8" height="8"/>',
        '<path d="M0-5.5L5 4H-5Z"/>',
        '<path d="M0-5.5L5 0 0 5.5-5 0Z"/>',
        '<path d="M0 5.5L5-4H-5Z"/>',
        '<path d="M-5-1.6H-1.6V-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5Z"/>',
    )
    title = f"<title>{escape(hint)}</title>" if hint else ""
    kind = f"mark c{colour % COLOURS + 1}"
    return (
        f'<g class="{kind}" transform="translate({x:.1f} {y:.1f})">{title}{shapes[colour % len(shapes)]}</g>'
    )


def _svg(parts: list[str], width: int, height: int, told: str) -> str:
    label = escape(told, quote=True)
    opening = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    return f"{opening}{''.join(parts)}</svg>"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid_y(ticks: list[tuple[float, str]], left: float, right: float) -> list[str]:
    return [
        f'<path class="grid" d="M{left} {y:.1f}H{right}"/>' + _text(left - 7, y + 4, text, "end")
        for y, text in ticks
    ]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover the range."""
    span = (high - low) or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / about))
    step = next(unit * m for m in (1, 2, 5, 10) if span / (unit * m) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 5)
    return [10.0**k for k in range(first, last + 1, every)]


def _thin(points: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """Means of equal stretches: a screen shows no more, and a page should not carry more."""
    if len(points) <= most:
        return list(points)
    size = len(points) / most
    stretches = [points[int(i * size) : int((i + 1) * size)] for i in range(most)]
    return [(s[len(s) // 2][0], math.fsum(y for _, y in s) / len(s)) for s in stretches]


def _short(x: float) -> str:
    """1200000 -> 1.2M, 0.00012 -> 1.2e-4, 30.0 -> 30."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(x) >= size:
            return f"{x / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    if x and abs(x) < 1e-3:
        mantissa, exponent = f"{x:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{x:.4g}"
