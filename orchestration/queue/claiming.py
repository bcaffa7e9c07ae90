"""Claiming: the next job that may run and fits, of the highest priority first, then the oldest.

A job too large for what is free now must not wait for ever behind small ones. So where a worker is partly
busy, and a job that would fit it whole has been due for longer than PATIENCE_SECONDS, what comes free is
kept for it: this worker takes only what comes before it in the order. What a limit holds back keeps no place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

from sqlalchemy import (
    ColumnElement,
    Float,
    FromClause,
    Insert,
    String,
    TextClause,
    Update,
    and_,
    bindparam,
    exists,
    literal,
    not_,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session

from orchestration.jobs import DEFAULTS, Capacity, Claim
from orchestration.queue import clock, limits
from orchestration.queue.following import JOB, Steps, Written, begins, steps, told
from orchestration.queue.holding import LEASE_SECONDS
from orchestration.queue.listing import columns, record
from registry.models import Job, QueueLimit
from registry.session import Sessions

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

    What other workers lost is queued again by give_up, which every worker calls once a second.

    capacity: what is free on this worker; total: what it has when nothing runs; without it, no place is kept
    for large jobs. defaults: by kind, what a job takes that does not say it.
    """
    free = capacity or Capacity()
    given = {"claimed_by": owner, "lease_seconds": lease_seconds}
    partly = total is not None and total != free
    row: Written | None = None
    connection = session.connection()
    if not partly:
        row = usual(connection.dialect.name, free, tuple(defaults.items())).run(connection, **given)
    if row is None:
        allowed = limits.allowed(session, defaults)
        if allowed is None and not partly:
            return None
        may: list[Condition] = [_READY, _due(), *(allowed or [])]
        fits = _fits(free, defaults)
        if total is not None and partly:
            fits += _first_in_line(session, [*may, *_fits(total, defaults)], fits)
        row = _taking(connection.dialect.name, [*may, *fits]).run(connection, **given)
    return None if row is None else _claim(row, owner)


def take(
    ledger: Sessions,
    owner: str,
    capacity: Capacity | None = None,
    lease_seconds: float = LEASE_SECONDS,
    *,
    total: Capacity | None = None,
    defaults: Mapping[str, Capacity] = DEFAULTS,
) -> Claim | None:
    """As claim, in a transaction of its own: one trip to the database where no limit is set."""
    free = capacity or Capacity()
    if total is None or total == free:
        with ledger.at_once() as connection:
            taking = usual(connection.dialect.name, free, tuple(defaults.items()))
            row = taking.run(connection, claimed_by=owner, lease_seconds=lease_seconds)
        if row is not None:
            return _claim(row, owner)
    with ledger.begin() as session:
        return claim(session, owner, capacity, lease_seconds, total=total, defaults=defaults)


def _claim(row: Written, owner: str) -> Claim:
    return Claim(record(row), owner, row.fence, row.attempts, row.failures)


@lru_cache(maxsize=64)
def usual(engine: str, free: Capacity, defaults: tuple[tuple[str, Capacity], ...]) -> Steps:
    """What most claims are: one statement, made once. It takes nothing where there is any limit."""
    wanted: list[Condition] = [
        _READY,
        _due(),
        ~exists(select(QueueLimit.key)),
        *_fits(free, dict(defaults)),
    ]
    return _taking(engine, wanted, often=True)


def _taking(engine: str, wanted: Sequence[Condition], *, often: bool = False) -> Steps:
    """Takes the first job of which this is true; its attempt begins, and an event tells of it."""
    chosen = select(Job.id).where(*wanted).order_by(Job.rank, Job.number).limit(1)
    taken = (
        update(JOB)
        .where(JOB.c.id == chosen.with_for_update(skip_locked=True).scalar_subquery())
        .values(
            state="running",
            fence=JOB.c.fence + 1,
            attempts=JOB.c.attempts + 1,
            lease_owner=bindparam("claimed_by", type_=String),
            heartbeat_at=clock.now(),
            lease_expires_at=clock.later(bindparam("lease_seconds", type_=Float)),
            error=None,
            error_here=None,
        )
    )

    def follow(job: FromClause) -> list[Insert | Update]:
        fact = {"job": job.c.id, "owner": job.c.lease_owner, "fence": job.c.fence}
        return [begins(job), told(job, literal("job.claimed"), **fact)]

    return steps(engine, taken, follow, columns, often=often)


def _due() -> ColumnElement[bool]:
    """Its time has come; a job that was never held back is due whatever becomes of the clock."""
    return or_(Job.run_at <= clock.now(), Job.run_at <= Job.created_at)


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
