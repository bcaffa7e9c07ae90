"""What the shell offers after TAB: names from the registry, where they are had at once; otherwise nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
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
        words = _of_bash()[0]
        return words[1:-1], words[-1]
    words = line.split()
    begun = "" if line.endswith(" ") or len(words) < 2 else words.pop()
    return words[1:], begun


def _of_bash() -> tuple[list[str], str]:
    """→ the words up to the one that bash asks about, and what of that stays where it is.

    bash parts words at `@` and `:`, which stand in names here, and puts what it is offered in place of the
    last part alone: of `digits@c` that is `@c`, of `task:di` it is `di`.
    """
    place = int(os.environ.get("COMP_CWORD", "1"))
    pieces = [*os.environ.get("COMP_WORDS", "").split("\n"), ""][: place + 1]
    words, parted, joins = pieces[:1], False, False
    for piece in pieces[1:]:
        parts = bool(piece) and {*piece} <= {"@", ":"}
        parted = bool(piece) and len(words) > 1 and (parts or joins)
        words[-1:] = [words[-1] + piece] if parted else [words[-1], piece]
        joins = parts
    last = words[-1]
    return words, last[: max(last.rfind("@"), last.rfind(":") + 1)] if parted else ""


@contextmanager
def answering() -> Iterator[None]:
    """Whatever is printed inside is what a shell is offered, if one asks: as that shell has its words."""
    if "_AFFINERY_COMPLETE" not in os.environ or "COMP_WORDS" not in os.environ:
        yield
        return
    words, stays = _of_bash()
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words), str(len(words) - 1)
    said = StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        print("\n".join(each.removeprefix(stays) for each in said.getvalue().splitlines()))


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


def things(context: typer.Context, incomplete: str) -> Iterable[str | tuple[str, str]]:
    """What has a name, as dataset:digits, or by its name alone; after an @ the aliases of a task."""
    from registry.completion import NAMES, aliases, names

    def find(session: Session) -> list[str]:
        task, at, begun = incomplete.partition("@")
        if at:
            return aliases(session, task, begun, MOST)
        kind, colon, name = incomplete.partition(":")
        meant = [each for each in NAMES if (each == kind if colon else each.startswith(kind))]
        whole = [f"{each}:{one}" for each in meant for one in names(session, each, name, MOST)]
        alone = NAMES if kind and not colon else ()
        bare = {one for each in alone for one in names(session, each, kind, MOST)}
        return [*whole, *sorted(bare)]

    return _read(context, find)


def event_kinds(context: typer.Context, incomplete: str) -> Iterable[str | tuple[str, str]]:
    """What has happened."""
    from registry.completion import event_kinds

    return _read(context, lambda session: event_kinds(session, incomplete, MOST))


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


def settings(incomplete: str) -> Iterable[str | tuple[str, str]]:
    """The names of settings."""
    from affinery_app.settings import SETTINGS

    return [(each.name, each.about) for each in SETTINGS if each.name.startswith(incomplete)]


def _one_of(known: Callable[[], Iterable[str]]) -> Callable[[str], Iterable[str]]:
    """Words that do not stand in the registry; found out when a shell asks, not when a command is made."""

    def complete(incomplete: str) -> Iterable[str]:
        return [word for word in known() if word.startswith(incomplete)]

    return complete


@_one_of
def kinds() -> Iterable[str]:
    """The adapter kinds."""
    from affinery.adapters import kinds

    return kinds()


@_one_of
def formats() -> Iterable[str]:
    """What a composition is exported as."""
    from orchestration.exports import formats

    return formats()


@_one_of
def lora_formats() -> Iterable[str]:
    """What a LoRA is exported as."""
    from orchestration.exchange import FORMATS

    return FORMATS


@_one_of
def job_states() -> Iterable[str]:
    """Where a job may stand."""
    from orchestration.jobs import STATES

    return STATES


@_one_of
def job_kinds() -> Iterable[str]:
    """What a job may be."""
    from orchestration.jobs import KINDS

    return KINDS


def _read(context: typer.Context, find: Callable[[Session], Found]) -> Found | list[str]:
    """What the registry answers. Who presses TAB is told of no error."""
    from affinery.errors import AffineryError
    from affinery_app.wiring import open_workspace

    try:
        with open_workspace(context.params.get("workspace")).sessions.read() as session:
            return find(session)
    except (AffineryError, OSError):
        return []
