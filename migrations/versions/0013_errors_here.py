"""Why a job or an attempt failed, in two texts: one for everybody, one with the places of the machine."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

UNSORTED = "Its reason may name places of the service's machine, where affinery job show tells it."


def upgrade() -> None:
    """Columns, added in place. Nobody looked through the reasons that are there: others are not told them."""
    for table in ("job", "attempt"):
        op.add_column(table, sa.Column("error_here", sa.String(), nullable=True))
        change = sa.text(f"UPDATE {table} SET error_here = error, error = :told WHERE error IS NOT NULL")
        op.execute(change.bindparams(told=UNSORTED))
