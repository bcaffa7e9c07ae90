"""A job kind more: retention, which measures what a backbone remembers."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

BEFORE = "kind IN ('train', 'evaluate', 'export', 'rebase', 'verify')"
NOW = "kind IN ('train', 'evaluate', 'export', 'rebase', 'verify', 'retention')"


def upgrade() -> None:
    """The check alone: no row is copied, so every guard stays where it is."""
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        op.drop_constraint(op.f("ck_job_kind"), "job")
        op.create_check_constraint(op.f("ck_job_kind"), "job", NOW)
        return
    # SQLite changes no check; a wider one is written in its place, as its manual says (lang_altertable, 7).
    version = bind.exec_driver_sql("PRAGMA schema_version").scalar_one()
    bind.exec_driver_sql("PRAGMA writable_schema = ON")
    bind.exec_driver_sql(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'job'",
        (BEFORE, NOW),
    )
    bind.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    bind.exec_driver_sql("PRAGMA writable_schema = RESET")
