"""Certificates: what was proved about everything older when an adapter was added."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from registry import adapters, events, nodes
from registry.digests import digest_of, plain
from registry.errors import RecordInvalid
from registry.models import Certificate, Node
from registry.records import AdapterRecord, CertificateRecord

Level = Literal["bit-exact", "tolerance", "unverified"]
LEVELS: tuple[Level, ...] = ("bit-exact", "tolerance", "unverified")


def record(
    session: Session, *, stage_adapter: str, results: dict[str, Any], level: Level
) -> CertificateRecord:
    """Record the proof made when this adapter was added. The same again gives the record that stands."""
    if level not in LEVELS:
        raise RecordInvalid("The certificate", f"{level!r} is not one of {', '.join(LEVELS)}")
    adapter = adapters.get(session, stage_adapter)
    results = plain("The certificate's results", results)
    digest = digest_of({"adapter": adapter.digest, "level": level, "results": results})
    for standing in list_for(session, adapter.ref):
        if standing.digest == digest:
            return standing
    node = nodes.add(session, "certificate", digest, [(adapter.node_id, "adapter")])
    row = Certificate(node_id=node.id, adapter_id=adapter.node_id, level=level, results=results)
    session.add(row)
    session.flush()
    events.append(session, "certificate.recorded", node.id, {"adapter": adapter.ref, "level": level})
    return _made(row, node, adapter)


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
    return _made(certificate, node, adapter)


def _made(certificate: Certificate, node: Node, adapter: AdapterRecord) -> CertificateRecord:
    return CertificateRecord(
        node_id=node.id,
        digest=node.digest,
        created_at=node.created_at,
        adapter=adapter.ref,
        adapter_id=adapter.node_id,
        level=certificate.level,
        results=certificate.results,
    )
