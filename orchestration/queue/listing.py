"""Jobs as they stand: one, a page, all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, FromClause, exists, func, select
from sqlalchemy.orm import Session, aliased

from affinery.errors import ConfigInvalid, near
from orchestration.errors import JobNotFound
from orchestration.jobs import KINDS, LIVE, STATES, AttemptRecord, JobRecord
from orchestration.queue.json_sql import gathered
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
    """The newest jobs first, from below a number: the last one's asks for the next page.

    Raises ConfigInvalid where no job can be of a state or kind.
    """
    for what, given, known in (("state", states, STATES), ("kind", kinds, KINDS)):
        for word in given:
            if word not in known:
                hint = f"{near(word, known)} Known: {', '.join(known)}."
                raise ConfigInvalid(what, f"there is no {what} {word!r}.{hint}")
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


def counts(session: Session) -> dict[str, int]:
    """How many jobs there are in each state."""
    rows = session.execute(select(Job.state, func.count()).group_by(Job.state))
    found: dict[str, int] = {state: count for state, count in rows}  # noqa: C416 - rows are no pairs to mypy
    return found


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
            row.error_here,
        )
        for row in rows
    ]


def records(session: Session, *wanted: ColumnElement[bool], newest: int | None = None) -> list[JobRecord]:
    """The jobs of which all this is true, by number; or so many of the newest, newest first."""
    query = select(*columns(Job.__table__)).where(*wanted)
    query = query.order_by(Job.number) if newest is None else query.order_by(Job.number.desc()).limit(newest)
    return [record(row) for row in session.connection().execute(query)]


def columns(of: FromClause) -> list[ColumnElement[Any]]:
    """What a record is made of: a job's columns, the names of its tasks and the ids of its needs."""
    named = (
        select(Task.name)
        .join(JobTask, JobTask.task_id == Task.node_id)
        .where(JobTask.job_id == of.c.id)
        .order_by(Task.node_id)
    )
    need = aliased(Job)
    needed = (
        select(need.id)
        .join(JobDependency, JobDependency.needs_job_id == need.id)
        .where(JobDependency.job_id == of.c.id)
        .order_by(need.number)
    )
    return [
        *(of.c[name] for name in _FIELDS if name in of.c),
        of.c.lease_owner.label("owner"),
        gathered(named.correlate(of)).label("tasks"),
        gathered(needed.correlate(of)).label("needs"),
    ]


def record(row: Any) -> JobRecord:
    """A row of these columns as a record. Where the driver made the row, its instants may be in any zone."""
    values = {each: getattr(row, each) for each in _FIELDS}
    for each in _INSTANTS:
        if values[each] is not None:
            values[each] = values[each].astimezone(UTC)
    return JobRecord(**values | {"tasks": tuple(row.tasks), "needs": tuple(row.needs)})


_FIELDS = [each.name for each in fields(JobRecord)]
_INSTANTS = [each for each in _FIELDS if each.endswith("_at")]


def chunks(values: Sequence[T], size: int = _CHUNK) -> Iterator[list[T]]:
    """So many of them at a time, as a statement takes them."""
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
