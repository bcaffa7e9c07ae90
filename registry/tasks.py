"""Tasks: something to learn on one backbone, with class rows of its own."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from registry import backbones, datasets, events, names, nodes, refs, renaming
from registry.digests import digest_of, plain
from registry.errors import NameTaken, RecordInvalid, TaskExists
from registry.models import Adapter, Backbone, ClassBlock, Dataset, Job, JobTask, Node, Task
from registry.records import BackboneRecord, DatasetRecord, TaskRecord

_LIVE = {"queued": "scheduled", "running": "learning", "paused": "paused"}
FACTS = "task"
"""Where the column of the kind's settings keeps the task's own facts; no setting of a kind has this name."""


def register(
    session: Session,
    *,
    name: str,
    backbone: str,
    dataset: str,
    kind: str,
    config: dict[str, Any],
    facts: dict[str, Any] | None = None,
    predecessor: str | None = None,
) -> TaskRecord:
    """Record a task and give it class rows after everything already there: one row a class of its dataset.

    facts: what is particular about the task itself: its `condition`, its `image_size`. predecessor: the task
    on another backbone whose classes it learns anew. TaskExists where the name is taken or was another
    task's; NotFound where backbone, dataset or predecessor is not there.
    """
    name = names.checked("task", name)
    kind = names.checked("kind", kind)
    config = plain("The task's config", config | ({FACTS: facts} if facts else {}))
    learns_on = backbones.get(session, backbone)
    learns_from = datasets.get(session, dataset)
    follows = None if predecessor is None else get(session, predecessor)
    if follows is not None and follows.classes != learns_from.classes:
        what = f"{learns_from.ref} has other classes than {follows.name!r}, which it is to follow"
        raise RecordInvalid("The task", what)
    renaming.take_turns(session, alone=False)
    # Whoever adds rows to this backbone's class table waits here for whoever does so already.
    session.execute(
        select(Backbone.node_id).where(Backbone.node_id == learns_on.node_id).with_for_update(key_share=True)
    ).one()
    if session.scalar(select(Task.node_id).where(Task.name == name)) is not None:
        raise TaskExists(name)
    if renaming.called_now(session, "task", name) is not None:
        raise NameTaken("task", name)
    try:
        with session.begin_nested():
            node_id = _insert(session, name, learns_on, learns_from, kind, config, follows)
    except IntegrityError as error:
        # Another transaction took the name meanwhile, on another backbone.
        if session.scalar(select(Task.node_id).where(Task.name == name)) is None:
            raise
        raise TaskExists(name) from error
    record = by_id(session, node_id)
    events.append(
        session,
        "task.registered",
        node_id,
        {"name": name, "backbone": record.backbone, "dataset": record.dataset, "block": list(record.block)},
    )
    return record


def _insert(
    session: Session,
    name: str,
    backbone: BackboneRecord,
    dataset: DatasetRecord,
    kind: str,
    config: dict[str, Any],
    predecessor: TaskRecord | None,
) -> int:
    followed = None if predecessor is None else predecessor.digest
    digest = digest_of(identity(name, backbone.digest, dataset.digest, kind, config, followed))
    parents = [(backbone.node_id, "backbone"), (dataset.node_id, "dataset")]
    if predecessor is not None:
        parents.append((predecessor.node_id, "predecessor"))
    node = nodes.add(session, "task", digest, parents)
    lo = session.scalars(
        select(func.max(ClassBlock.hi)).where(ClassBlock.backbone_id == backbone.node_id)
    ).one()
    hi = lo + len(dataset.classes)
    if hi > backbones.MAX_ROWS:
        raise RecordInvalid(
            "The task", f"the class table of {backbone.ref} has no {len(dataset.classes)} rows left"
        )
    session.add(ClassBlock(owner_id=node.id, backbone_id=backbone.node_id, lo=lo, hi=hi))
    session.flush()
    session.add(
        Task(
            node_id=node.id,
            name=name,
            backbone_id=backbone.node_id,
            dataset_id=dataset.node_id,
            kind=kind,
            config=config,
            classes=list(dataset.classes),
            lo=lo,
            hi=hi,
            predecessor_id=None if predecessor is None else predecessor.node_id,
        )
    )
    session.flush()
    return node.id


def identity(
    name: str, backbone: str, dataset: str, kind: str, config: dict[str, Any], predecessor: str | None
) -> dict[str, Any]:
    """What a task's digest is made of: its first name, the digests of what it is made from, its settings."""
    made_of = {"name": name, "backbone": backbone, "dataset": dataset, "kind": kind, "config": config}
    return made_of if predecessor is None else made_of | {"predecessor": predecessor}


def get(session: Session, name: str) -> TaskRecord:
    """The task of this name (or digest); NotFound otherwise."""
    return by_id(session, refs.find(session, "task", name))


def by_id(session: Session, node_id: int) -> TaskRecord:
    """The task of a node."""
    return _records(session, [session.execute(_query().where(Task.node_id == node_id)).one()])[0]


def list_all(session: Session, *, backbone: str | None = None) -> list[TaskRecord]:
    """Every task (of a backbone version), in the order in which they were added."""
    query = _query().order_by(Task.node_id)
    if backbone is not None:
        query = query.where(Task.backbone_id == backbones.get(session, backbone).node_id)
    return _records(session, list(session.execute(query)))


def page(
    session: Session,
    *,
    before: int | None = None,
    limit: int = 50,
    containing: str = "",
    backbone_id: int | None = None,
) -> list[TaskRecord]:
    """The newest tasks first, from below a node: the last one's asks for the next page.

    containing: what their names hold, in whatever case.
    """
    query = _query().order_by(Task.node_id.desc()).limit(limit)
    if before is not None:
        query = query.where(Task.node_id < before)
    if containing:
        query = query.where(Task.name.icontains(containing, autoescape=True))
    if backbone_id is not None:
        query = query.where(Task.backbone_id == backbone_id)
    return _records(session, list(session.execute(query)))


_Followed = aliased(Task)
_Row = Row[Task, Node, str, int, Dataset, str]


def _query() -> Select[Task, Node, str, int, Dataset, str]:
    return (
        select(Task, Node, Backbone.name, Backbone.version, Dataset, _Followed.name)
        .join(Node, Node.id == Task.node_id)
        .join(Backbone, Backbone.node_id == Task.backbone_id)
        .join(Dataset, Dataset.node_id == learns_from())
        .outerjoin(_Followed, _Followed.node_id == Task.predecessor_id)
        # next_version moves within a transaction that may have read the task before.
        .execution_options(populate_existing=True)
    )


def learns_from() -> ColumnElement[int]:
    """The dataset version that a task is on: its live job's, else its latest adapter's, else its first."""
    task, job_task, adapter = Task.rows(), JobTask.rows().c, Adapter.rows().c
    live = select(job_task.dataset_id).where(job_task.task_id == task.c.node_id, job_task.live).limit(1)
    newest = select(adapter.dataset_id).where(adapter.task_id == task.c.node_id)
    newest = newest.order_by(adapter.version.desc()).limit(1)
    own = (each.correlate(task).scalar_subquery() for each in (live, newest))
    return func.coalesce(*own, task.c.dataset_id)


def _records(session: Session, rows: list[_Row]) -> list[TaskRecord]:
    states = _states(session, None if len(rows) > 50 else [row[0].node_id for row in rows])
    return [_record(row, states.get(row[0].node_id, "registered")) for row in rows]


def _states(session: Session, task_ids: list[int] | None) -> dict[int, str]:
    """What became of each task: a live job speaks first, then an adapter, then the last job."""
    jobs = (
        select(JobTask.task_id, Job.state)
        .join(Job, Job.id == JobTask.job_id)
        .order_by(Job.created_at, Job.id)
    )
    learnt = select(Adapter.task_id).distinct()
    if task_ids is not None:
        jobs = jobs.where(JobTask.task_id.in_(task_ids))
        learnt = learnt.where(Adapter.task_id.in_(task_ids))
    states: dict[int, str] = {}
    live: dict[int, str] = {}
    for task_id, state in session.execute(jobs):
        if state in _LIVE:
            live[task_id] = _LIVE[state]
        else:
            states[task_id] = "failed" if state == "dead" else "registered"
    return states | dict.fromkeys(session.scalars(learnt), "learnt") | live


def _record(row: _Row, state: str) -> TaskRecord:
    task, node, backbone, backbone_version, dataset, predecessor = row
    facts = task.config.get(FACTS, {})
    return TaskRecord(
        node_id=node.id,
        digest=node.digest,
        created_at=node.created_at,
        name=task.name,
        backbone=f"{backbone}@{backbone_version}",
        backbone_id=task.backbone_id,
        dataset=f"{dataset.name}@{dataset.version}",
        dataset_id=dataset.node_id,
        kind=task.kind,
        config={key: value for key, value in task.config.items() if key != FACTS},
        condition=facts.get("condition"),
        image_size=facts.get("image_size"),
        block=(task.lo, task.hi),
        classes=tuple(task.classes),
        state=state,
        latest_version=task.next_version - 1,
        predecessor=predecessor,
    )
