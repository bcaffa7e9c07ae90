"""The growing class table as a picture: a cell a row, in the colour of the task that owns it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from registry.records import BackboneRecord, TaskRecord

ACROSS = {"on-wide": 64, "on-narrow": 24}  # by how wide the screen is, as app.css has it
CELL, GAP, MOST_ROWS = 12, 2, 6_400
SIZE = CELL + GAP
COLOURS = 10


def class_map(backbone: BackboneRecord, tasks: Sequence[TaskRecord]) -> str:
    """tasks: in the order of their rows. Rows past MOST_ROWS are not drawn; the page lists their owners.

    Drawn for a wide screen and for a phone's, of which app.css shows the one that fits.
    """
    owners = [
        ((0, backbone.null_index), "own", f"{backbone.ref}: its own classes"),
        ((backbone.null_index, backbone.null_index + 1), "null", f"{backbone.ref}: the unconditional row"),
        *((task.block, f"c{i % COLOURS}", task.name) for i, task in enumerate(tasks)),
    ]
    last = min(MOST_ROWS, max(block[1] for block, _, _ in owners))
    return "".join(_drawn(owners, last, across, width) for width, across in ACROSS.items())


def _drawn(owners: Sequence[tuple[tuple[int, int], str, str]], last: int, across: int, width: str) -> str:
    """The first `last` rows, so many across."""
    lines = -(-last // across)
    told = f"The class table: who owns which of its {last} rows"
    box = f"0 0 {across * SIZE} {lines * SIZE}"
    parts = [f'<svg class="class-map {width}" viewBox="{box}" role="img" aria-label="{told}">']
    for (lo, hi), colour, name in owners:
        cells = "".join(
            f"M{row % across * SIZE} {row // across * SIZE}h{CELL}v{CELL}h-{CELL}z"
            for row in range(lo, min(hi, last))
        )
        if cells:
            told = f"{escape(name)}: rows {lo} to {hi - 1}"
            parts.append(f'<g class="{colour}"><title>{told}</title><path d="{cells}"/></g>')
    return "".join(parts) + "</svg>"
