"""The invariants of the record, asked of the rows: those declared, then those that triggers hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import and_, exists, func, not_, or_, select
from sqlalchemy.orm import Session, aliased

from registry import declared, identities, traces
from registry.declared import Names
from registry.digests import digest_of
from registry.findings import RESTORE, Finding
from registry.models import (
    Adapter,
    Backbone,
    Certificate,
    ClassBlock,
    Composition,
    CompositionMember,
    Dataset,
    Edge,
    Evaluation,
    Export,
    Job,
    JobTask,
    Node,
    Run,
    Series,
    Task,
)

DETAILS: dict[str, Any] = {
    "adapter": Adapter,
    "backbone": Backbone,
    "certificate": Certificate,
    "composition": Composition,
    "dataset": Dataset,
    "evaluation": Evaluation,
    "export": Export,
    "run": Run,
    "task": Task,
}
# Which column of a row stands as an edge too, in which role.
EDGES: dict[str, tuple[tuple[str, str], ...]] = {
    "backbone": (("parent_id", "parent"),),
    "dataset": (("parent_id", "parent"),),
    "task": (("backbone_id", "backbone"), ("dataset_id", "dataset"), ("predecessor_id", "predecessor")),
    "run": (("task_id", "task"),),
    "adapter": (
        ("task_id", "task"),
        ("backbone_id", "backbone"),
        ("dataset_id", "dataset"),
        ("run_id", "run"),
        ("warm_start_id", "warm-start"),
    ),
    "certificate": (("adapter_id", "adapter"),),
    "evaluation": (("adapter_id", "adapter"), ("dataset_id", "reference")),
    "composition": (("backbone_id", "backbone"),),
    "export": (("composition_id", "composition"),),
}
# Roles that no column repeats.
ROLES = {"run": ("backbone", "dataset"), "composition": ("member",)}
LIVE = ("queued", "running", "paused")


def broken(session: Session) -> Iterator[Finding]:
    """Everything in the record that must never be, each named."""
    asked = (
        _details,
        _edges,
        _roles,
        _blocks,
        _versions,
        _members,
        _fences,
        _evaluations,
        _live,
        _certificates,
    )
    for ask in (declared.disobeyed, *asked, identities.changed, traces.untrue):
        yield from ask(session)


def _details(session: Session) -> Iterator[Finding]:
    """A node has one row that says the rest, in the table of its kind."""
    name = Names(session)
    for kind, table in DETAILS.items():
        query = select(Node.id).where(Node.kind == kind, Node.id.not_in(select(table.node_id)))
        for node_id in session.scalars(query):
            yield Finding(
                "details", f"{kind} {name(node_id)}", f"its {kind} row is gone", RESTORE, (node_id,)
            )
        wrong = select(Node.id, Node.kind).join(table, table.node_id == Node.id).where(Node.kind != kind)
        for node_id, other in session.execute(wrong):
            what = f"it is called a {other}, and its row is that of a {kind}"
            yield Finding("details", name(node_id), what, RESTORE, (node_id,))
    for node_id, kind in session.execute(select(Node.id, Node.kind).where(Node.kind.not_in(DETAILS))):
        yield Finding("details", f"node {node_id}", f"there is no kind {kind!r}", RESTORE, (node_id,))


def _edges(session: Session) -> Iterator[Finding]:
    """What a row says it was made from, its lineage says too; and no more."""
    name = Names(session)
    wanted: list[tuple[Any, Any, str]] = [
        (DETAILS[kind].node_id, getattr(DETAILS[kind], column), role)
        for kind, edges in EDGES.items()
        for column, role in edges
    ]
    wanted.append((CompositionMember.composition_id, CompositionMember.adapter_id, "member"))
    for child, parent, role in wanted:
        there = exists().where(Edge.child == child, Edge.parent == parent, Edge.role == role)
        for a, b in session.execute(select(child, parent).where(parent.is_not(None), not_(there))):
            what = f"its lineage lacks the edge from {name(b)} ({role})"
            yield Finding("lineage", name(a), what, RESTORE, (a, b))
        owner = select(child)
        said = exists().where(child == Edge.child, parent == Edge.parent)
        odd = select(Edge.child, Edge.parent).where(Edge.role == role, Edge.child.in_(owner), not_(said))
        for a, b in session.execute(odd):
            what = f"its lineage names {name(b)} ({role}), and its row does not"
            yield Finding("lineage", name(a), what, RESTORE, (a, b))


def _roles(session: Session) -> Iterator[Finding]:
    """A lineage has edges of the roles of its kind only, and a run's are those of its task."""
    name = Names(session)
    strange = [
        and_(Node.kind == kind, Edge.role.not_in([role for _, role in edges] + list(ROLES.get(kind, ()))))
        for kind, edges in EDGES.items()
    ]
    edges = select(Edge.child, Edge.parent, Edge.role)
    for a, b, role in session.execute(edges.join(Node, Node.id == Edge.child).where(or_(*strange))):
        what = f"its lineage names {name(b)} ({role}), which nothing of its kind is made from"
        yield Finding("lineage", name(a), what, RESTORE, (a, b))
    of_task = edges.join(Run, Run.node_id == Edge.child).join(Task, Task.node_id == Run.task_id)
    wrong = or_(
        and_(Edge.role == "backbone", Edge.parent != Task.backbone_id),
        and_(Edge.role == "dataset", Edge.parent.not_in(select(Dataset.node_id))),
    )
    for a, b, role in session.execute(of_task.where(wrong)):
        what = f"its lineage names {name(b)} ({role}), which is not its task's"
        yield Finding("lineage", name(a), what, RESTORE, (a, b))


def _blocks(session: Session) -> Iterator[Finding]:
    """Class rows lie end to end, from the backbone's own [0, N + 1) on, and no two blocks share one."""
    name = Names(session)
    other = aliased(ClassBlock)
    overlap = (
        select(ClassBlock.owner_id, other.owner_id, ClassBlock.lo, ClassBlock.hi, other.lo, other.hi)
        .join(other, other.backbone_id == ClassBlock.backbone_id)
        .where(ClassBlock.owner_id < other.owner_id, ClassBlock.lo < other.hi, other.lo < ClassBlock.hi)
    )
    for a, b, lo, hi, low, high in session.execute(overlap):
        what = f"its class rows [{lo}, {hi}) overlap [{low}, {high}) of {name(b)}"
        yield Finding("class blocks", name(a), what, RESTORE, (a, b))
    end = select(func.max(other.hi)).where(
        other.backbone_id == ClassBlock.backbone_id, other.lo < ClassBlock.lo
    )
    gap = select(ClassBlock.owner_id, ClassBlock.lo, end.scalar_subquery()).where(
        ClassBlock.lo > func.coalesce(end.scalar_subquery(), 0)
    )
    for a, lo, before in session.execute(gap):
        what = f"its class rows start at {lo}, and those before it end at {before or 0}"
        yield Finding("class blocks", name(a), what, RESTORE, (a,))
    own = (
        select(Backbone.node_id, Backbone.null_index, ClassBlock.lo, ClassBlock.hi)
        .outerjoin(ClassBlock, ClassBlock.owner_id == Backbone.node_id)
        .where(
            or_(
                ClassBlock.lo.is_(None),
                ClassBlock.lo != 0,
                ClassBlock.hi != Backbone.null_index + 1,
                ClassBlock.backbone_id != Backbone.node_id,
            )
        )
    )
    for a, null_index, lo, hi in session.execute(own):
        has = "it has none" if lo is None else f"it has [{lo}, {hi})"
        what = f"its own class rows should be [0, {null_index + 1}), and {has}"
        yield Finding("class blocks", name(a), what, RESTORE, (a,))
    for task in session.scalars(select(Task)):
        if len(task.classes) != task.hi - task.lo:
            what = f"it has {len(task.classes)} classes and {task.hi - task.lo} class rows"
            yield Finding("class blocks", name(task.node_id), what, RESTORE, (task.node_id,))


def _versions(session: Session) -> Iterator[Finding]:
    """Versions of a name are 1, 2, … without a gap, and its counter stands one above the last."""
    for kind in ("backbone", "composition", "dataset", "export"):
        table = DETAILS[kind]
        rows = select(table.name, table.version, table.node_id).order_by(table.name, table.version)
        given = select(Series.name, Series.next_version).where(Series.kind == kind)
        yield from _counted(kind, session.execute(rows), session.execute(given))
    rows = (
        select(Task.name, Adapter.version, Adapter.node_id)
        .join(Task, Task.node_id == Adapter.task_id)
        .order_by(Task.name, Adapter.version)
    )
    counters = select(Task.name, Task.next_version)
    yield from _counted("adapter", session.execute(rows), session.execute(counters))


def _counted(kind: str, rows: Iterable[Any], given: Iterable[Any]) -> Iterator[Finding]:
    counters: dict[str, int] = {row.name: row.next_version for row in given}
    versions: dict[str, list[tuple[int, int]]] = {name: [] for name in counters}
    for name, version, node_id in rows:
        versions.setdefault(name, []).append((version, node_id))
    for name, found in versions.items():
        where, nodes = f"{kind}:{name}", tuple(node_id for _, node_id in found)
        numbers = [version for version, _ in found]
        if missing := sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers)):
            what = f"version {missing[0]} is missing among {len(numbers)} versions"
            yield Finding("versions", where, what, RESTORE, nodes)
        following = max(numbers, default=0) + 1
        if name not in counters:
            yield Finding("versions", where, "nothing counts its versions", RESTORE, nodes)
        elif counters[name] < following:
            what = f"its counter would give version {counters[name]} out again"
            yield Finding("versions", where, what, RESTORE, nodes)
        elif counters[name] > following:
            what = f"version {following} was given out, and nothing of that version is there"
            yield Finding("versions", where, what, RESTORE, nodes)


def _members(session: Session) -> Iterator[Finding]:
    """The members of a composition are those at 0 … last_pos, all on its backbone."""
    name = Names(session)
    rows = (
        select(
            Composition.node_id,
            Composition.last_pos,
            func.count(CompositionMember.pos),
            func.min(CompositionMember.pos),
            func.max(CompositionMember.pos),
        )
        .outerjoin(CompositionMember, CompositionMember.composition_id == Composition.node_id)
        .group_by(Composition.node_id, Composition.last_pos)
    )
    for node_id, last, count, low, high in session.execute(rows):
        if (count, low, high) != (last + 1, 0, last):
            what = f"it was written with {last + 1} members, and {count} are there"
            yield Finding("members", name(node_id), what, RESTORE, (node_id,))


def _fences(session: Session) -> Iterator[Finding]:
    """An adapter carries the fence under which its job was held when it ended."""
    name = Names(session)
    rows = select(Adapter.node_id, Adapter.fence, Job.id, Job.fence, Job.state).join(
        Job, Job.id == Adapter.job_id
    )
    wrong = rows.where(
        or_(
            Adapter.fence < 1,
            Adapter.fence > Job.fence,
            and_(Job.state == "done", Adapter.fence != Job.fence),
        )
    )
    for node_id, fence, job, now, state in session.execute(wrong):
        what = f"it was published under fence {fence}, and its job {job} is {state} under fence {now}"
        yield Finding("fences", name(node_id), what, RESTORE, (node_id,))


def _evaluations(session: Session) -> Iterator[Finding]:
    """An evaluation carries the digest of its protocol, and a fence that its job once had."""
    name = Names(session)
    for node_id, protocol, digest in session.execute(
        select(Evaluation.node_id, Evaluation.protocol, Evaluation.protocol_digest)
    ):
        if digest_of(protocol) != digest:
            what = f"its protocol is not that of the digest {digest[:12]}, under which it is compared"
            yield Finding("evaluations", name(node_id), what, RESTORE, (node_id,))
    rows = select(Evaluation.node_id, Evaluation.fence, Job.id, Job.fence).join(
        Job, Job.id == Evaluation.job_id
    )
    for node_id, fence, job, now in session.execute(rows.where(Evaluation.fence > Job.fence)):
        what = f"it was recorded under fence {fence}, and its job {job} never had more than {now}"
        yield Finding("fences", name(node_id), what, RESTORE, (node_id,))


def _live(session: Session) -> Iterator[Finding]:
    """Whether a job holds its tasks follows its state."""
    name = Names(session)
    rows = select(JobTask.task_id, Job.id, Job.state, JobTask.live).join(Job, Job.id == JobTask.job_id)
    for task_id, job, state, live in session.execute(rows.where(JobTask.live != Job.state.in_(LIVE))):
        what = f"job {job} is {state}, and {'still' if live else 'no longer'} holds it"
        yield Finding("jobs", name(task_id), what, RESTORE, (task_id,))


def _certificates(session: Session) -> Iterator[Finding]:
    """What was published has the proof that nothing older changed."""
    name = Names(session)
    for node_id in session.scalars(
        select(Adapter.node_id)
        .where(Adapter.node_id.not_in(select(Certificate.adapter_id)))
        .order_by(Adapter.node_id)
    ):
        yield Finding(
            "certificates",
            name(node_id),
            "it has no certificate: nothing proves that adding it changed nothing older",
            "Train its task again, which publishes a version with a certificate: affinery task train TASK",
            (node_id,),
        )
