"""What the shell offers after TAB: names from the registry, where they are had at once; otherwise nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Completer = Callable[[typer.Context, str], Iterable[str | tuple[str, str]]]
Found = TypeVar("Found")
MOST = 50


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
