"""Claiming: the next job that may run and fits, of the highest priority first, then the oldest.

A job too large for what is free now must not wait for ever behind small ones. So where a worker is partly
busy, and a job that would fit it whole has been due for longer than PATIENCE_SECONDS, what comes free is
kept for it: this worker takes only what comes before it in the order. What a limit holds back keeps no place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, TextClause, and_, insert, not_, or_, select, text, update
from sqlalchemy.orm import Session

from orchestration.jobs import DEFAULTS, Capacity, Claim
from orchestration.queue import clock, limits
from orchestration.queue.holding import LEASE_SECONDS
from orchestration.queue.listing import from_rows
from registry import events
from registry.models import Attempt, Job

Condition = ColumnElement[bool] | TextClause
PATIENCE_SECONDS = 120.0
# Written out, not as parameters: only so do both databases see that their partial index holds these rows.
_READY = text("job.state = 'queued' AND job.waits = 0")


def claim(
    session: Session,
    owner: str,
    capacity: Capacity | None = None,
    lease_seconds: float = LEASE_SECONDS,
    *,
    total: Capacity | None = None,
    defaults: Mapping[str, Capacity] = DEFAULTS,
) -> Claim | None:
    """Takes the next job that may run: queued, due, its needs done, within the limits and what is free here.

    What other workers lost is queued again by give_up, which every worker calls first.

    capacity: what is free on this worker; total: what it has when nothing runs; without it, no place is kept
    for large jobs. defaults: by kind, what a job takes that does not say it.
    """
    free = capacity or Capacity()
    may: list[Condition] = [_READY, Job.run_at <= clock.now(), *limits.allowed(session, defaults)]
    fits = _fits(free, defaults)
    if total is not None and total != free:
        fits += _first_in_line(session, [*may, *_fits(total, defaults)], fits)
    row = _take(session, owner, [*may, *fits], lease_seconds)
    if row is None:
        return None
    tried = {"job_id": row.id, "number": row.attempts, "generation": row.generation, "fence": row.fence}
    session.execute(insert(Attempt), [{**tried, "owner": owner, "started_at": row.heartbeat_at}])
    events.append(session, "job.claimed", None, {"job": row.id, "owner": owner, "fence": row.fence})
    return Claim(from_rows(session, [row])[0], owner, row.fence, row.attempts, row.failures)


def _fits(room: Capacity, defaults: Mapping[str, Capacity]) -> list[ColumnElement[bool]]:
    amounts = ((name, getattr(room, name)) for name in limits.RESOURCES)
    return [limits.needed(name, defaults) <= amount for name, amount in amounts if not math.isinf(amount)]


def _first_in_line(
    session: Session, could: Sequence[Condition], fits: Sequence[ColumnElement[bool]]
) -> list[ColumnElement[bool]]:
    """Not what comes after the first job that could run here, does not fit now, and has waited too long."""
    if not fits:
        return []
    late = Job.run_at <= clock.later(-PATIENCE_SECONDS)
    query = select(Job.rank, Job.number).where(*could, late, not_(and_(*fits)))
    row = session.execute(query.order_by(Job.rank, Job.number).limit(1)).first()
    if row is None:
        return []
    return [or_(Job.rank < row.rank, and_(Job.rank == row.rank, Job.number < row.number))]


def _take(session: Session, owner: str, wanted: Sequence[Condition], lease_seconds: float) -> Job | None:
    chosen = select(Job.id).where(*wanted).order_by(Job.rank, Job.number).limit(1)
    return session.scalars(
        update(Job)
        .where(Job.id == chosen.with_for_update(skip_locked=True).scalar_subquery())
        .values(
            state="running",
            fence=Job.fence + 1,
            attempts=Job.attempts + 1,
            lease_owner=owner,
            heartbeat_at=clock.now(),
            lease_expires_at=clock.later(lease_seconds),
            error=None,
        )
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    ).first()
