"""What nobody works on any more: leases that ran out, and jobs that can never be done.

The database's clock may jump. Forwards, and every lease has run out at once: so one that ran out long ago,
which workers that look every few seconds would have seen before, is given one more beat's time first.
Backwards, and leases end in a far future: so one whose last heartbeat is yet to come begins anew. What is
judged wrongly costs a repetition, never a second result: the fence sees to that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, text, update
from sqlalchemy.orm import Session

from orchestration.errors import NeedNotMet, OrchestrationError, WorkersDied
from orchestration.jobs import DEAD, JobRecord
from orchestration.queue import clock
from orchestration.queue.holding import FREE, end_attempt, mark_hopeless
from orchestration.queue.listing import by_ids, chunks, get
from registry import events
from registry.columns import utc_now
from registry.models import Attempt, Event, Job

LONG_AGO_SECONDS = 60.0
GRACE_SECONDS = 20.0
AHEAD_SECONDS = 5.0
LOST = "its worker was not heard of any more"

GivenUp = tuple[JobRecord, OrchestrationError]


def give_up(session: Session) -> list[GivenUp]:
    """Takes back what lost its worker, and ends what can never be done. → the jobs that are dead now, and why

    Dead are jobs that wait for one that is dead or cancelled, and jobs that max_attempts workers left. Every
    worker calls this when it looks for work: two look-ups in small indexes, where there is nothing to do.
    """
    return [*_recover(session), *_end_hopeless(session)]


def owners_gone(session: Session, owners: Sequence[str]) -> int:
    """Ends the leases of workers that are known to be dead, so that nobody waits for them. → how many"""
    if not owners:
        return 0
    ended = session.execute(
        update(Job)
        .where(_RUNNING, Job.lease_owner.in_(owners))
        .values(lease_expires_at=clock.now())
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return len(ended.all())


_RUNNING = text("job.state = 'running'")
_LOST_NEED = text("job.lost_need_id IS NOT NULL AND job.state IN ('queued', 'paused')")


def _recover(session: Session) -> list[GivenUp]:
    """Jobs whose lease ran out are queued again, or go where they were asked to. → those that are dead"""
    over = or_(Job.lease_expires_at <= clock.now(), Job.heartbeat_at > clock.later(AHEAD_SECONDS))
    query = select(Job, _jumped().label("jumped")).where(_RUNNING, over).order_by(Job.number)
    query = query.with_for_update(skip_locked=True).execution_options(populate_existing=True)
    dead: list[GivenUp] = []
    for row, jumped in session.execute(query).all():
        if jumped:
            _set(session, [row.id], heartbeat_at=clock.now(), lease_expires_at=clock.later(GRACE_SECONDS))
            continue
        failures = row.failures + 1
        state = {"cancel": "cancelled", "pause": "paused"}.get(row.request or "", "queued")
        error: OrchestrationError | None = None
        if state == "queued" and failures >= row.max_attempts:
            state, error = "dead", WorkersDied(1 + _lost(session, row))
        why = LOST if error is None else str(error)
        owner = row.lease_owner
        _set(
            session,
            [row.id],
            state=state,
            failures=failures,
            error=why,
            error_here=None,
            run_at=clock.now(),
            **FREE,
        )
        end_attempt(session, row.id, "lost", why)
        events.append(session, "job.lost", None, {"job": row.id, "owner": owner, "state": state})
        if state in DEAD:
            mark_hopeless(session, row.id)
        if error is not None:
            dead.append((get(session, row.id), error))
    return dead


def _jumped() -> ColumnElement[bool]:
    """Whether it looks as if the clock had jumped, and not as if a worker were gone."""
    return or_(
        Job.heartbeat_at > clock.later(AHEAD_SECONDS), Job.lease_expires_at <= clock.later(-LONG_AGO_SECONDS)
    )


def _lost(session: Session, row: Job) -> int:
    query = select(func.count()).where(
        Attempt.job_id == row.id, Attempt.generation == row.generation, Attempt.outcome == "lost"
    )
    return session.scalars(query).one()


def _end_hopeless(session: Session) -> list[GivenUp]:
    ended: list[GivenUp] = []
    # Whoever waits for one that is ended here has no hope either: again, until none is left.
    query = select(Job.id, Job.lost_need_id).where(_LOST_NEED).order_by(Job.number)
    while rows := session.execute(query.with_for_update(skip_locked=True)).all():
        by_cause: defaultdict[str, list[str]] = defaultdict(list)
        for job_id, cause in rows:
            by_cause[str(cause)].append(job_id)
        for cause, job_ids in by_cause.items():
            need = get(session, cause)
            error = NeedNotMet(need.id, need.tasks, need.state, need.error)
            _set(session, job_ids, state="dead", error=str(error), error_here=None)
            ended += [(job, error) for job in by_ids(session, job_ids)]
            for chunk in chunks(job_ids):
                payloads = ({"job": job_id, "error": str(error)} for job_id in chunk)
                told = {"kind": "job.dead", "subject": None, "at": utc_now()}
                session.execute(insert(Event), [{**told, "payload": payload} for payload in payloads])
                mark_hopeless(session, *chunk)
    return ended


def _set(session: Session, job_ids: Sequence[str], **values: Any) -> None:
    for chunk in chunks(job_ids):
        session.execute(
            update(Job).where(Job.id.in_(chunk)).values(**values).execution_options(synchronize_session=False)
        )
