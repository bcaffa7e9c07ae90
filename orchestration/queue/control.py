"""What people ask of a job that is there already. Of one that runs, its worker is asked by a heartbeat."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session, aliased

from orchestration.errors import JobIsOver, NeedNotMet, TaskIsBusy
from orchestration.jobs import DEAD, JobRecord
from orchestration.queue import clock
from orchestration.queue.amounts import check_priority
from orchestration.queue.holding import mark_hopeless
from orchestration.queue.listing import by_ids, get
from orchestration.queue.waiting import ring
from registry import events
from registry.models import Job, JobDependency, JobTask, Task


def hold(session: Session, job_id: str) -> JobRecord:
    """A job as it stays until this transaction ends. Raises JobNotFound."""
    return get(session, _locked(session, job_id).id)


def cancel(session: Session, job_id: str, by: str | None = None) -> JobRecord:
    """Ends a job that waits; asks the worker of one that runs to end it. What is over stays as it is.

    Jobs that were to run after it end with it.
    """
    row = _locked(session, job_id)
    if row.state == "running":
        _ask(session, row, "cancel", by)
    elif row.state in ("queued", "paused"):
        _set(session, row, state="cancelled")
        mark_hopeless(session, row.id)
        _tell(session, "job.cancelled", row, by)
    return get(session, row.id)


def pause(session: Session, job_id: str, by: str | None = None) -> JobRecord:
    """Holds a job back; the worker of one that runs keeps its checkpoints and lets go. Raises JobIsOver."""
    row = _locked(session, job_id)
    if row.state == "running":
        if row.request != "cancel":
            _ask(session, row, "pause", by)
    elif row.state == "queued":
        _set(session, row, state="paused")
        _tell(session, "job.paused", row, by)
    elif row.state != "paused":
        raise JobIsOver(row.id, row.state, "paused")
    return get(session, row.id)


def resume(session: Session, job_id: str, by: str | None = None) -> JobRecord:
    """Lets a paused job go on where it stopped. Raises JobIsOver."""
    row = _locked(session, job_id)
    if row.state == "paused":
        _set(session, row, state="queued", run_at=clock.now())
        ring(session)
        _tell(session, "job.resumed", row, by)
    elif row.state == "running" and row.request == "pause":
        _set(session, row, request=None, requested_by=None, requested_at=None)
        _tell(session, "job.resumed", row, by)
    elif row.state not in ("queued", "running"):
        raise JobIsOver(row.id, row.state, "resumed")
    return get(session, row.id)


def retry(
    session: Session, job_id: str, by: str | None = None, *, with_waiting: bool = False
) -> list[JobRecord]:
    """Takes a dead or cancelled job up again: the same job, a new generation. → it, and those with it

    with_waiting: so are jobs that are dead because of it. Raises JobIsOver, TaskIsBusy and NeedNotMet.
    """
    row = _locked(session, job_id)
    if row.state not in DEAD:
        raise JobIsOver(row.id, row.state, "taken up again")
    again = [row.id]
    _revive(session, row, by)
    while with_waiting:
        waiting = select(Job.id).where(Job.lost_need_id.in_(again), Job.state == "dead", Job.id.not_in(again))
        found = list(session.scalars(waiting.order_by(Job.number)))
        if not found:
            break
        for each in found:
            _revive(session, _locked(session, each), by)
        again += found
    return by_ids(session, again)


def prioritise(session: Session, job_id: str, priority: int, by: str | None = None) -> JobRecord:
    """Jobs of a higher priority are taken first; usual is 0. Raises JobIsOver and ConfigInvalid."""
    check_priority(priority)
    row = _locked(session, job_id)
    if row.state == "done" or row.state in DEAD:
        raise JobIsOver(row.id, row.state, "moved")
    _set(session, row, priority=priority)
    _tell(session, "job.prioritised", row, by, priority=priority)
    return get(session, row.id)


def _revive(session: Session, row: Job, by: str | None) -> None:
    busy = (
        select(Task.name)
        .join(JobTask, JobTask.task_id == Task.node_id)
        .where(
            JobTask.task_id.in_(select(JobTask.task_id).where(JobTask.job_id == row.id)),
            JobTask.job_id != row.id,
            text("job_task.live"),
        )
    )
    if (name := session.scalars(busy.limit(1)).first()) is not None:
        raise TaskIsBusy(name, "scheduled")
    needed = select(JobDependency.needs_job_id).where(JobDependency.job_id == row.id)
    needs = select(Job).where(Job.id.in_(needed)).order_by(Job.id).with_for_update(read=True)
    for need in list(session.scalars(needs.execution_options(populate_existing=True))):
        if need.state in DEAD:
            lost = get(session, need.id)
            raise NeedNotMet(lost.id, lost.tasks, lost.state, lost.error)
    fresh = {"failures": 0, "progress": None, "lost_need_id": None, "run_at": clock.now()}
    fresh |= {"error": None, "error_here": None}
    _set(session, row, state="queued", generation=Job.generation + 1, **fresh)
    # Who waits for it and was not ended yet may hope again, unless another of its needs is lost too.
    other = aliased(Job)
    others = select(func.min(other.id)).join(JobDependency, JobDependency.needs_job_id == other.id)
    still = (
        others.where(JobDependency.job_id == Job.id, other.state.in_(DEAD)).correlate(Job).scalar_subquery()
    )
    _update(session, Job.lost_need_id == row.id, Job.state.in_(["queued", "paused"]), lost_need_id=still)
    ring(session)
    _tell(session, "job.queued", row, by, generation=row.generation + 1)


def _ask(session: Session, row: Job, request: str, by: str | None) -> None:
    if row.request != request:
        _set(session, row, request=request, requested_by=by, requested_at=clock.now())
        _tell(session, f"job.{request}-asked", row, by)


def _locked(session: Session, job_id: str) -> Job:
    query = select(Job).where(Job.id == get(session, job_id).id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()


def _set(session: Session, row: Job, **values: Any) -> None:
    _update(session, Job.id == row.id, **values)


def _update(session: Session, *wanted: Any, **values: Any) -> None:
    session.execute(update(Job).where(*wanted).values(**values).execution_options(synchronize_session=False))


def _tell(session: Session, kind: str, row: Job, by: str | None, **facts: Any) -> None:
    events.append(session, kind, None, {"job": row.id, "by": by, **facts})
