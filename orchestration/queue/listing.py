"""Jobs as they stand: one, a page, all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from orchestration.errors import JobNotFound
from orchestration.jobs import LIVE, AttemptRecord, JobRecord
from registry.models import Attempt, Job, JobDependency, JobTask, Task

T = TypeVar("T")
_CHUNK = 500


def get(session: Session, job_id: str) -> JobRecord:
    """Raises JobNotFound. A unique beginning of the id, or the job's number, is enough."""
    if not job_id:
        raise JobNotFound(job_id, 0)
    query = select(Job.id).where(Job.id.startswith(job_id, autoescape=True)).limit(2)
    found = list(session.scalars(query))
    if job_id.isdecimal() and len(job_id) < 19:
        numbered = session.scalar(select(Job.id).where(Job.number == int(job_id)))
        found = found if numbered is None else [numbered]
    if len(found) != 1:
        raise JobNotFound(job_id, len(found))
    return records(session, Job.id == found[0])[0]


def by_ids(session: Session, job_ids: Sequence[str]) -> list[JobRecord]:
    """These jobs, in this order."""
    found: dict[str, JobRecord] = {}
    for chunk in chunks(job_ids):
        found |= {job.id: job for job in records(session, Job.id.in_(chunk))}
    return [found[job_id] for job_id in job_ids]


def list_all(session: Session, states: Sequence[str] | None = None) -> list[JobRecord]:
    """The jobs in the order in which they were accepted."""
    return records(session, *([] if states is None else [Job.state.in_(states)]))


def unfinished(session: Session) -> list[JobRecord]:
    return list_all(session, LIVE)


def page(
    session: Session,
    *,
    before: int | None = None,
    limit: int = 50,
    states: Sequence[str] = (),
    kinds: Sequence[str] = (),
    task: str | None = None,
) -> list[JobRecord]:
    """The newest jobs first, from below a number: the last one's asks for the next page."""
    wanted: list[ColumnElement[bool]] = []
    if before is not None:
        wanted.append(Job.number < before)
    if states:
        wanted.append(Job.state.in_(states))
    if kinds:
        wanted.append(Job.kind.in_(kinds))
    if task is not None:
        named = select(JobTask.job_id).join(Task, Task.node_id == JobTask.task_id)
        wanted.append(exists(named.where(JobTask.job_id == Job.id, Task.name == task).correlate(Job)))
    return records(session, *wanted, newest=limit)


def attempts(session: Session, job_id: str) -> list[AttemptRecord]:
    """The tries of a job, first to last."""
    rows = session.scalars(
        select(Attempt)
        .where(Attempt.job_id == job_id)
        .order_by(Attempt.number)
        .execution_options(populate_existing=True)
    )
    return [
        AttemptRecord(
            row.number,
            row.generation,
            row.fence,
            row.owner,
            row.started_at,
            row.ended_at,
            row.outcome,
            row.error,
        )
        for row in rows
    ]


def records(session: Session, *wanted: ColumnElement[bool], newest: int | None = None) -> list[JobRecord]:
    """The jobs of which all this is true, by number; or so many of the newest, newest first."""
    query = select(Job).where(*wanted).execution_options(populate_existing=True)
    query = query.order_by(Job.number) if newest is None else query.order_by(Job.number.desc()).limit(newest)
    return from_rows(session, list(session.scalars(query)))


def from_rows(session: Session, rows: Sequence[Job]) -> list[JobRecord]:
    """Rows as records, with their tasks and needs."""
    tasks: defaultdict[str, list[str]] = defaultdict(list)
    needs: defaultdict[str, list[str]] = defaultdict(list)
    named = (
        select(JobTask.job_id, Task.name).join(Task, Task.node_id == JobTask.task_id).order_by(Task.node_id)
    )
    for chunk in chunks([row.id for row in rows]):
        for job_id, name in session.execute(named.where(JobTask.job_id.in_(chunk))):
            tasks[job_id].append(name)
    for chunk in chunks([row.id for row in rows]):
        edges = select(JobDependency.job_id, JobDependency.needs_job_id).join(
            Job, Job.id == JobDependency.needs_job_id
        )
        for job_id, need in session.execute(
            edges.where(JobDependency.job_id.in_(chunk)).order_by(Job.number)
        ):
            needs[job_id].append(need)
    return [record(row, tasks[row.id], needs[row.id]) for row in rows]


def record(row: Job, tasks: Sequence[str], needs: Sequence[str]) -> JobRecord:
    """A row as a record."""
    return JobRecord(
        id=row.id,
        number=row.number,
        kind=row.kind,
        state=row.state,
        tasks=tuple(tasks),
        payload=row.payload,
        needs=tuple(needs),
        strategy=row.strategy,
        workers=row.workers,
        priority=row.priority,
        submitted_by=row.submitted_by,
        cpus=row.cpus,
        gpus=row.gpus,
        memory_bytes=row.memory_bytes,
        backbone_id=row.backbone_id,
        schedule_id=row.schedule_id,
        created_at=row.created_at,
        run_at=row.run_at,
        fence=row.fence,
        generation=row.generation,
        attempts=row.attempts,
        failures=row.failures,
        max_attempts=row.max_attempts,
        timeout_seconds=row.timeout_seconds,
        waits=row.waits,
        owner=row.lease_owner,
        heartbeat_at=row.heartbeat_at,
        request=row.request,
        requested_by=row.requested_by,
        requested_at=row.requested_at,
        progress=row.progress,
        error=row.error,
    )


def chunks(values: Sequence[T], size: int = _CHUNK) -> Iterator[list[T]]:
    """So many of them at a time, as a statement takes them."""
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
