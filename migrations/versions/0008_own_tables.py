"""The triggers' functions on PostgreSQL look at the registry's own tables, whatever their caller made."""

from __future__ import annotations

from alembic import op

from migrations import guards_0008

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Functions only."""
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        bind.exec_driver_sql(guards_0008.FIX.replace("%", "%%"))
