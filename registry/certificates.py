"""Certificates: what was proved about everything older when an adapter was added."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, bindparam, insert, select
from sqlalchemy.orm import Session

from registry import adapters, events, nodes
from registry.digests import digest_of, plain
from registry.errors import RecordInvalid
from registry.models import Certificate, Node
from registry.records import AdapterRecord, CertificateRecord

Level = Literal["bit-exact", "tolerance", "unverified"]
LEVELS: tuple[Level, ...] = ("bit-exact", "tolerance", "unverified")
_INSERT = insert(Certificate.rows())
_certificate, _node = Certificate.rows().c, Node.rows().c
_STANDING = (
    select(_certificate.node_id, _node.created_at)
    .join_from(Certificate.rows(), Node.rows(), _node.id == _certificate.node_id)
    .where(_certificate.adapter_id == bindparam("proved"), _node.digest == bindparam("digest"))
    .order_by(_certificate.node_id)
    .limit(1)
)


def record(
    session: Session, *, stage_adapter: str | AdapterRecord, results: dict[str, Any], level: Level
) -> CertificateRecord:
    """Record the proof made when this adapter was added. The same again gives the record that stands."""
    if level not in LEVELS:
        raise RecordInvalid("The certificate", f"{level!r} is not one of {', '.join(LEVELS)}")
    adapter = adapters.get(session, stage_adapter) if isinstance(stage_adapter, str) else stage_adapter
    results = plain("The certificate's results", results)
    digest = digest_of({"adapter": adapter.digest, "level": level, "results": results})
    nodes.hold(session, adapter.node_id)  # who proves the same at once waits here
    standing = session.execute(_STANDING, {"proved": adapter.node_id, "digest": digest}).first()
    if standing is not None:
        return _made(standing.node_id, digest, standing.created_at, adapter, level, results)
    node = nodes.add(session, "certificate", digest, [(adapter.node_id, "adapter")])
    row = {"node_id": node.id, "adapter_id": adapter.node_id, "level": level, "results": results}
    session.execute(_INSERT, row)
    events.append(session, "certificate.recorded", node.id, {"adapter": adapter.ref, "level": level})
    return _made(node.id, digest, node.created_at, adapter, level, results)


def list_for(session: Session, adapter_ref: str) -> list[CertificateRecord]:
    """The certificates of an adapter, oldest first."""
    adapter = adapters.get(session, adapter_ref)
    query = (
        select(Certificate, Node)
        .join(Node, Node.id == Certificate.node_id)
        .where(Certificate.adapter_id == adapter.node_id)
        .order_by(Certificate.node_id)
    )
    return [_record(row, adapter) for row in session.execute(query)]


def _record(row: Row[Certificate, Node], adapter: AdapterRecord) -> CertificateRecord:
    certificate, node = row
    return _made(node.id, node.digest, node.created_at, adapter, certificate.level, certificate.results)


def _made(
    node_id: int, digest: str, at: datetime, adapter: AdapterRecord, level: str, results: dict[str, Any]
) -> CertificateRecord:
    return CertificateRecord(
        node_id=node_id,
        digest=digest,
        created_at=at,
        adapter=adapter.ref,
        adapter_id=adapter.node_id,
        level=level,
        results=results,
    )
