"""What happened, appended in the transaction in which it happened."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, func, insert, select, text
from sqlalchemy.orm import Session

from affinery.errors import ConfigInvalid
from registry.digests import plain
from registry.models import Event
from registry.records import EventRecord
from registry.session import Sessions

NOUNS = (
    *("backbone", "dataset", "task", "adapter", "alias", "tag", "note", "run", "certificate"),
    *("evaluation", "composition", "export", "blob", "job", "schedule", "limit"),
    *("request", "session", "token", "webhook"),
)
"""What events are of: the first word of their kinds."""
RECENT = 5_000  # numbers; a gap further back is of nobody
CLOCKS_DIFFER = timedelta(seconds=10)
_KIND = re.compile(r"[a-z]+\.[a-z][a-z-]{0,40}")
_APPEND = insert(Event.rows()).inline()  # nobody asks for the number it was given
_NEWEST = select(func.coalesce(func.max(Event.id), 0)).scalar_subquery()
# When the first began of those who write events now; long ago where it is hidden, null where there is none.
# An insert holds this lock from before it takes its number until after it is committed.
_WRITER = text("""(
    SELECT min(coalesce(xact_start, timestamptz '1970-01-01'))
    FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'relation' AND relation = 'event'::regclass
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND mode = 'RowExclusiveLock' AND granted
)""")


def append(session: Session, kind: str, subject: int | None, payload: dict[str, Any]) -> None:
    """Record that something happened to a node (or to none). Numbers of events only rise."""
    session.flush()  # what happened stands before the event that tells of it
    row = {"kind": kind, "subject": subject, "payload": plain(f"The event {kind}", payload)}
    session.execute(_APPEND, row)


def is_kind(kind: str) -> bool:
    """Whether an event can be of it."""
    return _KIND.fullmatch(kind) is not None and kind.partition(".")[0] in NOUNS


def check_kind(kind: str | None) -> None:
    """Raises ConfigInvalid where no event can be of it; None is of any."""
    if kind is not None and not is_kind(kind):
        known = ", ".join(NOUNS)
        raise ConfigInvalid("kind", f"{kind!r} is no kind of event: write job.done or the like; of {known}.")


def list_after(
    session: Session, after: int = 0, *, limit: int = 100, kind: str | None = None, subject: int | None = None
) -> list[EventRecord]:
    """The events after this number, oldest first, as the session sees them. Who comes again uses follow."""
    query = select(Event).where(Event.id > after).order_by(Event.id).limit(limit)
    return _records(session, query, kind, subject)


def follow(
    made: Sessions, after: int = 0, *, limit: int = 100, kind: str | None = None, subject: int | None = None
) -> list[EventRecord]:
    """The events after this number, oldest first: a page whose last id asks for the next.

    Who goes on from there misses none. PostgreSQL gives numbers in one order and commits in another, so what
    follows a number that may still be committed is not told yet. Raises ConfigInvalid for what is no kind.
    """
    check_kind(kind)
    query = select(Event).where(Event.id > after).order_by(Event.id).limit(limit)
    if made.engine.dialect.name != "postgresql":
        with made.read() as session:
            return _records(session, query, kind, subject)
    # In this order: whoever has a number below upto, and has not committed it by now, still writes.
    with made.at_once() as connection:
        upto, begun = connection.execute(select(_NEWEST, _WRITER)).one()
    if upto <= after:
        return []
    with made.read() as session:
        number = None if begun is None else _missing(session, after, upto, begun)
        return _records(session, query.where(Event.id < (number or upto + 1)), kind, subject)


def _missing(session: Session, after: int, upto: int, begun: datetime) -> int | None:
    """The first number between these two that a transaction which began then, or later, may still commit.

    A number that nobody has was taken back, or is of one who writes now: who began after the next number was
    given has another. Their clocks, by which that is told, may differ by CLOCKS_DIFFER.
    """
    after = max(after, upto - RECENT)
    before = func.coalesce(func.lag(Event.id).over(order_by=Event.id), after).label("before")
    recent = select(Event.id, Event.at, before).where(Event.id > after, Event.id <= upto).subquery()
    return session.scalar(
        select(func.min(recent.c.before) + 1).where(
            recent.c.id > recent.c.before + 1, recent.c.at > begun - CLOCKS_DIFFER
        )
    )


def newest(
    session: Session,
    before: int | None = None,
    *,
    limit: int = 100,
    kind: str | None = None,
    subject: int | None = None,
) -> list[EventRecord]:
    """The newest events first, from below this number."""
    query = select(Event).order_by(Event.id.desc()).limit(limit)
    return _records(session, query if before is None else query.where(Event.id < before), kind, subject)


def _records(
    session: Session, query: Select[Event], kind: str | None, subject: int | None
) -> list[EventRecord]:
    if kind is not None:
        query = query.where(Event.kind == kind)
    if subject is not None:
        query = query.where(Event.subject == subject)
    return [
        EventRecord(id=row.id, at=row.at, kind=row.kind, subject=row.subject, payload=row.payload)
        for row in session.scalars(query)
    ]
