"""Whether another job waits for one: its end then need not look for who does."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column, added in place, so that every guard stays where it is."""
    op.add_column("job", sa.Column("awaited", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE job SET awaited = true WHERE id IN (SELECT needs_job_id FROM job_dependency)")
