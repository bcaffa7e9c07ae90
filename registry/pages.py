"""Pages of everything of a kind."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.models import Node


def of_kind(session: Session, kind: str, after: int, limit: int) -> list[int]:
    """The first nodes of this kind that were recorded after this one."""
    query = select(Node.id).where(Node.kind == kind, Node.id > after).order_by(Node.id).limit(limit)
    return list(session.scalars(query))
