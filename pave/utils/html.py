"""Self-contained HTML pages with images and line charts, for light and dark screens."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 230, 58, 12, 12, 34
"""Size and margins of a chart, in pixels."""
SMOOTH_FROM_POINTS = 60
"""A noisy curve of so many points or more gets a running mean."""
STYLE = """
:root{color-scheme:light dark;--ink:#1d2125;--soft:#59616a;--line:#dfe3e6;--paper:#fff;
--c0:#59616a;--c1:#2f6fb3;--c2:#2a7f62;--c3:#c2662d;--c4:#8a4fa8;--c5:#94791c}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#a3abb3;--line:#363c42;--paper:#16191c;
--c0:#a3abb3;--c1:#6aa9e9;--c2:#52b893;--c3:#e5935c;--c4:#c08bdb;--c5:#cbb04c}}
body{font:15px/1.45 sans-serif;color:var(--ink);background:var(--paper);max-width:62em;margin:2em auto;padding:0 1em}
h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2em}
table{border-collapse:collapse}td,th{padding:.2em 1em .2em 0;border-top:1px solid var(--line);text-align:left}
.n td:not(:first-child),.n th:not(:first-child){text-align:right;font-variant-numeric:tabular-nums}
td,th{vertical-align:top}img{max-width:100%}pre{overflow-x:auto;font-size:13px}
figure{margin:2em 0}figcaption{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(26em,1fr));gap:0 2em}.charts figure{margin:1em 0}
.charts b{color:var(--ink)}.key{white-space:nowrap;margin-left:1em}.key i{display:inline-block;width:1.1em;height:3px;
vertical-align:middle;margin-right:.35em}
svg{width:100%;height:auto}svg text{font:11.5px sans-serif;fill:var(--soft)}.grid{stroke:var(--line)}
.curve{fill:none;stroke-width:2;stroke-linejoin:round}.raw{stroke-width:1;opacity:.4}
.level{stroke:var(--soft);stroke-dasharray:5 4}
"""


def page(title: str, body: str) -> str:
    """A complete HTML file."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = (), numbers: bool = False) -> str:
    """A table of escaped text; `numbers` aligns all columns but the first at the right."""
    lines = []
    if head:
        lines.append("".join(f"<th>{escape(text)}</th>" for text in head))
    for row in rows:
        lines.append("".join(f"<td>{escape(str(cell))}</td>" for cell in row))
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table{' class=n' if numbers else ''}>\n{body}</table>"


def picture(file: Path, text: str) -> str:
    """A .png inside the page, with a caption."""
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(file.name)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def line_chart(
    title: str,
    text: str,
    curves: Mapping[str, Points],
    colors: Mapping[str, int],
    *,
    log: bool = False,
    noisy: bool = False,
    level: float | None = None,
) -> str:
    """Curves over the training steps, by name, as inline SVG; `level` is dashed. A log axis needs numbers > 0."""
    xs, ys = zip(*(point for points in curves.values() for point in points))
    ys = (*ys, *([] if level is None else [level]))
    y_ticks = log_ticks(min(ys), max(ys)) if log else ticks(min(0, *ys), max(ys))

    def x_at(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / max(xs)

    def y_at(y: float) -> float:
        low, high = y_ticks[0], y_ticks[-1]
        if log:
            low, high, y = math.log(low), math.log(high), math.log(y)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y_at(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(0, max(xs)):
        if x > max(xs):
            break
        parts.append(f'<text x="{x_at(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">step</text>')
    if level is not None:
        y = y_at(level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')

    for name, points in curves.items():
        smoothed = noisy and len(points) >= SMOOTH_FROM_POINTS
        for kind, line in [("curve raw", points), ("curve", smooth(points))] if smoothed else [("curve", points)]:
            path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
            if len(line) == 1:  # a single point would draw nothing
                path = f"{path} {path}"
            color = f"stroke:var(--c{colors[name]})"
            parts.append(f'<polyline class="{kind}" style="{color};stroke-linecap:round" points="{path}"/>')

    keys = "".join(
        f'<span class="key"><i style="background:var(--c{colors[name]})"></i>{escape(name)}</span>'
        for name in curves
        if name
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{keys}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def ticks(low: float, high: float) -> list[float]:
    """Some five round numbers from `low` or below to `high` or above."""
    span = (high - low) or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 4))
    step = next(size * k for k in (1, 2, 5, 10) if span / (size * k) <= 5)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a log axis: powers of ten, or 1, 2, 5 times them where these are few."""
    first_power, last_power = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first_power, max(last_power, first_power + 1) + 1)

    if len(powers) > 3:
        step = math.ceil(len(powers) / 7)
        return [float(f"1e{p}") for p in range(powers[0], powers[-1] + step, step)]
    marks = [float(f"{k}e{p}") for p in powers for k in (1, 2, 5)]
    first = max(i for i, mark in enumerate(marks) if mark <= low)
    last = next(i for i, mark in enumerate(marks) if mark >= high and i > first)
    return marks[first : last + 1]


def smooth(points: Points) -> Points:
    """Replace each point by the mean of a twentieth of the curve around it."""
    reach = max(1, len(points) // 40)
    values = [y for _, y in points]
    means = []
    for i, (x, _) in enumerate(points):
        window = values[max(0, i - reach) : i + reach + 1]
        means.append((x, sum(window) / len(window)))
    return means
