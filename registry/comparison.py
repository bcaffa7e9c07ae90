"""Figures of two adapters side by side, under one protocol; figures of different protocols are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from registry import adapters, datasets, evaluations
from registry.diff import flat
from registry.errors import NotMeasured, ProtocolsDiffer
from registry.metrics import numbers
from registry.records import EvaluationRecord


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations under one protocol. figures: what both have, by name, (left, right)."""

    left: EvaluationRecord
    right: EvaluationRecord
    figures: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "left": self.left.adapter,
            "right": self.right.adapter,
            "protocol_digest": self.left.protocol_digest,
            "protocol": self.left.protocol,
            "figures": {name: {"left": a, "right": b} for name, (a, b) in self.figures.items()},
        }


def compare(session: Session, left: str, right: str, protocol: str | None = None) -> Comparison:
    """The last evaluations of two adapters under a protocol (the beginning of its digest), else the newest
    that they share. Raises NotMeasured, or ProtocolsDiffer, which names what differs.
    """
    wanted = None if protocol is None else evaluations.find_protocol(session, protocol)
    one, other = (_measured(session, ref, wanted) for ref in (left, right))
    shared = [each for each in one if each in other]
    if not shared:
        a, b = (list(each.values())[-1] for each in (one, other))
        found = differences(a.protocol, b.protocol)
        raise ProtocolsDiffer(a.adapter, b.adapter, found, _reference_of_both(session, a, b))
    a, b = one[shared[-1]], other[shared[-1]]
    theirs = numbers(b.results)
    figures = {name: (value, theirs[name]) for name, value in numbers(a.results).items() if name in theirs}
    return Comparison(a, b, figures)


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between two protocols, in words."""
    one, other = flat(left), flat(right)
    return tuple(
        f"{path} {one.get(path, 'absent')!s} and {other.get(path, 'absent')!s}"
        for path in dict.fromkeys([*one, *other])
        if one.get(path) != other.get(path)
    )


def _reference_of_both(session: Session, a: EvaluationRecord, b: EvaluationRecord) -> str | None:
    """The newer one of their two datasets, "" where their classes are others; None where it is the same."""
    if a.reference_id == b.reference_id:
        return None
    older, newer = (datasets.by_id(session, each) for each in sorted((a.reference_id, b.reference_id)))
    return newer.ref if older.classes == newer.classes else ""


def _measured(session: Session, ref: str, protocol: str | None) -> dict[str, EvaluationRecord]:
    """By protocol the evaluations of an adapter that count, the newest last."""
    record = adapters.get(session, ref)
    found = {
        each.protocol_digest: each
        for each in evaluations.latest_of(session, record.node_id)
        if protocol in (None, each.protocol_digest)
    }
    if not found:
        raise NotMeasured(record.ref, protocol)
    return found
