"""Adapter versions that are no longer to be used: an event, not an edit, and so is restoring them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from shlex import quote
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import adapters, events
from registry.errors import RecordInvalid
from registry.models import Event
from registry.names import checked_text
from registry.records import AdapterRecord
from registry.refs import RESTORED, RETIRED

_MOST = 2000  # characters of a reason


@dataclass(frozen=True, slots=True)
class Retirement:
    """Since when an adapter version is retired, and why."""

    since: datetime
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON."""
        return {"since": self.since.isoformat(), "reason": self.reason}


def retire(session: Session, ref: str, reason: str) -> AdapterRecord:
    """From now on no new composition takes this version. Retiring it again changes nothing."""
    record = adapters.get(session, ref)
    if not reason.strip():
        raise RecordInvalid("The retirement", "it has no reason; say why this version is not to be used")
    reason = checked_text("The retirement", reason, _MOST, lines=True)
    if not of(session, [record.node_id]):
        events.append(session, RETIRED, record.node_id, {"ref": record.ref, "reason": reason})
    return record


def restore(session: Session, ref: str) -> AdapterRecord:
    """The version may be used again. Restoring what is not retired changes nothing."""
    record = adapters.get(session, ref)
    if of(session, [record.node_id]):
        events.append(session, RESTORED, record.node_id, {"ref": record.ref})
    return record


def of(session: Session, node_ids: Iterable[int]) -> dict[int, Retirement]:
    """Which of these adapters are retired: their last word was that, not a restoration."""
    last = (
        select(func.max(Event.id))
        .where(Event.kind.in_((RETIRED, RESTORED)), Event.subject.in_(list(node_ids)))
        .group_by(Event.subject)
    )
    rows = session.scalars(select(Event).where(Event.id.in_(last), Event.kind == RETIRED))
    return {row.subject: Retirement(row.at, row.payload["reason"]) for row in rows if row.subject is not None}


def refuse(session: Session, members: Sequence[AdapterRecord]) -> None:
    """RecordInvalid where one of these, which a composition is to be made of, is retired."""
    retired = of(session, [member.node_id for member in members])
    for member in members:
        if member.node_id in retired:
            reason = retired[member.node_id].reason
            raise RecordInvalid(
                "The composition",
                f"{member.ref} is retired ({reason}); name another version, or restore it: "
                f"affinery adapter restore {quote(member.ref)}",
            )
