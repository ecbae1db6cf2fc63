"""The report on benchmarks: label efficiency as a chart, other rows as tables, targets met or missed."""

from __future__ import annotations

import math
from typing import Any

from lawm_policy.stages import report_page as html
from lawm_policy.stages.report_charts import Series
from lawm_policy.stages.report_page import esc
from lawm_policy.stages.report_sources import Benchmark

ROWS = 60  # of a table; the rest is in result.json


def section(benchmark: Benchmark) -> str:
    result = benchmark.result
    head = f"<h3>{esc(result.get('question') or benchmark.name.replace('_', ' '))}</h3>"
    note = html.paragraphs(str(result.get("notes") or ""))
    studied = [r for r in benchmark.rows if "arm" in r and all(_number(r.get(k)) for k in ("n", "mean"))]
    body = _arms(studied, benchmark.rows) if studied else _rows(benchmark.rows)
    return f'<div class="study">{head}{note}{body}{_targets(benchmark.targets)}</div>'


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)


def _bounds(row: dict[str, Any]) -> tuple[float, float] | None:
    """`interval`: [low, high], or an object with both; in the unit of `mean`."""
    found = row.get("interval")
    pair = (found.get("low"), found.get("high")) if isinstance(found, dict) else found
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(_number(x) for x in pair):
        return None
    return float(pair[0]), float(pair[1])


def _arms(rows: list[dict[str, Any]], every: list[dict[str, Any]]) -> str:
    """Label efficiency: lines for arms measured at several amounts, points with intervals at each amount."""
    rates = all(abs(float(r["mean"])) <= 1 for r in rows)  # fractions, else per cent already
    scale = 1.0 if rates else 0.01
    ordered = list(dict.fromkeys(str(r["arm"]) for r in rows))
    several = [arm for arm in ordered if len({r["n"] for r in rows if str(r["arm"]) == arm}) > 1]
    series = []
    for colour, arm in enumerate(several):
        mine = sorted((r for r in rows if str(r["arm"]) == arm), key=lambda r: float(r["n"]))
        bounds = [_bounds(r) or (float(r["mean"]),) * 2 for r in mine]
        series.append(
            Series(
                arm,
                [(float(r["n"]), 100 * scale * float(r["mean"])) for r in mine],
                colour,
                [(100 * max(0.0, scale * low), 100 * min(1.0, scale * high)) for low, high in bounds],
            )
        )
    parts = []
    if series:
        parts.append(html.amounts(series, "Success by number of demonstrations", "demonstrations a task"))
    for n in sorted({r["n"] for r in rows}, key=float):
        mine = [r for r in rows if r["n"] == n]
        if all(str(r["arm"]) in several for r in mine):  # the chart has said it
            continue
        lines: list[tuple[str, float | None, float | None, float | None, int]] = []
        for r in mine:
            low, high = _bounds(r) or (None, None)
            colour = several.index(str(r["arm"])) if str(r["arm"]) in several else 5
            ends = [None if x is None else scale * x for x in (low, high)]
            lines.append((str(r["arm"]), scale * float(r["mean"]), ends[0], ends[1], colour))
        parts.append(f"<h4>With {esc(n)} demonstrations a task</h4>{html.forest(lines, 0.0, 1.0)}")
        parts.append(_gains(mine, scale))
    missing = [f"{r.get('arm')} (n = {r.get('n')})" for r in every if r not in rows]
    if missing:
        parts.append(f'<p class="missed">Not measured: {esc(", ".join(missing))}.</p>')
    parts.append(f"<details><summary>All {len(every)} rows</summary>{_rows(every)}</details>")
    return "".join(parts)


def _gains(rows: list[dict[str, Any]], scale: float) -> str:
    """Differences from a baseline, where rows carry `minus_BASELINE` and `minus_BASELINE_interval`."""
    keys = [k for k in dict.fromkeys(k for r in rows for k in r) if k.startswith("minus_")]
    baselines = [k for k in keys if not k.endswith("_interval") and any(r.get(k) is not None for r in rows)]

    def cell(row: dict[str, Any], key: str) -> str:
        if not _number(row.get(key)):
            return "–"
        value, bounds = scale * float(row[key]), _bounds({"interval": row.get(f"{key}_interval")})
        if bounds is None:
            return html.points(value) + html.small("no interval")
        low, high = (scale * bound for bound in bounds)
        interval = html.small(f"{html.points(low)} to", html.points(high), apart=False)
        return html.points(value) + interval + html.signed_track({"value": value, "low": low, "high": high})

    if not baselines:
        return ""
    head = ["Arm", *(f"minus {key.removeprefix('minus_')}, points" for key in baselines)]
    lines = [
        [esc(r["arm"]) + (f"<small>{esc(r['says'])}</small>" if r.get("says") else "")]
        + [cell(r, key) for key in baselines]
        for r in rows
        if any(r.get(key) is not None for key in baselines)
    ]
    return html.table("Differences, paired by seed, with 95% intervals", head, lines)


def _rows(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    words = [
        i for i, key in enumerate(keys) if any(isinstance(r.get(key), str) and len(r[key]) > 24 for r in rows)
    ]
    caption = (
        "Measured" if len(rows) <= ROWS else f"Measured; {len(rows) - ROWS} more rows are in result.json"
    )
    cells = [[html.flat(row.get(key, "–")) for key in keys] for row in rows[:ROWS]]
    return html.table(caption, [k.replace("_", " ") for k in keys], cells, text_columns=words)


def _targets(targets: list[dict[str, Any]]) -> str:
    if not targets:
        return ""

    def outcome(met: Any) -> str:
        if met is None:
            return "not measured"
        return '<span class="met">met</span>' if met else '<span class="missed">missed</span>'

    def found(target: dict[str, Any]) -> str:
        if not _number(target.get("value")):
            return html.flat(target.get("value"))
        low_high = _bounds(target)
        return html.flat(target["value"]) + (
            html.small(f"{low_high[0]:.4g} to", f"{low_high[1]:.4g}", apart=False) if low_high else ""
        )

    rows = [
        [esc(t.get("name", "")), outcome(t.get("met")), html.flat(t.get("goal", "–")), found(t)]
        for t in targets
    ]
    return html.table("Targets, set beforehand", ["Target", "outcome", "goal", "found"], rows)
