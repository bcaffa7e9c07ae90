"""What the holder of a job writes: heartbeats, and the end of its attempt. Every write carries the fence."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Case, FromClause, Insert, Update, bindparam, case, func, literal, select, update
from sqlalchemy.orm import Session

from orchestration.errors import LeaseLost
from orchestration.jobs import Claim
from orchestration.queue import clock
from orchestration.queue.following import JOB, Steps, ends, steps, told
from orchestration.queue.waiting import ring
from registry import events
from registry.models import Attempt, Job, JobDependency
from registry.session import Sessions

LEASE_SECONDS = 60
RETRY_SECONDS = 10.0
LONGEST_DELAY_SECONDS = 600.0
FREE: Mapping[str, Any] = {
    "lease_owner": None,
    "lease_expires_at": None,
    "request": None,
    "requested_by": None,
    "requested_at": None,
}
"""The columns of a job that nobody holds."""


def heartbeat(
    session: Session,
    held: Claim,
    progress: Mapping[str, Any] | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> str | None:
    """Renews the lease. → what is asked of the holder: cancel, pause, or nothing

    Raises LeaseLost where the job is another's by now, or over.
    """
    values: dict[str, Any] = {"heartbeat_at": clock.now(), "lease_expires_at": clock.later(lease_seconds)}
    if progress is not None:
        values["progress"] = dict(progress)
    return _write(session, held, values)[1]


def complete(session: Session, held: Claim, progress: Mapping[str, Any] | None = None) -> None:
    """Ends a job well, in the transaction that published its results. Raises LeaseLost.

    progress: what is left to be read of it. What was asked of it meanwhile came too late.
    """
    connection = session.connection()
    done = _completing(connection.dialect.name, progress is not None).run(connection, **_end(held, progress))
    if done is None:
        raise LeaseLost(held.job.id, held.fence)
    if done.awaited:
        # A statement of its own: it sees who came to wait while the first waited for the job.
        connection.execute(_FREE_WHO_WAITS, {"done_id": held.job.id})
        ring(session)


def finish(ledger: Sessions, held: Claim, progress: Mapping[str, Any] | None = None) -> None:
    """As complete, in a transaction of its own: one trip to the database where no other job waits for it."""
    with ledger.at_once() as connection:
        completing = _completing(connection.dialect.name, progress is not None, awaited=False)
        if completing.run(connection, **_end(held, progress)) is not None:
            return
    with ledger.begin() as session:
        complete(session, held, progress)


def fail(session: Session, held: Claim, error: str, here: str | None = None, *, may_heal: bool) -> str:
    """Ends an attempt badly. → the job's state: dead, or queued with a growing delay. Raises LeaseLost.

    A job that was asked to end or to pause meanwhile does that. here: the error for who sits at this machine,
    where it names places of it.
    """
    failures = held.failures + 1
    again = may_heal and failures < held.job.max_attempts
    delay = _delay(held.failures) if again else 0.0
    end = {"state": _left("queued" if again else "dead"), "run_at": clock.later(delay)}
    state, _ = _write(
        session, held, {**end, "failures": failures, "error": error, "error_here": here, **FREE}
    )
    end_attempt(session, held.job.id, "failed", error, here)
    word = "retried" if state == "queued" else state
    events.append(session, f"job.{word}", None, {"job": held.job.id, "error": error})
    if state in ("dead", "cancelled"):
        mark_hopeless(session, held.job.id)
    return state


def release(
    session: Session,
    held: Claim,
    error: str | None = None,
    delay_seconds: float = 0.0,
    here: str | None = None,
) -> str:
    """Gives a job back unfinished, as after Ctrl-C: the next resumes it. → its state. Raises LeaseLost.

    error: what is wrong with the worker, not the job, which keeps its attempts and waits for that; here: as
    `fail` takes it.
    """
    why = {} if error is None else {"error": error}
    end = {"state": _left("queued"), "run_at": clock.later(delay_seconds)}
    state, _ = _write(session, held, {**end, **why, "error_here": here, **FREE})
    end_attempt(session, held.job.id, "interrupted", error, here)
    word = "released" if state == "queued" else state
    ring(session)
    events.append(session, f"job.{word}", None, {"job": held.job.id, **why})
    if state == "cancelled":
        mark_hopeless(session, held.job.id)
    return state


def cancelled(session: Session, held: Claim) -> None:
    """The holder has ended the attempt, as it was asked to. Raises LeaseLost."""
    _write(session, held, {"state": "cancelled", **FREE})
    end_attempt(session, held.job.id, "cancelled", None)
    events.append(session, "job.cancelled", None, {"job": held.job.id})
    mark_hopeless(session, held.job.id)


def paused(session: Session, held: Claim) -> None:
    """The holder has ended the attempt and kept its checkpoints, as it was asked to. Raises LeaseLost."""
    _write(session, held, {"state": "paused", **FREE})
    end_attempt(session, held.job.id, "paused", None)
    events.append(session, "job.paused", None, {"job": held.job.id})


def end_attempt(
    session: Session, job_id: str, outcome: str, error: str | None, here: str | None = None
) -> None:
    """Ends the attempt of a job that has not ended."""
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.ended_at.is_(None))
        .values(ended_at=clock.now(), outcome=outcome, error=error, error_here=here)
        .execution_options(synchronize_session=False)
    )


def mark_hopeless(session: Session, *job_ids: str) -> None:
    """Jobs that wait for these, which will never be done, are known as such; give_up ends them."""
    needed = select(JobDependency.job_id).where(JobDependency.needs_job_id.in_(job_ids))
    lost = select(func.min(JobDependency.needs_job_id)).where(
        JobDependency.job_id == Job.id, JobDependency.needs_job_id.in_(job_ids)
    )
    session.execute(
        update(Job)
        .where(Job.id.in_(needed), Job.state.in_(["queued", "paused"]), Job.lost_need_id.is_(None))
        .values(lost_need_id=lost.scalar_subquery())
        .execution_options(synchronize_session=False)
    )


def _end(held: Claim, progress: Mapping[str, Any] | None) -> dict[str, Any]:
    given = {"held_id": held.job.id, "held_fence": held.fence}
    return given if progress is None else {**given, "held_progress": dict(progress)}


@cache
def _completing(engine: str, with_progress: bool, *, awaited: bool = True) -> Steps:
    """awaited: also of a job for which others wait."""
    mine = JOB.c.id == bindparam("held_id"), JOB.c.fence == bindparam("held_fence"), JOB.c.state == "running"
    told_last = {"progress": bindparam("held_progress", type_=JOB.c.progress.type)} if with_progress else {}
    alone = [] if awaited else [JOB.c.awaited.is_(False)]
    done = update(JOB).where(*mine, *alone).values(state="done", **FREE, **told_last)

    def follow(job: FromClause) -> list[Insert | Update]:
        fact = {"job": job.c.id, "fence": job.c.fence}
        return [ends(job, literal("done")), told(job, literal("job.done"), **fact)]

    return steps(engine, done, follow, lambda job: [job.c.id, job.c.awaited], often=True)


_FREE_WHO_WAITS = (
    update(JOB)
    # In one order, so that two jobs that end at once never wait for each other here.
    .where(
        JOB.c.id.in_(
            select(JOB.c.id)
            .where(
                JOB.c.id.in_(
                    select(JobDependency.job_id).where(JobDependency.needs_job_id == bindparam("done_id"))
                )
            )
            .order_by(JOB.c.id)
            .with_for_update()
            .correlate(None)
        )
    )
    .values(waits=JOB.c.waits - 1)
)


def _delay(failures: int) -> float:
    """Twice as long after each failure, and never for all jobs alike: those that failed together part."""
    longest = min(LONGEST_DELAY_SECONDS, RETRY_SECONDS * 2.0**failures)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _left(state: str) -> Case[str]:
    """The state of a job that is left unfinished: what was asked of its holder comes first."""
    return case({"cancel": "cancelled", "pause": "paused"}, value=Job.request, else_=state)


def _write(session: Session, held: Claim, values: Mapping[str, Any]) -> tuple[str, str | None]:
    """→ the job's state, and what is asked of its holder"""
    written = session.execute(
        update(Job)
        .where(Job.id == held.job.id, Job.fence == held.fence, Job.state == "running")
        .values(**values)
        .returning(Job.state, Job.request)
        .execution_options(synchronize_session=False)
    ).first()
    if written is None:
        raise LeaseLost(held.job.id, held.fence)
    return written[0], written[1]
