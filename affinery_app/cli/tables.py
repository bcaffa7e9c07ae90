"""Rows as a plain table that fits the terminal.

Rich's own tables measure and style every cell several times over: for 200 rows that takes longer than to read
them from the registry, and for one it takes longer to load.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len, chop_cells, set_cell_size

WIDTH = 80
"""Columns of the screen where there is no terminal."""
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def drawn(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], gap: int
) -> Iterator[str]:
    """The table's lines. right: which columns stand to the right. gap: cells between two columns."""
    natural = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    between = gap * (len(columns) - 1)
    widths = _fitted(natural, screen_width() - between)
    bold = (BOLD, PLAIN) if _is_styled() else ("", "")
    for line in _row(columns, widths, right, gap):
        yield bold[0] + line + bold[1]
    yield "─" * (sum(widths) + between)
    for row in rows:
        yield from _row(row, widths, right, gap)


def screen_width() -> int:
    """How many cells a line has: COLUMNS, or the terminal that any of the streams is connected to."""
    if (told := os.environ.get("COLUMNS", "")).isdigit() and int(told):
        return int(told)
    for stream in (0, 1, 2):
        try:
            return os.get_terminal_size(stream).columns or WIDTH
        except OSError:
            continue
    return WIDTH


def _is_styled() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _fitted(natural: Sequence[int], room: int) -> list[int]:
    """The widths, of which the widest give way until all fit; each keeps one cell at least."""
    limit = min(max(natural), max(room, 1))
    while limit > 1 and sum(min(width, limit) for width in natural) > room:
        limit -= 1
    widths = [min(width, limit) for width in natural]
    spare = room - sum(widths)
    for at, width in enumerate(natural):
        if width > limit and spare > 0:
            widths[at] += 1
            spare -= 1
    return widths


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], gap: int) -> Iterator[str]:
    parts = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for pieces in zip_longest(*parts, fillvalue=""):
        placed = (
            " " * (width - cell_len(piece)) + piece if to_right else set_cell_size(piece, width)
            for piece, width, to_right in zip(pieces, widths, right, strict=True)
        )
        yield (" " * gap).join(placed).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of that many cells: broken between words, and inside those that are longer."""
    if cell_len(text) <= width:
        return [text]
    lines = [""]
    for word in re.findall(r"\s*\S+\s*", text):
        if cell_len(lines[-1] + word.rstrip()) <= width:
            lines[-1] += word
        elif cell_len(word.rstrip()) <= width:
            lines.append(word)
        else:
            lines += chop_cells(word.rstrip(), width)
            lines[-1] += word[len(word.rstrip()) :]
    return [line.rstrip() for line in lines if line.strip()]
