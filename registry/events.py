"""What happened, appended in the transaction in which it happened."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Select, func, insert, select
from sqlalchemy.orm import Session

from registry.columns import utc_now
from registry.digests import plain
from registry.models import Event
from registry.records import EventRecord

RECENT, LATE_SECONDS = 5_000, 60.0
_APPEND = insert(Event.rows()).inline()  # nobody asks for the number it was given


def append(session: Session, kind: str, subject: int | None, payload: dict[str, Any]) -> None:
    """Record that something happened to a node (or to none). Numbers of events only rise."""
    session.flush()  # what happened stands before the event that tells of it
    row = {"kind": kind, "subject": subject, "payload": plain(f"The event {kind}", payload)}
    session.execute(_APPEND, row)


def list_after(
    session: Session, after: int = 0, *, limit: int = 100, kind: str | None = None, subject: int | None = None
) -> list[EventRecord]:
    """The events after this number, oldest first: a page whose last id asks for the next.

    Who goes on from there misses none: what follows a number that may still be committed is not told yet.
    """
    query = select(Event).where(Event.id > after).order_by(Event.id).limit(limit)
    if (open_from := _open_from(session, after)) is not None:
        query = query.where(Event.id < open_from)
    return _records(session, query, kind, subject)


def _open_from(session: Session, after: int) -> int | None:
    """The first number that was given to an event which may still be committed; None where there is none.

    PostgreSQL gives numbers in one order and commits in another. A number that nobody has was taken back, or
    is of somebody who writes now; only while somebody does, and for a while, it is waited for.
    """
    if session.get_bind().dialect.name != "postgresql":
        return None
    now = func.pg_current_snapshot()
    begin = max(after, (session.scalar(select(func.max(Event.id))) or 0) - RECENT)
    before = func.coalesce(func.lag(Event.id).over(order_by=Event.id), begin).label("before")
    recent = select(Event.id, Event.at, before).where(Event.id > begin).subquery()
    missing = select(func.min(recent.c.before) + 1).where(
        recent.c.id > recent.c.before + 1,
        recent.c.at > utc_now() - timedelta(seconds=LATE_SECONDS),
        func.pg_snapshot_xmin(now) != func.pg_snapshot_xmax(now),
    )
    return session.scalar(missing)


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
