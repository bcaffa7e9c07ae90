"""The growing class table as a picture: a cell a row, in the colour of the task that owns it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from registry.records import BackboneRecord, TaskRecord

ACROSS, CELL, GAP, MOST_ROWS = 64, 12, 2, 6_400
COLOURS = 10


def class_map(backbone: BackboneRecord, tasks: Sequence[TaskRecord]) -> str:
    """tasks: in the order of their rows. Rows past MOST_ROWS are not drawn; the page lists their owners."""
    owners = [
        ((0, backbone.null_index), "own", f"{backbone.ref}: its own classes"),
        ((backbone.null_index, backbone.null_index + 1), "null", f"{backbone.ref}: the unconditional row"),
        *((task.block, f"c{i % COLOURS}", task.name) for i, task in enumerate(tasks)),
    ]
    last = min(MOST_ROWS, max(block[1] for block, _, _ in owners))
    lines = -(-last // ACROSS)
    size = CELL + GAP
    told = f"The class table: who owns which of its {last} rows"
    box = f"0 0 {ACROSS * size} {lines * size}"
    parts = [f'<svg class="class-map" viewBox="{box}" role="img" aria-label="{told}">']
    for (lo, hi), colour, name in owners:
        strips = "".join(_strip(lo, hi, line, size) for line in _lines(lo, min(hi, last)))
        if strips:
            told = f"{escape(name)}: rows {lo} to {hi - 1}"
            parts.append(f'<g class="{colour}"><title>{told}</title>{strips}</g>')
    return "".join(parts) + "</svg>"


def _lines(lo: int, hi: int) -> range:
    return range(lo // ACROSS, -(-hi // ACROSS)) if hi > lo else range(0)


def _strip(lo: int, hi: int, line: int, size: int) -> str:
    """What of a block stands in one line, as one shape."""
    start, end = max(lo, line * ACROSS), min(hi, (line + 1) * ACROSS)
    cells = "".join(
        f"M{(row - line * ACROSS) * size} {line * size}h{CELL}v{CELL}h-{CELL}z" for row in range(start, end)
    )
    return f'<path d="{cells}"/>' if cells else ""
