"""Pages of everything of a kind, what is called alike, and how much there is."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import refs
from registry.models import Backbone, Composition, Dataset, Node
from registry.records import NodeRecord


def of_kind(session: Session, kind: str, after: int, limit: int) -> list[int]:
    """The first nodes of this kind that were recorded after this one."""
    query = select(Node.id).where(Node.kind == kind, Node.id > after).order_by(Node.id).limit(limit)
    return list(session.scalars(query))


def newest_of_kind(session: Session, kind: str, before: int | None, limit: int) -> list[int]:
    """The newest nodes of this kind, from below this one."""
    query = select(Node.id).where(Node.kind == kind).order_by(Node.id.desc()).limit(limit)
    return list(session.scalars(query if before is None else query.where(Node.id < before)))


def named(session: Session, part: str, limit: int) -> list[NodeRecord]:
    """Backbones, datasets and compositions whose names hold this, in whatever case: the last version of each.

    limit: of each kind; those recorded last come first.
    """
    found: list[int] = []
    for table in (Backbone, Dataset, Composition):
        last = func.max(table.node_id)
        query = select(last).where(table.name.icontains(part, autoescape=True)).group_by(table.name)
        found += session.scalars(query.order_by(last.desc()).limit(limit))
    return list(refs.describe(session, found).values())


def counts(session: Session) -> dict[str, int]:
    """How many nodes there are of each kind."""
    found = session.execute(select(Node.kind, func.count()).group_by(Node.kind))
    return {row[0]: row[1] for row in found}
