"""Evaluations; names that change; versions that follow versions; what a job's tasks learn and begin from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations import guards_0005

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
# table, column, what it names: added in place, so no table is copied and every guard stays where it is.
ADDED = (
    ("dataset", "parent_id", "dataset"),
    ("task", "predecessor_id", "task"),
    ("job_task", "dataset_id", "dataset"),
    ("job_task", "warm_start_id", "adapter"),
)


def upgrade() -> None:
    """New tables and columns, and the triggers of guards_0005, some in place of earlier ones."""
    _evaluations()
    _renamings()
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    for table, column, named in ADDED:
        key = f"CONSTRAINT fk_{table}_{column} REFERENCES {named} (node_id)"
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind} {key}")
    op.create_index("ix_job_task_dataset_id", "job_task", ["dataset_id"], unique=False)
    op.create_index("ix_adapter_warm_start_id", "adapter", ["warm_start_id"], unique=False)
    op.create_index("uq_task_successor", "task", ["predecessor_id", "backbone_id"], unique=True)
    _guard()


def _evaluations() -> None:
    op.create_table(
        "evaluation",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("adapter_id", ID, nullable=False),
        sa.Column("dataset_id", ID, nullable=False),
        sa.Column("protocol", JSON, nullable=False),
        sa.Column("protocol_digest", sa.String(), nullable=False),
        sa.Column("results", JSON, nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=True),
        sa.CheckConstraint("length(protocol_digest) = 64", name=op.f("ck_evaluation_protocol")),
        sa.CheckConstraint("(job_id IS NULL) = (fence IS NULL)", name=op.f("ck_evaluation_fenced")),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.node_id"], name="fk_evaluation_adapter_id"),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.node_id"], name="fk_evaluation_dataset_id"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_evaluation_job_id"),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_evaluation_node_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_evaluation"),
    )
    for columns in (
        ["adapter_id", "protocol_digest", "node_id"],
        ["protocol_digest", "adapter_id"],
        ["dataset_id"],
        ["job_id"],
    ):
        op.create_index(f"ix_evaluation_{'_'.join(columns)}", "evaluation", columns, unique=False)
    op.create_table(
        "figure",
        sa.Column("evaluation_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["evaluation_id"], ["evaluation.node_id"], name="fk_figure_evaluation_id"),
        sa.PrimaryKeyConstraint("evaluation_id", "name", name="pk_figure"),
    )
    op.create_index(
        "ix_figure_name_value_evaluation_id", "figure", ["name", "value", "evaluation_id"], unique=False
    )


def _renamings() -> None:
    op.create_table(
        "renaming",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("was", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.CheckConstraint("was <> name", name=op.f("ck_renaming_changes")),
        sa.PrimaryKeyConstraint("id", name="pk_renaming"),
        sqlite_autoincrement=True,
    )
    for column in ("was", "name", "origin"):
        op.create_index(f"ix_renaming_kind_{column}_id", "renaming", ["kind", column, "id"], unique=False)


def _guard() -> None:
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        for name, trigger in guards_0005.sqlite().items():
            bind.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
            bind.exec_driver_sql(trigger)
        return
    for name, (function, trigger) in guards_0005.postgresql().items():
        table = trigger.split(" ON ")[1].split()[0]
        bind.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name} ON {table}")
        bind.exec_driver_sql(function)
        bind.exec_driver_sql(trigger)
