"""Requests by their idempotency keys, and adapters by their MLflow run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A new table and an index: no table is copied, so every guard stays where it is."""
    op.create_table(
        "request",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("answer", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(key) BETWEEN 1 AND 255", name=op.f("ck_request_key")),
        sa.CheckConstraint("length(fingerprint) = 64", name=op.f("ck_request_fingerprint")),
        sa.PrimaryKeyConstraint("key", name="pk_request"),
    )
    op.create_index("ix_request_at", "request", ["at"], unique=False)
    op.create_index("ix_adapter_mlflow_run_id", "adapter", ["mlflow_run_id"], unique=False)
