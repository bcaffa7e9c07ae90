"""A write and what follows from it, in one trip to the database where it can be.

On PostgreSQL the statements are one, each a part of the first's WITH: they see what was there before it, and
what it returns. On SQLite, where no trip is made, they come one after another and see the row as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Insert,
    Row,
    Select,
    String,
    Update,
    bindparam,
    insert,
    select,
    update,
)
from sqlalchemy.orm import Session

from orchestration.queue import clock
from orchestration.queue.json_sql import facts
from registry.models import Attempt, Event, Job

JOB: Any = Job.__table__
_ATTEMPT: Any = Attempt.__table__
_EVENT: Any = Event.__table__
_ID: Any = bindparam("written_id", type_=String)
_NOW = (
    select(JOB.c.id, JOB.c.attempts, JOB.c.generation, JOB.c.fence, JOB.c.lease_owner, JOB.c.heartbeat_at)
    .where(JOB.c.id == _ID)
    .subquery("written")
)
Columns = Callable[[FromClause], Sequence[ColumnElement[Any]]]
Follow = Callable[[FromClause], Sequence[Insert | Update]]


@dataclass(frozen=True)
class Steps:
    """Statements of one engine, made once and run often."""

    first: Update | Select[Any]
    then: tuple[Insert | Update | Select[Any], ...] = ()

    def run(self, session: Session, **values: Any) -> Row[Any] | None:
        """→ the job's row; nothing follows where the first wrote none"""
        connection = session.connection()
        row = connection.execute(self.first, values).first()
        if row is None:
            return None
        for each in self.then:
            result = connection.execute(each, values | {"written_id": row.id})
            row = result.one() if result.returns_rows else row
        return row


def steps(engine: str, first: Update, follow: Follow, shown: Columns) -> Steps:
    """first: a write to one job. follow: what else is written, from its row; shown: what is read

    Values that are given to run are not named as columns are: those would be written.
    """
    if engine == "postgresql":
        written = first.returning(*JOB.c).cte("written")
        parts = [part.cte(f"part_{number}") for number, part in enumerate(follow(written))]
        return Steps(select(*shown(written)).select_from(written).add_cte(*parts))
    now = select(*shown(JOB)).where(JOB.c.id == _ID)
    return Steps(first.returning(JOB.c.id), (*follow(_NOW), now))


def begins(row: FromClause) -> Insert:
    """The attempt of a job that was claimed."""
    of = row.c
    values = select(of.id, of.attempts, of.generation, of.fence, of.lease_owner, of.heartbeat_at)
    columns = ["job_id", "number", "generation", "fence", "owner", "started_at"]
    return insert(_ATTEMPT).from_select(columns, values, include_defaults=False)


def ends(row: FromClause, outcome: ColumnElement[Any]) -> Update:
    """The attempt of a job that was let go."""
    open_one = _ATTEMPT.c.job_id.in_(select(row.c.id)), _ATTEMPT.c.ended_at.is_(None)
    return update(_ATTEMPT).where(*open_one).values(ended_at=clock.now(), outcome=outcome)


def told(row: FromClause, kind: ColumnElement[Any], **values: ColumnElement[Any]) -> Insert:
    """The event of it."""
    columns = ["at", "kind", "payload"]
    fact = select(clock.now(), kind, facts(**values)).select_from(row)
    return insert(_EVENT).from_select(columns, fact, include_defaults=False)
