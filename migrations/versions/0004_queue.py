"""The queue: job kinds, resources, requests, generations, schedules and limits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations import guards_0004

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB(), "postgresql")

CHECKS = {
    "kind": "kind IN ('train', 'evaluate', 'export', 'rebase', 'verify')",
    "strategy": "strategy IN ('sequential', 'co-trained', 'parallel', 'data-parallel')",
    "state": "state IN ('queued', 'running', 'paused', 'done', 'dead', 'cancelled')",
    "request": "request IN ('cancel', 'pause')",
    "asked_while_running": "request IS NULL OR state = 'running'",
    "leased": "lease_expires_at IS NULL OR state = 'running'",
    "counts_up": "fence >= 0 AND generation >= 0 AND attempts >= 0 AND failures >= 0",
    "waits": "waits >= 0",
    "at_least_one": "workers >= 1 AND max_attempts >= 1",
    "resources": "cpus >= 0 AND gpus >= 0 AND memory_bytes >= 0",
    "timeout": "timeout_seconds > 0",
}
# What an earlier row is in this schema: column → expression over the earlier table.
ENDED = "(SELECT count(*) FROM attempt WHERE job_id = old.id AND outcome IN ('failed', 'lost'))"
NEED = (
    "FROM job_dependency JOIN {jobs} AS need ON need.id = job_dependency.needs_job_id "
    "WHERE job_dependency.job_id = old.id AND need.state"
)
FILLED = {
    "id": "id",
    "number": "row_number() OVER (ORDER BY created_at, id)",
    "kind": "kind",
    "strategy": "strategy",
    "workers": "1",
    "state": "CASE state WHEN 'failed' THEN 'dead' ELSE state END",
    "priority": "priority",
    "payload": "{payload}",
    "backbone_id": (
        "(SELECT task.backbone_id FROM job_task JOIN task ON task.node_id = job_task.task_id "
        "WHERE job_task.job_id = old.id LIMIT 1)"
    ),
    "run_at": "run_at",
    "created_at": "created_at",
    "fence": "fence",
    "generation": "0",
    "attempts": "(SELECT count(*) FROM attempt WHERE job_id = old.id)",
    "failures": ENDED,
    "max_attempts": "5",
    "waits": f"(SELECT count(*) {NEED} <> 'done')",
    "lost_need_id": f"(SELECT min(need.id) {NEED} IN ('failed', 'cancelled'))",
    "lease_owner": "lease_owner",
    "lease_expires_at": "CASE state WHEN 'running' THEN coalesce(lease_expires_at, created_at) END",
    "heartbeat_at": "heartbeat_at",
    "progress": "progress",
    "error": "error",
    "idempotency_key": "idempotency_key",
}
PAYLOAD = {
    "sqlite": "json_object('recipe', json(recipe))",
    "postgresql": "jsonb_build_object('recipe', recipe)",
}


def upgrade() -> None:
    op.create_table(
        "schedule",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("cron", sa.String(), nullable=False),
        sa.Column("timezone", sa.String(), nullable=False),
        sa.Column("when_changed", sa.Boolean(), nullable=False),
        sa.Column("together", sa.Boolean(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("task_ids", JSON, nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("submitted_by", sa.String(), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("next_run_at", INSTANT, nullable=False),
        sa.Column("last_run_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_schedule"),
        sa.UniqueConstraint("name", name="uq_schedule_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_schedule_next_run_at", "schedule", ["next_run_at"])
    op.create_table(
        "queue_limit",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("most", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "scope IN ('backbone', 'submitter', 'resource')", name=op.f("ck_queue_limit_scope")
        ),
        sa.CheckConstraint("most >= 0", name=op.f("ck_queue_limit_most")),
        sa.PrimaryKeyConstraint("scope", "key", name="pk_queue_limit"),
    )
    op.add_column("attempt", sa.Column("generation", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("attempt", sa.Column("owner", sa.String(), nullable=True))
    op.create_index("ix_job_task_task_id", "job_task", ["task_id"])
    if op.get_bind().dialect.name == "sqlite":
        _write_anew_on_sqlite()
    else:
        _alter_on_postgresql()
    for name, columns, condition in (
        ("ix_job_ready", ["state", "waits", "rank", "number"], "state = 'queued' AND waits = 0"),
        ("ix_job_lease", ["lease_expires_at"], "state = 'running'"),
        ("ix_job_hopeless", ["number"], "lost_need_id IS NOT NULL AND state IN ('queued', 'paused')"),
    ):
        only = sa.text(condition)
        op.create_index(name, "job", columns, sqlite_where=only, postgresql_where=only)
    op.create_index("ix_job_state_number", "job", ["state", "number"])
    op.create_index("ix_job_backbone_id_state", "job", ["backbone_id", "state"])


def _columns() -> list[sa.Column[object]]:
    """The job's columns that the earlier schemas had not, and those that changed, as they are now."""
    return [
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.Integer(), sa.Computed("-priority", persisted=True), nullable=False),
        sa.Column("workers", sa.Integer(), nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("submitted_by", sa.String(), nullable=True),
        sa.Column("cpus", sa.Double(), nullable=True),
        sa.Column("gpus", sa.Double(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("backbone_id", ID, nullable=True),
        sa.Column("schedule_id", ID, nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("timeout_seconds", sa.Double(), nullable=True),
        sa.Column("waits", sa.Integer(), nullable=False),
        sa.Column("lost_need_id", sa.String(), nullable=True),
        sa.Column("request", sa.String(), nullable=True),
        sa.Column("requested_by", sa.String(), nullable=True),
        sa.Column("requested_at", INSTANT, nullable=True),
    ]


def _filled(jobs: str, dialect: str) -> dict[str, str]:
    return {
        column: expression.format(jobs=jobs, payload=PAYLOAD[dialect])
        for column, expression in FILLED.items()
    }


def _write_anew_on_sqlite() -> None:
    """SQLite changes no checks: the rows are put aside, and written into a new table of the same name."""
    bind = op.get_bind()
    # Rows that name a job find it again before this transaction ends; dropping the table fires no trigger.
    bind.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
    for trigger in ("job_task_live_insert", "job_task_live_update"):
        bind.exec_driver_sql(f"DROP TRIGGER {trigger}")
    filled = _filled("job", "sqlite")
    chosen = ", ".join(f"{expression} AS {column}" for column, expression in filled.items())
    bind.exec_driver_sql(f"CREATE TEMPORARY TABLE job_aside AS SELECT {chosen} FROM job AS old")
    op.drop_table("job")
    op.create_table(
        "job",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("strategy", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("run_at", INSTANT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(), nullable=True),
        sa.Column("lease_expires_at", INSTANT, nullable=True),
        sa.Column("heartbeat_at", INSTANT, nullable=True),
        sa.Column("progress", JSON, nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        *_columns(),
        *(sa.CheckConstraint(check, name=op.f(f"ck_job_{name}")) for name, check in CHECKS.items()),
        sa.ForeignKeyConstraint(["backbone_id"], ["backbone.node_id"], name="fk_job_backbone_id"),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedule.id"], name="fk_job_schedule_id"),
        sa.ForeignKeyConstraint(["lost_need_id"], ["job.id"], name="fk_job_lost_need_id"),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint("idempotency_key", name="uq_job_idempotency_key"),
        sa.UniqueConstraint("number", name="uq_job_number"),
    )
    columns = ", ".join(filled)
    bind.exec_driver_sql(f"INSERT INTO job ({columns}) SELECT {columns} FROM job_aside")
    bind.exec_driver_sql("DROP TABLE job_aside")
    for trigger in guards_0004.sqlite().values():
        bind.exec_driver_sql(trigger)


def _alter_on_postgresql() -> None:
    bind = op.get_bind()
    made = guards_0004.postgresql()
    for name, (_, trigger) in made.items():
        table = "job_task" if " ON job_task " in trigger else "job"
        bind.exec_driver_sql(f"DROP TRIGGER {name} ON {table}")
        bind.exec_driver_sql(f"DROP FUNCTION affinery_{name}()")
    for name in ("kind", "strategy", "state", "fence"):
        op.drop_constraint(op.f(f"ck_job_{name}"), "job")
    op.drop_index("ix_job_state_priority_run_at", "job")
    op.alter_column("job", "strategy", nullable=True)
    required = []
    for column in _columns():
        if not column.nullable and column.computed is None:
            required.append(column.name)
            column.nullable = True
        op.add_column("job", column)
    filled = _filled("job", "postgresql")
    chosen = ", ".join(f"{expression} AS {column}" for column, expression in filled.items())
    sets = ", ".join(f"{column} = filled.{column}" for column in filled if column != "id")
    bind.exec_driver_sql(
        f"UPDATE job SET {sets} FROM (SELECT {chosen} FROM job AS old) AS filled WHERE job.id = filled.id"
    )
    for name in required:
        op.alter_column("job", str(name), nullable=False)
    op.drop_column("job", "recipe")
    bind.exec_driver_sql("CREATE SEQUENCE job_number_seq OWNED BY job.number")
    bind.exec_driver_sql(
        "SELECT setval('job_number_seq', (SELECT coalesce(max(number), 0) + 1 FROM job), false)"
    )
    for name, check in CHECKS.items():
        op.create_check_constraint(op.f(f"ck_job_{name}"), "job", check)
    op.create_foreign_key("fk_job_backbone_id", "job", "backbone", ["backbone_id"], ["node_id"])
    op.create_foreign_key("fk_job_schedule_id", "job", "schedule", ["schedule_id"], ["id"])
    op.create_foreign_key("fk_job_lost_need_id", "job", "job", ["lost_need_id"], ["id"])
    op.create_unique_constraint("uq_job_number", "job", ["number"])
    for function, trigger in made.values():
        bind.exec_driver_sql(function)
        bind.exec_driver_sql(trigger)
