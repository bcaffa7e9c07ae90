"""Rows that two transactions may write at once, of which one is enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from registry.models import Base


def insert_if_new(session: Session, table: type[Base], values: dict[str, Any]) -> bool:
    """Write a row that was not there a moment ago; whether it was this transaction that wrote it.

    Where another transaction writes the same key, this waits for its end.
    """
    return insert_new(session, table, [values]) == 1


def insert_new(session: Session, table: type[Base], rows: Sequence[dict[str, Any]]) -> int:
    """The same of several rows in one statement: how many of them this transaction wrote."""
    if not rows:
        return 0
    if session.get_bind().dialect.name == "sqlite":
        session.execute(insert(table.rows()), rows)  # writers take turns: nobody can have been faster
        return len(rows)
    from sqlalchemy.dialects.postgresql import insert as upsert

    statement = upsert(table.rows()).on_conflict_do_nothing().returning(*table.rows().primary_key)
    return len(session.execute(statement, rows).all())
