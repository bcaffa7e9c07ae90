"""A write and what follows from it, in one trip to the database where it can be.

On PostgreSQL the statements are one, each a part of the first's WITH: they see what was there before it, and
what it returns. On SQLite, where no trip is made, they come one after another and see the row as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Insert,
    Select,
    String,
    Update,
    bindparam,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from orchestration.queue import clock
from orchestration.queue.json_sql import facts
from registry.digests import canonical
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
Written = Any
"""A row of what was shown, by attribute."""
Columns = Callable[[FromClause], Sequence[ColumnElement[Any]]]
Follow = Callable[[FromClause], Sequence[Insert | Update]]


class Steps(Protocol):
    """Statements of one engine."""

    def run(self, connection: Connection, **values: Any) -> Written | None:
        """→ the job's row; nothing follows where the first wrote none"""
        ...


@dataclass(frozen=True)
class InTurn:
    """One after another, in a transaction; where there is only one, it may be a transaction by itself."""

    first: Update | Select[Any]
    then: tuple[Insert | Update | Select[Any], ...] = ()

    def run(self, connection: Connection, **values: Any) -> Written | None:
        row = connection.execute(self.first, values).first()
        if row is None:
            return None
        for each in self.then:
            result = connection.execute(each, values | {"written_id": row.id})
            row = result.one() if result.returns_rows else row
        return row


@dataclass(frozen=True)
class OneTrip:
    """On PostgreSQL, what is made once and run often: given to the driver as it is, for SQLAlchemy's own
    share of running it would be larger than the driver's. given: the values that are always the same.
    """

    sql: str
    given: Mapping[str, Any]

    @classmethod
    def of(cls, statement: Select[Any]) -> OneTrip:
        from sqlalchemy.dialects.postgresql.psycopg import dialect

        compiled = statement.compile(dialect=dialect())
        given = {name: bind.effective_value for name, bind in compiled.binds.items() if not bind.required}
        return cls(str(compiled), given)

    def run(self, connection: Connection, **values: Any) -> Written | None:
        from psycopg import Error
        from psycopg.rows import namedtuple_row
        from psycopg.types.json import Jsonb

        plain = {
            name: Jsonb(each, dumps=canonical) if isinstance(each, dict) else each
            for name, each in values.items()
        }
        driver: Any = connection.connection.driver_connection
        try:
            cursor = driver.cursor(row_factory=namedtuple_row)
            return cursor.execute(self.sql, {**self.given, **plain}).fetchone()
        except Error as error:
            if lost := driver.closed:
                connection.invalidate(error)
            raise DBAPIError.instance(
                self.sql, None, error, Error, connection_invalidated=lost, dialect=connection.dialect
            ) from error


def steps(engine: str, first: Update, follow: Follow, shown: Columns, *, often: bool = False) -> Steps:
    """first: a write to one job. follow: what else is written, from its row; shown: what is read; often: run
    again and again as they are made here.

    Values that are given to run are not named as columns are: those would be written.
    """
    if engine == "postgresql":
        written = first.returning(*JOB.c).cte("written")
        parts = [part.cte(f"part_{number}") for number, part in enumerate(follow(written))]
        whole = select(*shown(written)).select_from(written).add_cte(*parts)
        return OneTrip.of(whole) if often else InTurn(whole)
    now = select(*shown(JOB)).where(JOB.c.id == _ID)
    return InTurn(first.returning(JOB.c.id), (*follow(_NOW), now))


def begins(row: FromClause) -> Insert:
    """The attempt of a job that was claimed."""
    of = row.c
    values = select(of.id, of.attempts, of.generation, of.fence, of.lease_owner, of.heartbeat_at)
    columns = ["job_id", "number", "generation", "fence", "owner", "started_at"]
    return insert(_ATTEMPT).from_select(columns, values, include_defaults=False)


def ends(row: FromClause, outcome: ColumnElement[Any]) -> Update:
    """The attempt of a job that was let go: by its key, so that it is found as quickly among many."""
    last = (
        _ATTEMPT.c.job_id == select(row.c.id).scalar_subquery(),
        _ATTEMPT.c.number == select(row.c.attempts).scalar_subquery(),
    )
    return update(_ATTEMPT).where(*last).values(ended_at=clock.now(), outcome=outcome)


def told(row: FromClause, kind: ColumnElement[Any], **values: ColumnElement[Any]) -> Insert:
    """The event of it."""
    columns = ["at", "kind", "payload"]
    fact = select(clock.now(), kind, facts(**values)).select_from(row)
    return insert(_EVENT).from_select(columns, fact, include_defaults=False)
