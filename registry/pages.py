"""Pages of everything of a kind, and how much there is."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry.models import Node


def of_kind(session: Session, kind: str, after: int, limit: int) -> list[int]:
    """The first nodes of this kind that were recorded after this one."""
    query = select(Node.id).where(Node.kind == kind, Node.id > after).order_by(Node.id).limit(limit)
    return list(session.scalars(query))


def newest_of_kind(session: Session, kind: str, before: int | None, limit: int) -> list[int]:
    """The newest nodes of this kind, from below this one."""
    query = select(Node.id).where(Node.kind == kind).order_by(Node.id.desc()).limit(limit)
    return list(session.scalars(query if before is None else query.where(Node.id < before)))


def counts(session: Session) -> dict[str, int]:
    """How many nodes there are of each kind."""
    found = session.execute(select(Node.kind, func.count()).group_by(Node.kind))
    return {row[0]: row[1] for row in found}
