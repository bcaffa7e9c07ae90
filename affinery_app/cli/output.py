"""How commands speak: results on stdout, talk on stderr; tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        help="The workspace's folder; affinery-workspace where none is named.",
        envvar="AFFINERY_WORKSPACE",
        show_default=False,
    ),
]
LONG = 300
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def say(text: str = "") -> None:
    """Talk: what was done, what to do next. The results that it is about come first."""
    print(end="", flush=True)
    print(text, file=sys.stderr, flush=True)


def following(*commands: str) -> None:
    """The next steps, after a result."""
    if sys.stderr.isatty() or sys.stdout.isatty():
        say("\nNext:")
        for command in commands:
            say(f"  {command}")


def emit(value: Any) -> None:
    """A result as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str, *, numbers: Collection[str] = ()
) -> None:
    """Rows as a plain table, fitted to the terminal (80 columns where there is none).

    numbers: the columns that stand to the right; a table that has some is set more closely.
    """
    listed = [[printable(cell) for cell in row] for row in rows]
    if not listed:
        say(empty)
        return
    from affinery_app.cli.tables import drawn

    for line in drawn(columns, listed, [column in numbers for column in columns], gap=1 if numbers else 3):
        print(line)


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """One thing, a line a field."""
    listed = [(name, printable(value)) for name, value in pairs]
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print(f"{name:<{width}}  {value}")


def printable(value: Any) -> str:
    """A value as text on one line; characters that a terminal would obey are shown, not sent."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def short(value: Any) -> str:
    """One part of a result; what is long stands in --json."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONG else f"{text[: LONG - 1]}… (all of it: --json)"
