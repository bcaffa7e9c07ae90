"""Aliases, tags, notes, and metrics to search by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations import guards_0002

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """New tables only: no table is copied, so every guard of the first schema stays where it is."""
    op.create_table(
        "alias_move",
        sa.Column("task_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("backbone_id", ID, nullable=False),
        sa.Column("adapter_id", ID, nullable=True),
        sa.Column("gate", JSON, nullable=True),
        sa.Column("at", INSTANT, nullable=False),
        sa.CheckConstraint("number >= 1", name=op.f("ck_alias_move_number")),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64", name=op.f("ck_alias_move_name")),
        sa.ForeignKeyConstraint(
            ["task_id", "backbone_id"],
            ["task.node_id", "task.backbone_id"],
            name="fk_alias_move_task_id_backbone_id",
        ),
        sa.ForeignKeyConstraint(
            ["adapter_id", "task_id", "backbone_id"],
            ["adapter.node_id", "adapter.task_id", "adapter.backbone_id"],
            name="fk_alias_move_adapter_id_task_id_backbone_id",
        ),
        sa.PrimaryKeyConstraint("task_id", "name", "number", name="pk_alias_move"),
    )
    op.create_index("ix_alias_move_adapter_id", "alias_move", ["adapter_id"], unique=False)
    op.create_table(
        "tag",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("changed_at", INSTANT, nullable=False),
        sa.CheckConstraint("length(key) BETWEEN 1 AND 64", name=op.f("ck_tag_key")),
        sa.CheckConstraint("length(value) BETWEEN 1 AND 500", name=op.f("ck_tag_value")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_tag_node_id"),
        sa.PrimaryKeyConstraint("node_id", "key", name="pk_tag"),
    )
    op.create_index("ix_tag_key_value_node_id", "tag", ["key", "value", "node_id"], unique=False)
    op.create_table(
        "note",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("changed_at", INSTANT, nullable=False),
        sa.CheckConstraint("length(text) BETWEEN 1 AND 10000", name=op.f("ck_note_text")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_note_node_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_note"),
    )
    op.create_table(
        "metric",
        sa.Column("adapter_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.node_id"], name="fk_metric_adapter_id"),
        sa.PrimaryKeyConstraint("adapter_id", "name", name="pk_metric"),
    )
    op.create_index(
        "ix_metric_name_value_adapter_id", "metric", ["name", "value", "adapter_id"], unique=False
    )
    dialect = op.get_bind().dialect.name
    op.get_bind().exec_driver_sql(guards_0002.fill_metrics(dialect))
    if dialect == "sqlite":
        for trigger in guards_0002.sqlite().values():
            op.get_bind().exec_driver_sql(trigger)
        return
    for function, trigger in guards_0002.postgresql().values():
        op.get_bind().exec_driver_sql(function)
        op.get_bind().exec_driver_sql(trigger)
