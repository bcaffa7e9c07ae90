"""Backbones: pretrained denoisers, frozen, known by their fingerprint."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session, aliased

from registry import blobs, events, names, nodes, refs, seals
from registry.digests import checked_digest, plain
from registry.errors import RecordInvalid
from registry.models import Backbone, ClassBlock, Node
from registry.records import BackboneRecord

MAX_ROWS = 2**31 - 1


def register(
    session: Session,
    *,
    name: str,
    fingerprint: str,
    blob_digest: str,
    size_bytes: int,
    num_classes: int,
    null_index: int,
    spec: dict[str, Any],
    parent: str | None = None,
) -> BackboneRecord:
    """Record a backbone version and its own class rows [0, null_index + 1).

    The same name and fingerprint again give the record that stands; another fingerprint under the name gives
    the next version. parent is the reference of the backbone that this one was made from; where none is
    given, it is the version before it of the same name.
    """
    name = names.checked("backbone", name)
    checked_digest("The backbone's fingerprint", fingerprint)
    if not 0 <= num_classes <= null_index < MAX_ROWS:
        raise RecordInvalid(
            "The backbone", f"{num_classes} classes and null row {null_index} do not fit together"
        )
    nodes.lock_series(session, "backbone", name)
    same = session.execute(
        _query().where(Backbone.name == name, Node.digest == fingerprint).order_by(Backbone.version.desc())
    ).first()
    if same is not None:
        return _record(same)
    ancestor = get(session, parent).node_id if parent is not None else nodes.latest(session, Backbone, name)
    blobs.commit(session, blob_digest, size_bytes)
    version = nodes.next_version(session, "backbone", name)
    node = nodes.add(session, "backbone", fingerprint, [] if ancestor is None else [(ancestor, "parent")])
    row = Backbone(
        node_id=node.id,
        name=name,
        version=version,
        blob_digest=blob_digest,
        size_bytes=size_bytes,
        num_classes=num_classes,
        null_index=null_index,
        spec=plain("The backbone's spec", spec),
        parent_id=ancestor,
    )
    session.add(row)
    session.flush()
    session.add(ClassBlock(owner_id=node.id, backbone_id=node.id, lo=0, hi=null_index + 1))
    session.flush()
    record = by_id(session, node.id)
    happened = {"ref": record.ref, "fingerprint": fingerprint, **seals.of_row("backbone", row)}
    events.append(session, "backbone.registered", node.id, happened)
    return record


def get(session: Session, ref: str) -> BackboneRecord:
    """The backbone that a reference means: a name (its latest version), name@version or a digest."""
    return by_id(session, refs.find(session, "backbone", ref))


def by_id(session: Session, node_id: int) -> BackboneRecord:
    """The backbone of a node."""
    return _record(session.execute(_query().where(Backbone.node_id == node_id)).one())


def list_all(session: Session) -> list[BackboneRecord]:
    """Every backbone version, by name and version."""
    return [_record(row) for row in session.execute(_query().order_by(Backbone.name, Backbone.version))]


_Parent = aliased(Backbone)


def _query() -> Select[Backbone, Node, str, int]:
    return (
        select(Backbone, Node, _Parent.name, _Parent.version)
        .join(Node, Node.id == Backbone.node_id)
        .outerjoin(_Parent, _Parent.node_id == Backbone.parent_id)
    )


def _record(row: Row[Backbone, Node, str, int]) -> BackboneRecord:
    backbone, node, parent_name, parent_version = row
    return BackboneRecord(
        node_id=node.id,
        digest=node.digest,
        created_at=node.created_at,
        name=backbone.name,
        version=backbone.version,
        blob_digest=backbone.blob_digest,
        size_bytes=backbone.size_bytes,
        num_classes=backbone.num_classes,
        null_index=backbone.null_index,
        spec=backbone.spec,
        parent=None if backbone.parent_id is None else f"{parent_name}@{parent_version}",
    )
