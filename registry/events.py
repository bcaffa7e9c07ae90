"""What happened, appended in the transaction in which it happened."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, insert, select
from sqlalchemy.orm import Session

from registry.digests import plain
from registry.models import Event
from registry.records import EventRecord

_APPEND = insert(Event.rows()).inline()  # nobody asks for the number it was given


def append(session: Session, kind: str, subject: int | None, payload: dict[str, Any]) -> None:
    """Record that something happened to a node (or to none). Numbers of events only rise."""
    session.flush()  # what happened stands before the event that tells of it
    row = {"kind": kind, "subject": subject, "payload": plain(f"The event {kind}", payload)}
    session.execute(_APPEND, row)


def list_after(
    session: Session, after: int = 0, *, limit: int = 100, kind: str | None = None, subject: int | None = None
) -> list[EventRecord]:
    """The events after this number, oldest first: a page whose last id asks for the next."""
    query = select(Event).where(Event.id > after).order_by(Event.id).limit(limit)
    return _records(session, query, kind, subject)


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
