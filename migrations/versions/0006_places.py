"""Rows keep their place: on SQLite nothing is written over or moved by its rowid."""

from __future__ import annotations

from alembic import op

from migrations import guards_0006

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Triggers only."""
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        for trigger in guards_0006.sqlite().values():
            bind.exec_driver_sql(trigger)
