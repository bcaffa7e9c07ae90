"""Exports: bundles that were written from a composition."""

from __future__ import annotations

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session

from registry import events, nodes, refs, seals
from registry.digests import checked_digest, plain
from registry.models import Composition, Export, Node
from registry.records import CompositionRecord, ExportRecord


def record(
    session: Session,
    *,
    composition: CompositionRecord,
    format: str,  # noqa: A002 - the word that people use
    digest: str,
    path: str,
    size_bytes: int,
) -> ExportRecord:
    """Record a bundle. The same one of the same composition and place gives the record that stands."""
    checked_digest("The export", digest)
    path = plain("The export's path", path)
    nodes.lock_series(session, "export", composition.name)
    same = session.execute(
        _query().where(
            Export.composition_id == composition.node_id,
            Export.format == format,
            Export.path == path,
            Node.digest == digest,
        )
    ).first()
    if same is not None:
        return _record(same)
    version = nodes.next_version(session, "export", composition.name)
    node = nodes.add(session, "export", digest, [(composition.node_id, "composition")])
    row = Export(
        node_id=node.id,
        composition_id=composition.node_id,
        name=composition.name,
        version=version,
        format=format,
        path=path,
        size_bytes=size_bytes,
    )
    session.add(row)
    session.flush()
    made = by_id(session, node.id)
    happened = {"ref": made.ref, "digest": digest, **seals.of_row("export", row)}
    events.append(session, "export.recorded", node.id, happened)
    return made


def get(session: Session, ref: str) -> ExportRecord:
    """The export of a composition's name (the latest) or name@version, exports counted by themselves."""
    return by_id(session, refs.find(session, "export", ref))


def by_id(session: Session, node_id: int) -> ExportRecord:
    """The export of a node."""
    return _record(session.execute(_query().where(Export.node_id == node_id)).one())


def list_all(session: Session, *, composition_id: int | None = None) -> list[ExportRecord]:
    """Every export (of a composition version), oldest first."""
    query = _query().order_by(Export.node_id)
    if composition_id is not None:
        query = query.where(Export.composition_id == composition_id)
    return [_record(row) for row in session.execute(query)]


_Row = Row[Export, Node, str, int]


def _query() -> Select[Export, Node, str, int]:
    return (
        select(Export, Node, Composition.name, Composition.version)
        .join(Node, Node.id == Export.node_id)
        .join(Composition, Composition.node_id == Export.composition_id)
    )


def _record(row: _Row) -> ExportRecord:
    export, node, composition, composition_version = row
    return ExportRecord(
        node_id=node.id,
        digest=node.digest,
        created_at=node.created_at,
        name=export.name,
        version=export.version,
        composition=f"{composition}@{composition_version}",
        composition_id=export.composition_id,
        format=export.format,
        path=export.path,
        size_bytes=export.size_bytes,
    )
