"""An archive's record comes into a registry. What is there already is recognised; conflicts are named before
anything is written; what is written has to hold every invariant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.orm import Session

from registry import blobs, carried, events, invariants, names, nodes, seals
from registry.archive import Archive
from registry.columns import Json, UtcDateTime
from registry.digests import checked_digest, plain
from registry.errors import ArchiveConflict, ArchiveInvalid
from registry.invariants import DETAILS, LIVE
from registry.models import (
    Adapter,
    ClassBlock,
    CompositionMember,
    Edge,
    Evaluation,
    Job,
    JobTask,
    Node,
    Series,
    Task,
)
from registry.selection import JOB_COLUMNS, NODES, SCHEMA, columns

_NAMED = ("backbone", "dataset", "composition", "export")
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A node of an archive. Columns of row that name nodes hold their places in the archive's list."""

    place: int
    kind: str
    digest: str
    created_at: datetime
    edges: list[tuple[int, str, int]]
    row: dict[str, Any]
    members: list[int]


@dataclass(frozen=True, slots=True)
class Arrival:
    """What an archive holds, checked value by value, though not yet against any registry."""

    entries: list[Entry]
    jobs: dict[str, dict[str, Any]]
    carried: dict[str, list[tuple[Any, ...]]]

    def called(self, entry: Entry) -> str:
        """The reference of an entry."""
        row = entry.row
        if entry.kind == "adapter":
            return f"adapter:{self.entries[row['task_id']].row['name']}@{row['version']}"
        if "name" in row:
            return f"{entry.kind}:{row['name']}" + (f"@{row['version']}" if "version" in row else "")
        return f"{entry.kind}:{entry.digest[:12]}"


@dataclass(slots=True)
class Plan:
    """Which entries are there already (place → node), and which are new."""

    there: dict[int, int] = field(default_factory=dict)
    new: list[Entry] = field(default_factory=list)


# --- reading the record ----------------------------------------------------------------------------


def read(archive: Archive) -> Arrival:
    """The record's entries. Raises ArchiveInvalid where a value is not what its column takes."""
    try:
        record = archive.record
        if record.keys() != {"schema", "jobs", "nodes"} | carried.KEYS or record["schema"] != SCHEMA:
            raise ValueError(f"its record is not of the schema {SCHEMA}")
        entries = [_entry(place, raw) for place, raw in enumerate(record["nodes"])]
        for entry in entries:
            _check_places(entry, entries)
        jobs = {raw["id"]: _job(raw) for raw in record["jobs"]}
        if jobs.keys() != {each for entry in entries if (each := entry.row.get("job_id")) is not None}:
            raise ValueError("its jobs are not exactly those that its record needs")
        _check_blobs(archive, entries)
        hung = carried.checked(record, [entry.kind for entry in entries])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ArchiveInvalid(str(archive.path), f"its record cannot be read: {error}") from error
    return Arrival(entries, jobs, hung)


def _entry(place: int, raw: dict[str, Any]) -> Entry:
    kind = raw["kind"]
    if kind not in DETAILS or not raw.keys() <= {"kind", "digest", "created_at", "edges", "row", "members"}:
        raise ValueError(f"entry {place} is no node")
    table = DETAILS[kind].__table__
    wanted = columns(table)
    if raw["row"].keys() != set(wanted):
        raise ValueError(f"entry {place} has not the columns of a {kind}")
    row = {name: _value(table.c[name], raw["row"][name]) for name in wanted}
    if "name" in row and names.checked(kind, row["name"]) != row["name"]:
        raise ValueError(f"entry {place} has a name that is not in its normal form")
    for each in row.get("classes", []):
        names.checked_class(each)
    edges = [(_whole(parent), str(role), _whole(pos)) for parent, role, pos in raw["edges"]]
    members = [_whole(member) for member in raw.get("members", [])]
    instant = datetime.fromisoformat(raw["created_at"]).astimezone(UTC)
    return Entry(place, kind, checked_digest("A node", raw["digest"]), instant, edges, row, members)


def _value(column: ColumnElement[Any], value: Any) -> Any:
    """A value of the record as its column takes it."""
    if value is None:
        if not column.nullable:
            raise ValueError(f"{column.name} is missing")
        return None
    if isinstance(column.type, UtcDateTime):
        return datetime.fromisoformat(value).astimezone(UTC)
    if isinstance(column.type, Json):
        return plain(column.name, value)
    if column.type.python_type is int:
        return _whole(value)
    if not isinstance(value, str):
        raise ValueError(f"{column.name} is not text")
    return plain(column.name, value)


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) > _MOST:
        raise ValueError(f"{value!r:.40} is not a whole number that fits")
    return value


def _job(raw: dict[str, Any]) -> dict[str, Any]:
    if raw.keys() != set(JOB_COLUMNS):
        raise ValueError("a job has not the columns of a job")
    job = {name: _value(Job.__table__.c[name], raw[name]) for name in JOB_COLUMNS}
    if job["state"] in LIVE:
        job["state"] = "done"  # its result moves, its place in the queue does not
    return job


def _check_places(entry: Entry, entries: list[Entry]) -> None:
    """Everything that an entry names stands before it."""
    named = [value for name, value in entry.row.items() if name in NODES and value is not None]
    for other in (*named, *(parent for parent, _, _ in entry.edges), *entry.members):
        if not 0 <= other < entry.place:
            raise ValueError(f"entry {entry.place} names {other}, which does not stand before it")
    for name, value in entry.row.items():
        if name in NODES and value is not None:
            other = {"warm_start_id": "adapter", "parent_id": entry.kind, "predecessor_id": "task"}
            wanted = other.get(name, name.removesuffix("_id"))
            if entries[value].kind != wanted:
                raise ValueError(f"the {name} of entry {entry.place} is no {wanted}")
    if any(entries[member].kind != "adapter" for member in entry.members):
        raise ValueError(f"a member of entry {entry.place} is no adapter")


def _check_blobs(archive: Archive, entries: list[Entry]) -> None:
    needed: set[str] = set()
    for entry in entries:
        if (digest := entry.row.get("blob_digest")) is not None:
            needed.add(digest)
            if archive.blobs.get(digest) != entry.row["size_bytes"]:
                raise ValueError(f"blob {digest[:12]} is not there in the size of its row")
        if (golden := entry.row.get("golden_blob")) is not None:
            needed.add(golden)
    if needed != archive.blobs.keys():
        raise ValueError("its blobs are not exactly those that its record needs")


# --- against a registry ----------------------------------------------------------------------------


def plan(session: Session, arrival: Arrival) -> Plan:
    """What of it is new here. Raises ArchiveConflict, which names everything that stands against it."""
    made, conflicts = Plan(), []
    _call_as_here(session, arrival)
    counters: dict[tuple[str, str], int] = {}
    rows: dict[int, int] = {}  # place of a backbone → where its next class row would be
    for entry in arrival.entries:
        found, against = _standing(session, entry, made)
        if found is not None:
            made.there[entry.place] = found
        elif against is None:
            against = _number_taken(session, arrival, entry, made, counters) or _rows_taken(
                session, arrival, entry, made, rows
            )
            made.new.append(entry)
        if against is not None:
            conflicts.append(f"{arrival.called(entry)}: {against}")
    for job in arrival.jobs.values():
        there = session.get(Job, job["id"])
        if there is not None and (there.fence, there.payload) != (job["fence"], job["payload"]):
            conflicts.append(f"job {job['id']}: there is another one of this id")
    if conflicts:
        raise ArchiveConflict(conflicts)
    return made


def _call_as_here(session: Session, arrival: Arrival) -> None:
    """Its names become those that the same things have here; what is new has its first name, and its others
    later.

    A name is known by the first that its bearer had.
    """
    first = {(kind, name): origin for kind, origin, _, name, _ in arrival.carried["renamings"]}
    for entry in arrival.entries:
        if entry.kind in (*_NAMED, "task"):
            kind = "composition" if entry.kind == "export" else entry.kind
            origin = first.get((kind, entry.row["name"]), entry.row["name"])
            entry.row["name"] = carried.name_here(session, kind, origin)


def _standing(session: Session, entry: Entry, made: Plan) -> tuple[int | None, str | None]:
    """The node that is this entry, or why there can be none."""
    table, row = DETAILS[entry.kind], entry.row
    query = select(Node.id, Node.digest).join(table, table.node_id == Node.id)
    if entry.kind in ("run", "certificate", "evaluation"):
        owner = "task_id" if entry.kind == "run" else "adapter_id"
        query = query.where(Node.digest == entry.digest)
        query = query.where(getattr(table, owner) == made.there.get(row[owner], -1))
    elif entry.kind == "adapter":
        query = query.where(
            Adapter.task_id == made.there.get(row["task_id"], -1), Adapter.version == row["version"]
        )
    elif entry.kind == "task":
        query = query.where(Task.name == row["name"])
    else:
        query = query.where(table.name == row["name"], table.version == row["version"])
    found = session.execute(query.order_by(Node.id).limit(1)).first()
    if found is None:
        return None, None
    node_id, digest = found
    if digest != entry.digest:
        return None, f"here that name has the digest {digest[:12]}, and in the archive {entry.digest[:12]}"
    if entry.kind == "task":
        there = session.get_one(Task, node_id)
        if (there.lo, there.hi) != (row["lo"], row["hi"]):
            owned, said = f"[{there.lo}, {there.hi})", f"[{row['lo']}, {row['hi']})"
            return None, f"here it owns the class rows {owned}, and in the archive {said}"
    return node_id, None


def _number_taken(
    session: Session, arrival: Arrival, entry: Entry, made: Plan, counters: dict[tuple[str, str], int]
) -> str | None:
    """A version can only be the next one of its name."""
    row = entry.row
    if entry.kind in _NAMED:
        key = (entry.kind, row["name"])
        query = select(Series.next_version).where(Series.kind == entry.kind, Series.name == row["name"])
    elif entry.kind == "adapter":
        key = (entry.kind, arrival.entries[row["task_id"]].row["name"])
        query = select(Task.next_version).where(Task.node_id == made.there.get(row["task_id"], -1))
    else:
        return None
    if key not in counters:
        counters[key] = session.scalar(query) or 1
    if row["version"] != counters[key]:
        return f"the next version of that name here is {counters[key]}"
    counters[key] += 1
    return None


def _rows_taken(
    session: Session, arrival: Arrival, entry: Entry, made: Plan, rows: dict[int, int]
) -> str | None:
    """A task's class rows can only be the next ones of its backbone."""
    if entry.kind == "backbone":
        rows[entry.place] = entry.row["null_index"] + 1
    if entry.kind != "task":
        return None
    place, lo, hi = entry.row["backbone_id"], entry.row["lo"], entry.row["hi"]
    if place in made.there and place not in rows:
        end = select(func.max(ClassBlock.hi)).where(ClassBlock.backbone_id == made.there[place])
        rows[place] = session.scalar(end) or 0
    following = rows.get(place, lo)
    if lo != following:
        owner = session.scalar(
            select(Task.name).where(Task.backbone_id == made.there.get(place, -1), Task.lo < hi, Task.hi > lo)
        )
        taken = f"belong to task {owner!r}" if owner else f"are not the next, which start at {following}"
        return f"its class rows [{lo}, {hi}) {taken} on {arrival.called(arrival.entries[place])}"
    rows[place] = hi
    return None


# --- writing ---------------------------------------------------------------------------------------


def write(session: Session, archive: Archive, arrival: Arrival, made: Plan) -> list[int]:
    """Writes what is new, in the archive's order. → its nodes

    Raises ArchiveInvalid where an invariant would not hold; the transaction must then be rolled back.
    """
    for job in arrival.jobs.values():
        if session.get(Job, job["id"]) is None:
            session.add(Job(**job))
    session.flush()
    here = dict(made.there)
    for entry in made.new:
        node_id, row = _write(session, archive, entry, here)
        here[entry.place] = node_id
        told = {"ref": arrival.called(entry), "archive": archive.digest}
        sealed = seals.seal(entry.kind, row | {"node_id": node_id})
        events.append(session, f"{entry.kind}.imported", node_id, told | sealed)
    hang(session, arrival, here, write=True)
    written = [here[entry.place] for entry in made.new]
    known = set(written)
    for finding in invariants.broken(session):
        # An adapter without a certificate is whole; that it has none is for `verify` to say.
        if finding.check != "certificates" and not known.isdisjoint(finding.nodes):
            reason = f"{finding.where}: {finding.what}; nothing was written"
            raise ArchiveInvalid(str(archive.path), reason)
    return written


def hang(session: Session, arrival: Arrival, here: Mapping[int, int], *, write: bool) -> carried.Carried:
    """Hangs on what is here what was carried along; without write, says what would be."""
    called = {entry.place: arrival.called(entry) for entry in arrival.entries}
    return carried.hang(session, arrival.carried, here, called, write=write)


def _write(
    session: Session, archive: Archive, entry: Entry, here: Mapping[int, int]
) -> tuple[int, dict[str, Any]]:
    """→ the node, and the row that says the rest of it"""
    named = {name for name, value in entry.row.items() if name in NODES and value is not None}
    row = {name: here[value] if name in named else value for name, value in entry.row.items()}
    for digest in {row.get("blob_digest"), row.get("golden_blob")} - {None}:
        blobs.commit(session, str(digest), archive.blobs[str(digest)])
    _count(session, entry, row)
    node = Node(kind=entry.kind, digest=entry.digest, created_at=entry.created_at)
    session.add(node)
    session.flush()
    edges = [
        {"child": node.id, "parent": here[parent], "role": role, "pos": pos}
        for parent, role, pos in entry.edges
    ]
    if edges:
        session.execute(insert(Edge), edges)
    if entry.kind == "task":
        _own(session, node.id, row["backbone_id"], row["lo"], row["hi"])
    if entry.kind in ("adapter", "evaluation") and row["job_id"] is not None:
        _publish(session, DETAILS[entry.kind](node_id=node.id, **row))
    else:
        session.add(DETAILS[entry.kind](node_id=node.id, **row))
    session.flush()
    if entry.kind == "backbone":
        _own(session, node.id, node.id, 0, row["null_index"] + 1)
    if entry.members:
        members = [
            {
                "composition_id": node.id,
                "pos": pos,
                "adapter_id": here[member],
                "task_id": session.get_one(Adapter, here[member]).task_id,
                "backbone_id": row["backbone_id"],
            }
            for pos, member in enumerate(entry.members)
        ]
        session.execute(insert(CompositionMember), members)
    return node.id, row


def _count(session: Session, entry: Entry, row: dict[str, Any]) -> None:
    if entry.kind in _NAMED:
        nodes.lock_series(session, entry.kind, row["name"])
        nodes.next_version(session, entry.kind, row["name"])
    elif entry.kind == "adapter":
        session.execute(
            update(Task)
            .where(Task.node_id == row["task_id"])
            .values(next_version=Task.next_version + 1)
            .execution_options(synchronize_session=False)
        )


def _own(session: Session, owner: int, backbone: int, lo: int, hi: int) -> None:
    session.add(ClassBlock(owner_id=owner, backbone_id=backbone, lo=lo, hi=hi))
    session.flush()


def _publish(session: Session, result: Adapter | Evaluation) -> None:
    """Under its job's fence, which the database asks for: the job runs for the length of a statement."""
    job = session.get_one(Job, result.job_id)
    if isinstance(result, Adapter) and session.get(JobTask, (job.id, result.task_id)) is None:
        trained = JobTask(job_id=job.id, task_id=result.task_id, live=False, dataset_id=result.dataset_id)
        session.add(trained)
        session.flush()
    ended = job.state
    job.state = "running"
    session.flush()
    session.add(result)
    session.flush()
    job.state = ended
    session.flush()
