"""Tokens with scopes, and the browsers that showed one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """New tables: none is copied, so every guard stays where it is."""
    op.create_table(
        "token",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("tasks", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=True),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64", name=op.f("ck_token_name")),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_token_digest")),
        sa.CheckConstraint("scope IN ('read', 'schedule', 'promote', 'admin')", name=op.f("ck_token_scope")),
        sa.PrimaryKeyConstraint("id", name="pk_token"),
        sa.UniqueConstraint("name", name="uq_token_name"),
        sa.UniqueConstraint("digest", name="uq_token_digest"),
    )
    op.create_table(
        "browser_session",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("token_digest", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_browser_session_digest")),
        sa.CheckConstraint("length(token_digest) = 64", name=op.f("ck_browser_session_token")),
        sa.PrimaryKeyConstraint("digest", name="pk_browser_session"),
    )
    op.create_index("ix_browser_session_expires_at", "browser_session", ["expires_at"], unique=False)
    op.create_index("ix_browser_session_token_digest", "browser_session", ["token_digest"], unique=False)
