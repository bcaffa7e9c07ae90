"""Charts as SVG, in the colours of the page that they stand on; nothing is loaded, nothing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 680, 290, 56, 34, 22, 16
COLOURS = 6  # of the page: --line-0 …


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
    for i in range(5):
        x, y = (low + (high - low) * i / 4 for low, high in ((low_x, high_x), (low_y, high_y)))
        at_x, _ = place(x, low_y)
        _, at_y = place(low_x, y)
        parts += [
            f'<line x1="{LEFT}" y1="{at_y:.1f}" x2="{WIDTH - RIGHT}" y2="{at_y:.1f}" class="grid"/>',
            f'<text x="{LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end">{y:.3g}</text>',
            f'<text x="{at_x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:.4g}</text>',
        ]
    parts += [
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(across)}</text>',
        f'<text x="{LEFT - 6}" y="10" text-anchor="end">{escape(up)}</text>',
    ]
    for i, line in enumerate(lines.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{path}" class="line-{i % COLOURS}"/>')
    legend = "".join(
        f'<li><span class="key-{i % COLOURS}"></span>{escape(name)}</li>' for i, name in enumerate(lines)
    )
    return "".join(parts) + f'</svg><ul class="legend">{legend}</ul>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def bars(shares: Mapping[str, float]) -> str:
    """Shares from 0 to 1, a bar each."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="bar"><div style="width:{100 * share:.1f}%"></div></td>'
        f"<td>{share:.0%}</td></tr>"
        for name, share in shares.items()
    )
    return f'<table class="bars">{rows}</table>'


def heat_table(rows: Sequence[tuple[str, Sequence[float | None]]], across: Sequence[str], corner: str) -> str:
    """A table whose cells are the darker the higher their number; what is not there stays empty."""
    known = [value for _, row in rows for value in row if value is not None]
    low, high = _span(known) if known else (0.0, 1.0)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in across)
    body = ""
    for name, row in rows:
        cells = "".join(_cell(value, low, high) for value in row)
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return f'<table class="heat"><tr><th scope="col">{escape(corner)}</th>{head}</tr>{body}</table>'


def _cell(value: float | None, low: float, high: float) -> str:
    if value is None:
        return "<td></td>"
    share = 8 + 52 * (value - low) / (high - low)
    return (
        f'<td style="background:color-mix(in srgb, var(--accent) {share:.0f}%, transparent)">{value:.4g}</td>'
    )
