"""The job queue, in the registry's database: what is accepted is done once, whatever dies.

A worker claims a job for the length of a lease and renews it by heartbeats. If the worker dies, the lease
runs out and another claims the job with a higher fence; a write that carries an old fence is refused, so a
worker that was only asleep cannot spoil what its successor did. Every function takes the caller's session
and never commits.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from orchestration.errors import (
    JobNotFound,
    LeaseLost,
    NeedNotMet,
    OrchestrationError,
    TaskIsBusy,
    TasksDoNotMatch,
    WorkersDied,
)
from orchestration.jobs import DEAD, LIVE, Claim, JobRecord
from registry import events, tasks
from registry.columns import utc_now
from registry.models import Attempt, Job, JobDependency, JobTask, Task
from registry.records import TaskRecord

LEASE_SECONDS = 60
MAX_ATTEMPTS = 5
RETRY_SECONDS = 10


def enqueue(
    session: Session,
    names: Sequence[str],
    recipe: Mapping[str, Any],
    *,
    after: Sequence[str] = (),
    priority: int = 0,
    key: str | None = None,
) -> JobRecord:
    """Schedules tasks to train: several of them together, on the one frozen backbone.

    key: an idempotency key; a second call with it returns the first's job. after: jobs to be done before.
    Raises TaskIsBusy, TasksDoNotMatch, JobNotFound, NeedNotMet and the registry's NotFound.
    """
    if key is not None and (known := by_key(session, key)) is not None:
        return known
    found = [tasks.get(session, name) for name in names]
    _check_together(found)
    for task in found:
        if task.state in ("scheduled", "learning"):
            raise TaskIsBusy(task.name, task.state)
    needs = [get(session, needed) for needed in after]
    for needed in needs:
        if needed.state in DEAD:
            raise NeedNotMet(needed.id, needed.tasks, needed.state, needed.error)
    job_id = str(uuid.uuid4())
    strategy = "co-trained" if len(found) > 1 else "sequential"
    session.add(
        Job(
            id=job_id,
            kind="train",
            strategy=strategy,
            state="queued",
            priority=priority,
            recipe=dict(recipe),
            idempotency_key=key,
        )
    )
    session.flush()
    session.add_all(JobTask(job_id=job_id, task_id=task.node_id) for task in found)
    session.add_all(JobDependency(job_id=job_id, needs_job_id=needed) for needed in {job.id for job in needs})
    session.flush()
    events.append(session, "job.queued", None, {"job": job_id, "tasks": [task.name for task in found]})
    return get(session, job_id)


def by_key(session: Session, key: str) -> JobRecord | None:
    """The job that was scheduled with an idempotency key."""
    known = session.scalars(select(Job.id).where(Job.idempotency_key == key)).first()
    return None if known is None else get(session, known)


def _check_together(found: Sequence[TaskRecord]) -> None:
    if not found:
        raise TasksDoNotMatch("no task", "was named")
    for other in found[1:]:
        if other.name in {task.name for task in found if task is not other}:
            raise TasksDoNotMatch(other.name, "is named twice")
        if other.image_size != found[0].image_size:
            raise TasksDoNotMatch(other.name, f"draws images of another size than {found[0].name!r}")
        if other.backbone_id != found[0].backbone_id:
            raise TasksDoNotMatch(
                other.name, f"is on {other.backbone}, but {found[0].name!r} is on {found[0].backbone}"
            )


def claim(session: Session, owner: str, lease_seconds: float = LEASE_SECONDS) -> Claim | None:
    """Takes the next job that may run: queued, due, its needs done; or running with a lease that ran out."""
    now = utc_now()
    query = (
        select(Job.id, Job.fence)
        .where(_claimable(now))
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = session.execute(query).first()
    if row is None:
        return None
    job_id, fence = row
    changed = _changed(
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.fence == fence, _claimable(now))
            .values(
                state="running",
                fence=fence + 1,
                lease_owner=owner,
                heartbeat_at=now,
                lease_expires_at=now + timedelta(seconds=lease_seconds),
                error=None,
            )
            .execution_options(synchronize_session=False)
        )
    )
    if not changed:
        return None
    _end_attempts(session, job_id, "lost", "its worker was not heard of any more")
    ended = _outcomes(session, job_id)
    number = len(ended) + 1
    session.add(Attempt(job_id=job_id, number=number, fence=fence + 1, started_at=now))
    session.flush()
    events.append(session, "job.claimed", None, {"job": job_id, "owner": owner, "fence": fence + 1})
    failures = sum(outcome in ("failed", "lost") for outcome in ended)
    return Claim(get(session, job_id), owner, fence + 1, number, failures)


def _claimable(now: datetime) -> ColumnElement[bool]:
    needed = aliased(Job)
    waits = exists(
        select(JobDependency.job_id)
        .join(needed, needed.id == JobDependency.needs_job_id)
        .where(JobDependency.job_id == Job.id, needed.state != "done")
    )
    due = and_(Job.state == "queued", Job.run_at <= now, ~waits)
    return or_(due, and_(Job.state == "running", Job.lease_expires_at <= now))


def give_up(session: Session) -> list[tuple[JobRecord, OrchestrationError]]:
    """Fails jobs that can never be done, so that nobody waits for them. → those jobs, and why

    These are jobs that wait for one that failed or was cancelled, and jobs that MAX_ATTEMPTS workers left.
    """
    given_up: list[tuple[JobRecord, OrchestrationError]] = []
    expired = (Job.state == "running") & (Job.lease_expires_at <= utc_now())
    for job_id in list(session.scalars(select(Job.id).where(expired))):
        ended = _outcomes(session, job_id)
        lost = sum(outcome in ("lost", None) for outcome in ended)
        if lost >= MAX_ATTEMPTS:
            given_up.append(_abandon(session, job_id, WorkersDied(lost)))
    needed = aliased(Job)
    hopeless = (
        select(JobDependency.job_id, JobDependency.needs_job_id)
        .join(needed, needed.id == JobDependency.needs_job_id)
        .join(Job, Job.id == JobDependency.job_id)
        .where(Job.state == "queued", needed.state.in_(DEAD))
        .order_by(Job.created_at, needed.created_at)
    )
    # Whoever waits for one that is given up has no hope either: again, until none is left.
    while (row := session.execute(hopeless.limit(1)).first()) is not None:
        cause = get(session, row[1])
        given_up.append(
            _abandon(session, row[0], NeedNotMet(cause.id, cause.tasks, cause.state, cause.error))
        )
    return given_up


def _abandon(
    session: Session, job_id: str, error: OrchestrationError
) -> tuple[JobRecord, OrchestrationError]:
    session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(
            state="failed", error=str(error), lease_owner=None, lease_expires_at=None, fence=Job.fence + 1
        )
        .execution_options(synchronize_session=False)
    )
    _end_attempts(session, job_id, "lost", str(error))
    events.append(session, "job.failed", None, {"job": job_id, "error": str(error)})
    return get(session, job_id), error


def heartbeat(
    session: Session,
    held: Claim,
    progress: Mapping[str, Any] | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> None:
    """Renews the lease. Raises LeaseLost where the job is another's by now, or was cancelled."""
    now = utc_now()
    values: dict[str, Any] = {"heartbeat_at": now, "lease_expires_at": now + timedelta(seconds=lease_seconds)}
    if progress is not None:
        values["progress"] = dict(progress)
    _write(session, held, values)


def complete(session: Session, held: Claim) -> None:
    """Ends a job well, in the transaction that published its results. Raises LeaseLost."""
    _write(session, held, {"state": "done", "lease_owner": None, "lease_expires_at": None})
    _end_attempts(session, held.job.id, "done", None)
    events.append(session, "job.done", None, {"job": held.job.id, "fence": held.fence})


def fail(session: Session, held: Claim, error: str, *, may_heal: bool) -> str:
    """Ends an attempt. → the job's state: failed, or queued with a growing delay. Raises LeaseLost."""
    again = may_heal and held.failures + 1 < MAX_ATTEMPTS
    state = "queued" if again else "failed"
    delay = timedelta(seconds=RETRY_SECONDS * 2**held.failures if again else 0)
    _write(
        session,
        held,
        {
            "state": state,
            "error": error,
            "lease_owner": None,
            "lease_expires_at": None,
            "run_at": utc_now() + delay,
        },
    )
    _end_attempts(session, held.job.id, "failed", error)
    events.append(
        session, f"job.{'retried' if again else 'failed'}", None, {"job": held.job.id, "error": error}
    )
    return state


def release(session: Session, held: Claim) -> None:
    """Gives a job back unfinished, as after Ctrl-C: whoever is next resumes it. Raises LeaseLost."""
    _write(
        session, held, {"state": "queued", "lease_owner": None, "lease_expires_at": None, "run_at": utc_now()}
    )
    _end_attempts(session, held.job.id, "interrupted", None)
    events.append(session, "job.released", None, {"job": held.job.id})


def cancel(session: Session, job_id: str) -> JobRecord:
    """Takes a job out of the queue; the worker that runs it stops at its next heartbeat.

    Jobs that were to run after it fail with it.
    """
    job = get(session, job_id)
    if job.state in LIVE:
        session.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(state="cancelled", lease_owner=None, lease_expires_at=None, fence=Job.fence + 1)
            .execution_options(synchronize_session=False)
        )
        _end_attempts(session, job.id, "cancelled", None)
        events.append(session, "job.cancelled", None, {"job": job.id})
        give_up(session)
    return get(session, job.id)


def owners_gone(session: Session, owners: Sequence[str]) -> int:
    """Ends the leases of workers that are known to be dead, so that nobody waits for them. → how many"""
    return _changed(
        session.execute(
            update(Job)
            .where(Job.state == "running", Job.lease_owner.in_(owners))
            .values(lease_expires_at=utc_now())
            .execution_options(synchronize_session=False)
        )
    )


def get(session: Session, job_id: str) -> JobRecord:
    """Raises JobNotFound. A unique beginning of the id is enough."""
    if not job_id:
        raise JobNotFound(job_id, 0)
    found = list(session.scalars(select(Job.id).where(Job.id.startswith(job_id, autoescape=True)).limit(2)))
    if len(found) != 1:
        raise JobNotFound(job_id, len(found))
    return _records(session, Job.id == found[0])[0]


def list_all(session: Session, states: Sequence[str] | None = None) -> list[JobRecord]:
    """The jobs in the order in which they were accepted."""
    return _records(session, Job.state.in_(states) if states is not None else None)


def unfinished(session: Session) -> list[JobRecord]:
    return list_all(session, LIVE)


def _records(session: Session, condition: ColumnElement[bool] | None) -> list[JobRecord]:
    query = select(Job).order_by(Job.created_at, Job.id).execution_options(populate_existing=True)
    rows = list(session.scalars(query if condition is None else query.where(condition)))
    ids = [row.id for row in rows]
    members: dict[str, list[str]] = {job_id: [] for job_id in ids}
    needs: dict[str, list[str]] = {job_id: [] for job_id in ids}
    attempts = dict.fromkeys(ids, 0)
    named = (
        select(JobTask.job_id, Task.name).join(Task, Task.node_id == JobTask.task_id).order_by(Task.node_id)
    )
    for job_id, name in session.execute(named.where(JobTask.job_id.in_(ids))):
        members[job_id].append(name)
    for edge in session.scalars(select(JobDependency).where(JobDependency.job_id.in_(ids))):
        needs[edge.job_id].append(edge.needs_job_id)
    for attempt in session.scalars(select(Attempt).where(Attempt.job_id.in_(ids))):
        attempts[attempt.job_id] += 1
    return [
        JobRecord(
            row.id,
            row.strategy,
            row.state,
            tuple(members[row.id]),
            row.recipe,
            tuple(needs[row.id]),
            row.priority,
            row.fence,
            row.lease_owner,
            row.progress,
            row.error,
            row.created_at,
            attempts[row.id],
        )
        for row in rows
    ]


def _outcomes(session: Session, job_id: str) -> list[str | None]:
    """How each attempt of a job ended; None for one that has not."""
    return list(session.scalars(select(Attempt.outcome).where(Attempt.job_id == job_id)))


def _end_attempts(session: Session, job_id: str, outcome: str, error: str | None) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
        .values(ended_at=utc_now(), outcome=outcome, error=error)
        .execution_options(synchronize_session=False)
    )


def _write(session: Session, held: Claim, values: Mapping[str, Any]) -> None:
    changed = _changed(
        session.execute(
            update(Job)
            .where(Job.id == held.job.id, Job.fence == held.fence, Job.state == "running")
            .values(**values)
            .execution_options(synchronize_session=False)
        )
    )
    if not changed:
        raise LeaseLost(held.job.id, held.fence)


def _changed(result: Any) -> int:
    return int(result.rowcount)
