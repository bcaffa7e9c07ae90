"""Alembic's environment: the connection and its transaction are those of migrations.upgrade."""

from __future__ import annotations

from alembic import context

from registry.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # Table copies on SQLite drop triggers: a revision that needs one recreates its guards itself.
    render_as_batch=False,
)
context.run_migrations()
