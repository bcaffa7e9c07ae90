"""The database's clock, in SQL: leases, delays and schedules follow it, never a worker's own."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Float, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from registry.columns import UtcDateTime


class _Clock(FunctionElement[datetime]):
    """So many seconds from now, on the database's clock, as it stands when a statement begins."""

    name = "clock"
    type = UtcDateTime()
    inherit_cache = True


def now() -> _Clock:
    """The present."""
    return _Clock()


def later(seconds: float | ColumnElement[float]) -> _Clock:
    """So many seconds from now; before now where they are negative."""
    return _Clock(seconds if isinstance(seconds, ColumnElement) else literal(float(seconds), Float()))


@compiles(_Clock, "sqlite")
def _sqlite(element: _Clock, compiler: Any, **given: Any) -> str:
    # As SQLAlchemy writes an instant there: text, with six digits of a second.
    shift = compiler.process(element.clauses, **given)
    moved = f", printf('%+.3f seconds', {shift})" if shift else ""
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now'{moved}) || '000')"


@compiles(_Clock, "postgresql")
def _postgresql(element: _Clock, compiler: Any, **given: Any) -> str:
    # Not now(): a transaction that waited for a lock would live in the past.
    shift = compiler.process(element.clauses, **given)
    return f"(statement_timestamp() + make_interval(secs => {shift}))" if shift else "statement_timestamp()"
