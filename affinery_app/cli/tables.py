"""Rows as a plain table that fits the terminal; where its words do not, each row by itself, a line a cell.

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
NARROW = 60
"""Columns of a screen on which no word is broken that need not be: rows stand by themselves there instead."""
LONG_WORD, SHORT_WORD = 20, 6
"""Cells that a word may ask for, and that a column has at least; what is longer is broken."""
CLOSE = 2
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def drawn(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], gap: int
) -> Iterator[str]:
    """The table's lines. right: which columns stand to the right.

    gap: cells between two columns; two where all of it fits so.
    """
    cells = list(zip(columns, *rows, strict=True))
    natural = [max(map(cell_len, column)) for column in cells]
    least = [min(max(map(_longest_word, column)), LONG_WORD) for column in cells]
    between, width = gap * (len(columns) - 1), screen_width()
    if sum(natural) + between > width >= sum(natural) + CLOSE * (len(columns) - 1):
        gap, between = CLOSE, CLOSE * (len(columns) - 1)
    room = width - between
    if sum(least) > room:
        if width < NARROW or SHORT_WORD * len(columns) > room:
            yield from _folded(columns, rows)
            return
        least = [min(cells, SHORT_WORD) for cells in least]
    widths = _fitted(natural, least, room)
    bold = (BOLD, PLAIN) if _is_styled() else ("", "")
    for line in _row(columns, widths, right, gap):
        yield bold[0] + line + bold[1]
    yield "─" * (sum(widths) + between)
    for row in rows:
        yield from _row(row, widths, right, gap)


def _folded(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Each row by itself: a line for each cell that says something, behind the name of its column."""
    names = min(max(map(cell_len, columns)), screen_width() // 2)
    widths = [names, max(screen_width() - names - 2, 1)]
    for i, row in enumerate(rows):
        if i:
            yield ""
        for column, cell in zip(columns, row, strict=True):
            if cell:
                yield from _row([column, cell], widths, [False, False], 2)


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


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=1)


def _fitted(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widths, of which the widest give way until all fit; each keeps what it needs at least."""
    limit = max(natural)
    while sum(map(max, least, (min(width, limit) for width in natural))) > room:
        limit -= 1
    widths = [max(few, min(width, limit)) for few, width in zip(least, natural, strict=True)]
    spare = room - sum(widths)
    for at, width in enumerate(natural):
        if widths[at] < width and spare > 0:
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
