"""All that is known of one adapter version, for who asks after it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from registry import adapters, aliases, certificates, evaluations, notes, retirement, tags
from registry.records import AdapterRecord, CertificateRecord, EvaluationRecord
from registry.retirement import Retirement


@dataclass(frozen=True, slots=True, kw_only=True)
class AboutAdapter:
    """What it was made from, what was found of it, and what hangs on it."""

    record: AdapterRecord
    certificates: list[CertificateRecord]
    evaluations: list[EvaluationRecord]
    aliases: list[str]
    tags: dict[str, str]
    note: str | None
    retired: Retirement | None

    def to_json(self) -> dict[str, Any]:
        """The record's fields, and the rest beside them."""
        return self.record.to_json() | {
            "certificates": [each.to_json() for each in self.certificates],
            "evaluations": [each.to_json() for each in self.evaluations],
            "aliases": self.aliases,
            "tags": self.tags,
            "note": self.note,
            "retired": None if self.retired is None else self.retired.to_json(),
        }


def adapter(session: Session, ref: str) -> AboutAdapter:
    """Everything of one version. Raises NotFound, RefInvalid …"""
    record = adapters.get(session, ref)
    return AboutAdapter(
        record=record,
        certificates=certificates.list_for(session, record.ref),
        evaluations=evaluations.list_for(session, record.ref),
        aliases=[alias.name for alias in aliases.list_all(session, adapter_id=record.node_id)],
        tags=tags.of(session, record.node_id),
        note=notes.of(session, record.node_id),
        retired=retirement.of(session, [record.node_id]).get(record.node_id),
    )
