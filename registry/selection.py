"""A part of the registry that can stand elsewhere: what was chosen, and all that it cannot be without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, FromClause, and_, exists, or_, select
from sqlalchemy.orm import Session, aliased

from registry import carried, lineage, renaming
from registry.invariants import DETAILS
from registry.models import (
    Adapter,
    Blob,
    Certificate,
    CompositionMember,
    Edge,
    Evaluation,
    Job,
    Node,
    Run,
    Task,
)

SCHEMA = 2
# Columns that name nodes: in an archive, by their place in its list.
NODES = frozenset(
    f"{each}_id"
    for each in (
        *(
            "adapter",
            "backbone",
            "composition",
            "dataset",
            "parent",
            "predecessor",
            "run",
            "task",
            "warm_start",
        ),
    )
)
# A job's place in a queue stays behind: what went on, and under which fence, is what its results rest on.
JOB_COLUMNS = (
    "id",
    "kind",
    "strategy",
    "state",
    "priority",
    "payload",
    "run_at",
    "created_at",
    "fence",
    "error",
)
_NAMED = ("backbone", "dataset", "composition", "export")
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Selection:
    """The record of an archive, and the blobs that it needs: digest → size."""

    record: dict[str, Any]
    blobs: dict[str, int]


def select_refs(session: Session, refs: Sequence[str]) -> Selection:
    """What these references mean and all that they need; the whole registry where there is none.

    Needed are: what a thing was made from, certificates, evaluations, versions before it (numbers tell the
    same everywhere), and the tasks whose class rows lie before its own.
    Raises NotFound and AmbiguousRef.
    """
    if refs:
        prefer = ("adapter", "composition", "backbone", "dataset", "task")
        chosen = {lineage.resolve(session, ref, prefer=prefer).node_id for ref in refs}
        ids = _closed(session, chosen)
    else:
        ids = list(session.scalars(select(Node.id).order_by(Node.id)))
    return _written(session, ids)


def _closed(session: Session, chosen: set[int]) -> list[int]:
    found: set[int] = set()
    ring = chosen
    while ring:
        found |= ring
        ring = {each for chunk in _chunks(sorted(ring)) for each in _needed(session, chunk)} - found
    return sorted(found)


def _needed(session: Session, ids: list[int]) -> Iterable[int]:
    yield from session.scalars(select(Edge.parent).where(Edge.child.in_(ids)))
    yield from session.scalars(select(Certificate.node_id).where(Certificate.adapter_id.in_(ids)))
    yield from session.scalars(select(Evaluation.node_id).where(Evaluation.adapter_id.in_(ids)))
    for kind in _NAMED:
        table = DETAILS[kind]
        this, earlier = aliased(table), aliased(table)
        pairs = and_(earlier.name == this.name, earlier.version < this.version)
        yield from session.scalars(_before(earlier.node_id, this, pairs, this.node_id.in_(ids)))
    this, earlier = aliased(Adapter), aliased(Adapter)
    pairs = and_(earlier.task_id == this.task_id, earlier.version < this.version)
    yield from session.scalars(_before(earlier.node_id, this, pairs, this.node_id.in_(ids)))
    task, older = aliased(Task), aliased(Task)
    pairs = and_(older.backbone_id == task.backbone_id, older.lo < task.lo)
    yield from session.scalars(_before(older.node_id, task, pairs, task.node_id.in_(ids)))


def _before(column: Any, this: Any, pairs: ColumnElement[bool], among: ColumnElement[bool]) -> Any:
    return select(column).join(this, pairs).where(among).distinct()


def _written(session: Session, ids: list[int]) -> Selection:
    place = {node_id: number for number, node_id in enumerate(ids)}
    nodes: dict[int, dict[str, Any]] = {}
    for chunk in _chunks(ids):
        for node in session.scalars(select(Node).where(Node.id.in_(chunk))):
            nodes[node.id] = {
                "kind": node.kind,
                "digest": node.digest,
                "created_at": node.created_at.isoformat(),
                "edges": [],
            }
        for edge in session.scalars(
            select(Edge).where(Edge.child.in_(chunk)).order_by(Edge.child, Edge.pos, Edge.parent, Edge.role)
        ):
            nodes[edge.child]["edges"].append([place[edge.parent], edge.role, edge.pos])
        for table in DETAILS.values():
            for row in session.scalars(select(table).where(table.node_id.in_(chunk))):
                nodes[row.node_id]["row"] = _row(row, place)
        for member in session.scalars(
            select(CompositionMember)
            .where(CompositionMember.composition_id.in_(chunk))
            .order_by(CompositionMember.composition_id, CompositionMember.pos)
        ):
            nodes[member.composition_id].setdefault("members", []).append(place[member.adapter_id])
    listed = [nodes[node_id] for node_id in ids]
    digests = {
        entry["row"][column]
        for entry in listed
        for column in ("blob_digest", "golden_blob")
        if entry["row"].get(column) is not None
    }
    sizes: dict[str, int] = {}
    for chunk in _chunks(sorted(digests)):
        known = select(Blob.digest, Blob.size_bytes).where(Blob.digest.in_(chunk))
        sizes |= {row.digest: row.size_bytes for row in session.execute(known)}
    named = {(entry["kind"], entry["row"]["name"]) for entry in listed if entry["kind"] in renaming.KINDS}
    record = {"schema": SCHEMA, "jobs": _jobs(session, ids), "nodes": listed}
    return Selection(record | carried.gathered(session, ids, named), sizes)


def columns(table: FromClause) -> list[str]:
    """The columns of a kind's row that an archive holds."""
    return [column.name for column in table.columns if column.name not in ("node_id", "next_version")]


def _row(row: Any, place: dict[int, int]) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in columns(row.__table__)}
    return {
        name: place[value] if name in NODES and value is not None else _plain(value)
        for name, value in values.items()
    }


def _jobs(session: Session, ids: list[int]) -> list[dict[str, Any]]:
    found: dict[str, Job] = {}
    for chunk in _chunks(ids):
        used = or_(
            exists().where(Run.job_id == Job.id, Run.node_id.in_(chunk)),
            exists().where(Adapter.job_id == Job.id, Adapter.node_id.in_(chunk)),
            exists().where(Evaluation.job_id == Job.id, Evaluation.node_id.in_(chunk)),
        )
        found |= {job.id: job for job in session.scalars(select(Job).where(used))}
    return [{name: _plain(getattr(job, name)) for name in JOB_COLUMNS} for _, job in sorted(found.items())]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _chunks(values: list[Any]) -> Iterable[list[Any]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
