"""Names are changed in turns: on PostgreSQL nobody takes a name while it is being given up."""

from __future__ import annotations

from alembic import op

from migrations import guards_0007

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Triggers only."""
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        for function, trigger in guards_0007.postgresql().values():
            bind.exec_driver_sql(function)
            bind.exec_driver_sql(trigger)
