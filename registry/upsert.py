"""Rows that two transactions may write at once, of which one is enough."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from registry.models import Base


def insert_if_new(session: Session, table: type[Base], values: dict[str, Any]) -> bool:
    """Write a row that was not there a moment ago; whether it was this transaction that wrote it.

    Where another transaction writes the same key, this waits for its end.
    """
    if session.get_bind().dialect.name == "sqlite":
        session.execute(insert(table), [values])  # writers take turns there, so nobody can have been faster
        return True
    from sqlalchemy.dialects.postgresql import insert as upsert

    statement = upsert(table).values(values).on_conflict_do_nothing().returning(*table.__table__.primary_key)
    return session.execute(statement).first() is not None
