"""Rows that two transactions may write at once, of which one is enough."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Insert, Table, bindparam, exists, insert, select
from sqlalchemy.orm import Session

from registry.models import Base


def insert_if_new(session: Session, table: type[Base], values: dict[str, Any]) -> bool:
    """Write a row, every column given, unless its key is there; whether it was written.

    Where another transaction writes the same key, this waits for its end.
    """
    if session.get_bind().dialect.name != "sqlite":
        return insert_new(session, table, [values]) == 1
    written: Any = session.connection().execute(_unless_there(table.rows()), values)
    return bool(written.rowcount)


def insert_new(session: Session, table: type[Base], rows: Sequence[dict[str, Any]]) -> int:
    """Write rows that were not there a moment ago, in one statement: how many this transaction wrote."""
    if not rows:
        return 0
    if session.get_bind().dialect.name == "sqlite":
        session.execute(insert(table.rows()), rows)  # writers take turns: nobody can have been faster
        return len(rows)
    return len(session.execute(_or_nothing(table.rows()), rows).all())


@cache
def _unless_there(table: Table) -> Insert:
    """On SQLite, where a trigger refuses the row before a conflict could be passed over."""
    given = {column.name: bindparam(column.name, type_=column.type) for column in table.columns}
    there = exists().where(*(column == given[column.name] for column in table.primary_key))
    return insert(table).from_select(
        list(given), select(*given.values()).where(~there), include_defaults=False
    )


@cache
def _or_nothing(table: Table) -> Insert:
    from sqlalchemy.dialects.postgresql import insert as upsert

    return upsert(table).on_conflict_do_nothing().returning(*table.primary_key)
