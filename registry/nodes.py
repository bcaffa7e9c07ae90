"""Nodes, their edges, and the version numbers of names: what every recorded thing shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from registry import renaming
from registry.columns import utc_now
from registry.digests import checked_digest
from registry.errors import NameTaken
from registry.models import Backbone, Dataset, Edge, Node, Series
from registry.upsert import insert_if_new

Parent = tuple[int, str]  # node id, role
_ADD, _ADD_EDGE = insert(Node.rows()), insert(Edge.rows())
_HOLD = select(Node.rows().c.id).where(Node.rows().c.id == bindparam("of")).with_for_update(key_share=True)


@dataclass(frozen=True, slots=True)
class Added:
    """A node that this transaction wrote."""

    id: int
    digest: str
    created_at: datetime


def add(session: Session, kind: str, digest: str, parents: Iterable[Parent]) -> Added:
    """Write a node and where it came from. The row that says the rest follows, and seals its lineage."""
    session.flush()
    now = utc_now()
    row = {"kind": kind, "digest": checked_digest(f"The {kind}", digest), "created_at": now}
    key: Any = session.connection().execute(_ADD, row).inserted_primary_key
    node_id: int = key[0]
    edges = [
        {"child": node_id, "parent": parent, "role": role, "pos": pos}
        for pos, (parent, role) in enumerate(parents)
    ]
    if edges:
        session.execute(_ADD_EDGE, edges)
    return Added(node_id, digest, now)


def hold(session: Session, node_id: int) -> None:
    """Make others who hold this node wait until this transaction ends (on SQLite they do anyway)."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_HOLD, {"of": node_id})


def lock_series(session: Session, kind: str, name: str) -> None:
    """Make others who would version this name wait until this transaction ends.

    NameTaken where it was the name of something that is called otherwise now.
    """
    renaming.take_turns(session, alone=False)
    query = select(Series.next_version).where(Series.kind == kind, Series.name == name).with_for_update()
    if session.execute(query).first() is None:
        if renaming.called_now(session, kind, name) is not None:
            raise NameTaken(kind, name)
        insert_if_new(session, Series, {"kind": kind, "name": name, "next_version": 1})
        session.execute(query).one()


def next_version(session: Session, kind: str, name: str) -> int:
    """The next number of this name, given out once. Call lock_series before."""
    statement = (
        update(Series)
        .where(Series.kind == kind, Series.name == name)
        .values(next_version=Series.next_version + 1)
        .returning(Series.next_version)
        .execution_options(synchronize_session=False)
    )
    return session.scalars(statement).one() - 1


def latest(session: Session, table: type[Backbone] | type[Dataset], name: str) -> int | None:
    """The node of a name's last version, from which the next one is made. Call lock_series before."""
    query = select(table.node_id).where(table.name == name).order_by(table.version.desc()).limit(1)
    return session.scalar(query)
