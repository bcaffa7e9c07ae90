"""Charts as SVG, in the colours of the page that they stand on; nothing is loaded, nothing runs.

What they look like is said by classes (STYLE) and by SVG's own attributes: a page may forbid inline styles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

# Its margins hold the larger letters of a narrow screen too.
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 680, 304, 64, 44, 30, 16
COLOURS = 6  # of the page: --line-0 …
SHADES = 10  # of a heat table
POINTS = 400  # of a line: more than that are not seen
STYLE = (
    "".join(
        f".line-{i} {{ stroke: var(--line-{i}); }} .key-{i} {{ background: var(--line-{i}); }}\n"
        for i in range(COLOURS)
    )
    + "".join(
        f".shade-{i} {{ background: color-mix(in srgb, var(--accent) {8 + 5 * i}%, transparent); }}\n"
        for i in range(SHADES + 1)
    )
    + """.chart { width: 100%; height: auto; } .chart text { fill: var(--faint); font-size: 11px; }
@media (max-width: 40rem) { .chart text { font-size: 19px; } }
.grid { stroke: var(--rule); } polyline { fill: none; stroke-width: 1.6; }
.bars .bar { width: 16rem; } .bar svg { width: 100%; height: .8rem; } .bar rect { fill: var(--accent); }
.heat td, .heat th { padding: .35rem .7rem; } .heat td { text-align: right; }
.shades span { display: inline-block; width: .9rem; height: .75rem; vertical-align: -.08rem; }
.legend { list-style: none; padding: 0; margin: .2rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.legend span { display: inline-block; width: 1.4rem; height: .2rem; margin-right: .4rem;
  vertical-align: middle; }
"""
)


def line_chart(lines: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, title: str) -> str:
    """One line a name, with a legend below. Empty text where there is nothing to draw."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    (low_x, high_x), (low_y, high_y) = (_span([point[i] for point in points]) for i in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        right, down = (x - low_x) / (high_x - low_x), (y - low_y) / (high_y - low_y)
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - down * (HEIGHT - BOTTOM - TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" class="chart">']
    for y in ticks(low_y, high_y):
        _, at_y = place(low_x, y)
        parts += [
            f'<line x1="{LEFT}" y1="{at_y:.1f}" x2="{WIDTH - RIGHT}" y2="{at_y:.1f}" class="grid"/>',
            f'<text x="{LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end">{y:.4g}</text>',
        ]
    whole = all(x == round(x) for x, _ in points)
    for x in (x for x in ticks(low_x, high_x) if not whole or x == round(x)):
        at_x, _ = place(x, low_y)
        shown = f"{x:,.0f}" if x == round(x) else f"{x:.4g}"
        parts.append(f'<text x="{at_x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{shown}</text>')
    parts += [
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(across)}</text>',
        f'<text x="{LEFT - 6}" y="15" text-anchor="end">{escape(up)}</text>',
    ]
    for i, line in enumerate(lines.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in thinned(line)))
        parts.append(f'<polyline points="{path}" class="line-{i % COLOURS}"/>')
    legend = "".join(
        f'<li><span class="key-{i % COLOURS}"></span>{escape(name)}</li>' for i, name in enumerate(lines)
    )
    return "".join(parts) + f'</svg><ul class="legend">{legend}</ul>'


def thinned(line: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """So many of a line's points as are seen, at equal distances, the first and the last among them."""
    if len(line) <= POINTS:
        return line
    return [line[round(i * (len(line) - 1) / (POINTS - 1))] for i in range(POINTS)]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, four to nine of them."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= rough * 0.9)
    first = math.ceil(low / step - 1e-9)
    return [round(each * step, 12) for each in range(first, math.floor(high / step + 1e-9) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def bars(shares: Mapping[str, float]) -> str:
    """Shares from 0 to 1, a bar each."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="bar"><svg aria-hidden="true"><rect width="{100 * share:.1f}%" height="100%"/></svg></td>'
        f"<td>{share:.0%}</td></tr>"
        for name, share in shares.items()
    )
    return f'<table class="bars">{rows}</table>'


def heat_table(
    rows: Sequence[tuple[str, Sequence[float | None]]],
    across: Sequence[str],
    corner: str,
    more_is_better: bool,
    below: Sequence[tuple[str, Sequence[str]]] = (),
) -> str:
    """A table whose cells are the darker the better their number is in its column; what is not is empty.

    below: rows of words, which have no shade.
    """
    columns = zip(*(row for _, row in rows), strict=True)
    shades = [_shades(column, more_is_better) for column in columns]
    head = "".join(f'<th scope="col" class="right">{escape(name)}</th>' for name in across)
    body = ""
    for (name, row), own in zip(rows, zip(*shades, strict=True), strict=True):
        cells = "".join(_cell(value, shade) for value, shade in zip(row, own, strict=True))
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    foot = ""
    for name, told in below:
        cells = "".join(f"<td>{escape(words)}</td>" for words in told)
        foot += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return (
        f'<table class="heat"><thead><tr><th scope="col">{escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody>{f'<tfoot>{foot}</tfoot>' if foot else ''}</table>"
    )


def heat_key() -> str:
    """What the shades of a heat table say."""
    strip = "".join(f'<span class="shade-{i}"></span>' for i in range(SHADES + 1))
    return f'worst <span class="shades" aria-hidden="true">{strip}</span> best of its column'


def _shades(column: Sequence[float | None], more_is_better: bool) -> list[int]:
    known = [value for value in column if value is not None]
    low, high = _span(known) if known else (0.0, 1.0)
    return [
        0
        if value is None
        else round(SHADES * ((value - low) if more_is_better else (high - value)) / (high - low))
        for value in column
    ]


def _cell(value: float | None, shade: int) -> str:
    if value is None:
        return '<td aria-label="not learnt yet"></td>'
    return f'<td class="shade-{shade}">{value:.4g}</td>'
