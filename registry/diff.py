"""What differs between two adapter versions, or two compositions: config, data, metrics, provenance.

The tensors themselves are compared in orchestration/tensor_differences.py: the registry reads no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from registry import adapters, compositions, datasets, evaluations, refs
from registry.errors import RefInvalid, article
from registry.lineage import made_with
from registry.metrics import numbers
from registry.records import AdapterRecord, CompositionRecord


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs. A side that has no such thing is absent: its name stands in `absent`."""

    path: str
    left: Any
    right: Any
    absent: str | None = None  # "left" or "right"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a side that is absent has no entry."""
        sides = {"left": self.left, "right": self.right}
        return {"path": self.path} | {side: value for side, value in sides.items() if side != self.absent}


@dataclass(frozen=True, slots=True)
class Difference:
    """Two things of one kind, and by section what differs between them."""

    kind: str
    left: AdapterRecord | CompositionRecord
    right: AdapterRecord | CompositionRecord
    sections: dict[str, tuple[Change, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        changes = {name: [each.to_json() for each in found] for name, found in self.sections.items()}
        return {"kind": self.kind, "left": self.left.ref, "right": self.right.ref, **changes}


def diff(session: Session, left: str, right: str) -> Difference:
    """Compare two adapter versions or two compositions; RefInvalid for anything else."""
    one, other = (refs.resolve(session, ref, prefer=("adapter", "composition")) for ref in (left, right))
    if one.kind != other.kind:
        raise RefInvalid(
            right,
            f"it speaks of {article(other.kind)} {other.kind}, "
            f"and {one.full_ref} is {article(one.kind)} {one.kind}.",
        )
    if one.kind == "adapter":
        a, b = adapters.by_id(session, one.node_id), adapters.by_id(session, other.node_id)
        return Difference("adapter", a, b, _compare(_adapter(session, a), _adapter(session, b)))
    if one.kind == "composition":
        x, y = compositions.by_id(session, one.node_id), compositions.by_id(session, other.node_id)
        return Difference("composition", x, y, _compare(_composition(session, x), _composition(session, y)))
    raise RefInvalid(
        left, f"it speaks of {article(one.kind)} {one.kind}; adapters and compositions can be compared."
    )


def _adapter(session: Session, record: AdapterRecord) -> dict[str, dict[str, Any]]:
    run = {} if record.run_id is None else made_with(session, [record.run_id])[record.run_id]
    return {
        "config": flat({"kind": record.kind, "parameters": record.parameters, **record.config}),
        "data": {"dataset": record.dataset, **_dataset(session, record.dataset_id)},
        "metrics": dict(numbers(record.metrics)),
        "evaluations": _evaluated(session, record),
        "provenance": flat(
            {
                "digest": record.digest,
                "backbone": record.backbone,
                "warm_start": record.warm_start,
                **record.provenance,
                "run": run,
            }
        ),
    }


def _evaluated(session: Session, record: AdapterRecord) -> dict[str, float]:
    """Its figures, the protocol in each name: those of different protocols stand apart, never compared."""
    return {
        f"{name}@{each.protocol_digest[:12]}": number
        for each in evaluations.latest_of(session, record.node_id)
        for name, number in numbers(each.results).items()
    }


def _dataset(session: Session, node_id: int) -> dict[str, Any]:
    found = datasets.by_id(session, node_id)
    return {
        "digest": found.digest,
        "images": found.image_count,
        **{f"images of {name}": n for name, n in zip(found.classes, found.class_counts, strict=True)},
    }


def _composition(session: Session, record: CompositionRecord) -> dict[str, dict[str, Any]]:
    members = [adapters.by_id(session, node_id) for node_id in record.member_ids]
    measured = {
        f"{member.task}.{name}": n for member in members for name, n in _evaluated(session, member).items()
    }
    scores = {f"{member.task}.{name}": n for member in members for name, n in numbers(member.metrics).items()}
    return {
        "config": flat({"mode": record.mode, "backbone": record.backbone, **record.recipe}),
        "members": {member.task: member.ref for member in members},
        "data": {member.task: member.dataset for member in members},
        "metrics": scores,
        "evaluations": measured,
        "provenance": {"digest": record.digest, **{member.task: member.digest for member in members}},
    }


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of nested mappings, by their path; a list is a leaf."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update({f"{key}.{path}": leaf for path, leaf in flat(value).items()})
        else:
            found[key] = value
    return found


def _compare(
    left: Mapping[str, Mapping[str, Any]], right: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Change, ...]]:
    return {section: tuple(_changes(left[section], right[section])) for section in left}


def _changes(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Change]:
    changes = []
    for path in dict.fromkeys([*left, *right]):
        absent = "left" if path not in left else "right" if path not in right else None
        if absent or left[path] != right[path]:
            changes.append(Change(path, left.get(path), right.get(path), absent))
    return changes
