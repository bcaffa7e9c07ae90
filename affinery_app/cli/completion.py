"""What the shell offers after TAB: names from the registry, where they are had at once; otherwise nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Completer = Callable[[typer.Context, str], Iterable[str | tuple[str, str]]]
Found = TypeVar("Found")
MOST = 50


def asked() -> tuple[list[str], str] | None:
    """The words before the one that a shell asks about, and how that begins; None where no shell asks.

    As Typer's scripts for the shells say it; what stands in quotes may come in pieces.
    """
    if "_AFFINERY_COMPLETE" not in os.environ:
        return None
    line = os.environ.get("_TYPER_COMPLETE_ARGS")
    if line is None:  # bash
        words = os.environ.get("COMP_WORDS", "").split()
        place = int(os.environ.get("COMP_CWORD", "1"))
        return words[1:place], "".join(words[place : place + 1])
    words = line.split()
    begun = "" if line.endswith(" ") or len(words) < 2 else words.pop()
    return words[1:], begun


def _named(kind: str) -> Completer:
    def complete(context: typer.Context, incomplete: str) -> Iterable[str | tuple[str, str]]:
        from registry.completion import names

        return _read(context, lambda session: names(session, kind, incomplete, MOST))

    return complete


tasks, backbones, datasets, compositions = map(_named, ("task", "backbone", "dataset", "composition"))


def adapters(context: typer.Context, incomplete: str) -> Iterable[str | tuple[str, str]]:
    """A task, or after its @ the task's aliases."""
    from registry.completion import aliases, names

    task, at, begun = incomplete.partition("@")
    return _read(
        context,
        lambda session: aliases(session, task, begun, MOST) if at else names(session, "task", task, MOST),
    )


def jobs(context: typer.Context, incomplete: str) -> Iterable[str | tuple[str, str]]:
    """The newest jobs by number, with what they are."""

    def newest(session: Session) -> list[tuple[str, str]]:
        from orchestration import queue

        found = queue.page(session, limit=MOST)
        return [
            (str(job.number), f"{job.state} {' + '.join(job.tasks) or job.kind}")
            for job in found
            if str(job.number).startswith(incomplete)
        ]

    return _read(context, newest)


def kinds(incomplete: str) -> Iterable[str | tuple[str, str]]:
    """The adapter kinds."""
    from affinery.adapters import kinds

    return [name for name in kinds() if name.startswith(incomplete)]


def settings(incomplete: str) -> Iterable[str | tuple[str, str]]:
    """The names of settings."""
    from affinery_app.settings import SETTINGS

    return [(each.name, each.about) for each in SETTINGS if each.name.startswith(incomplete)]


def _read(context: typer.Context, find: Callable[[Session], Found]) -> Found | list[str]:
    """What the registry answers. Who presses TAB is told of no error."""
    from affinery.errors import AffineryError
    from affinery_app.wiring import open_workspace

    try:
        with open_workspace(context.params.get("workspace")).sessions.read() as session:
            return find(session)
    except (AffineryError, OSError):
        return []
