"""The registry's first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations import guards_0001

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "blob",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_blob_digest")),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_blob_size")),
        sa.PrimaryKeyConstraint("digest", name="pk_blob"),
        sa.UniqueConstraint("digest", "size_bytes", name="uq_blob_digest_size_bytes"),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("strategy", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("run_at", INSTANT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(), nullable=True),
        sa.Column("lease_expires_at", INSTANT, nullable=True),
        sa.Column("heartbeat_at", INSTANT, nullable=True),
        sa.Column("progress", JSON, nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.CheckConstraint("kind IN ('train')", name=op.f("ck_job_kind")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name=op.f("ck_job_state")
        ),
        sa.CheckConstraint("strategy IN ('co-trained', 'sequential')", name=op.f("ck_job_strategy")),
        sa.CheckConstraint("fence >= 0", name=op.f("ck_job_fence")),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint("idempotency_key", name="uq_job_idempotency_key"),
    )
    op.create_index("ix_job_state_priority_run_at", "job", ["state", "priority", "run_at"], unique=False)
    op.create_table(
        "node",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("digest", sa.String().with_variant(sa.String(collation="C"), "postgresql"), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_node_digest")),
        sa.PrimaryKeyConstraint("id", name="pk_node"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_node_digest", "node", ["digest"], unique=False)
    op.create_index("ix_node_kind_id", "node", ["kind", "id"], unique=False)
    op.create_table(
        "registry_info",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_registry_info"),
    )
    op.create_table(
        "series",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("next_version", sa.Integer(), nullable=False),
        sa.CheckConstraint("next_version >= 1", name=op.f("ck_series_counts_up")),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_series"),
    )
    op.create_table(
        "upload",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_upload"),
    )
    op.create_index("ix_upload_expires_at", "upload", ["expires_at"], unique=False)
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT, nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.CheckConstraint("number >= 1", name=op.f("ck_attempt_number")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_attempt_job_id"),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_attempt"),
    )
    op.create_table(
        "backbone",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("blob_digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("num_classes", sa.Integer(), nullable=False),
        sa.Column("null_index", sa.Integer(), nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("parent_id", ID, nullable=True),
        sa.CheckConstraint("num_classes >= 0 AND null_index >= 0", name=op.f("ck_backbone_classes")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_backbone_version")),
        sa.ForeignKeyConstraint(
            ["blob_digest", "size_bytes"],
            ["blob.digest", "blob.size_bytes"],
            name="fk_backbone_blob_digest_size_bytes",
        ),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_backbone_node_id"),
        sa.ForeignKeyConstraint(["parent_id"], ["backbone.node_id"], name="fk_backbone_parent_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_backbone"),
        sa.UniqueConstraint("name", "version", name="uq_backbone_name_version"),
    )
    op.create_index("ix_backbone_blob_digest", "backbone", ["blob_digest"], unique=False)
    op.create_table(
        "dataset",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("dvc_md5", sa.String(), nullable=False),
        sa.Column("dvc_path", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("image_count", sa.Integer(), nullable=False),
        sa.Column("classes", JSON, nullable=False),
        sa.Column("class_counts", JSON, nullable=False),
        sa.Column("licence", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.CheckConstraint("size_bytes >= 0 AND image_count >= 1", name=op.f("ck_dataset_size")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_dataset_version")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_dataset_node_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_dataset"),
        sa.UniqueConstraint("name", "version", name="uq_dataset_name_version"),
    )
    op.create_table(
        "edge",
        sa.Column("child", ID, nullable=False),
        sa.Column("parent", ID, nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("pos", sa.Integer(), nullable=False),
        sa.CheckConstraint("parent < child", name=op.f("ck_edge_no_cycle")),
        sa.ForeignKeyConstraint(["child"], ["node.id"], name="fk_edge_child"),
        sa.ForeignKeyConstraint(["parent"], ["node.id"], name="fk_edge_parent"),
        sa.PrimaryKeyConstraint("child", "parent", "role", name="pk_edge"),
    )
    op.create_index("ix_edge_parent_child", "edge", ["parent", "child"], unique=False)
    op.create_table(
        "event",
        sa.Column("id", ID, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", ID, nullable=True),
        sa.Column("payload", JSON, nullable=False),
        sa.ForeignKeyConstraint(["subject"], ["node.id"], name="fk_event_subject"),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_event_kind_id", "event", ["kind", "id"], unique=False)
    op.create_index("ix_event_subject_id", "event", ["subject", "id"], unique=False)
    op.create_table(
        "job_dependency",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("needs_job_id", sa.String(), nullable=False),
        sa.CheckConstraint("job_id <> needs_job_id", name=op.f("ck_job_dependency_not_itself")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_job_dependency_job_id"),
        sa.ForeignKeyConstraint(["needs_job_id"], ["job.id"], name="fk_job_dependency_needs_job_id"),
        sa.PrimaryKeyConstraint("job_id", "needs_job_id", name="pk_job_dependency"),
    )
    op.create_index("ix_job_dependency_needs_job_id", "job_dependency", ["needs_job_id"], unique=False)
    op.create_table(
        "class_block",
        sa.Column("owner_id", ID, autoincrement=False, nullable=False),
        sa.Column("backbone_id", ID, nullable=False),
        sa.Column("lo", sa.Integer(), nullable=False),
        sa.Column("hi", sa.Integer(), nullable=False),
        sa.CheckConstraint("(owner_id = backbone_id) = (lo = 0)", name=op.f("ck_class_block_own_rows_first")),
        sa.CheckConstraint("0 <= lo AND lo < hi AND hi <= 2147483647", name=op.f("ck_class_block_half_open")),
        sa.ForeignKeyConstraint(["backbone_id"], ["backbone.node_id"], name="fk_class_block_backbone_id"),
        sa.ForeignKeyConstraint(["owner_id"], ["node.id"], name="fk_class_block_owner_id"),
        sa.PrimaryKeyConstraint("owner_id", name="pk_class_block"),
        sa.UniqueConstraint("backbone_id", "lo", name="uq_class_block_backbone_id_lo"),
        sa.UniqueConstraint(
            "owner_id", "backbone_id", "lo", "hi", name="uq_class_block_owner_id_backbone_id_lo_hi"
        ),
    )
    op.create_table(
        "composition",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("backbone_id", ID, nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("last_pos", sa.Integer(), nullable=False),
        sa.CheckConstraint("mode IN ('routed', 'merged')", name=op.f("ck_composition_mode")),
        sa.CheckConstraint("last_pos >= 0", name=op.f("ck_composition_has_members")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_composition_version")),
        sa.ForeignKeyConstraint(["backbone_id"], ["backbone.node_id"], name="fk_composition_backbone_id"),
        sa.ForeignKeyConstraint(
            ["node_id", "last_pos"],
            ["composition_member.composition_id", "composition_member.pos"],
            name="fk_composition_node_id_last_pos",
            initially="DEFERRED",
            deferrable=True,
            use_alter=True,
        ),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_composition_node_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_composition"),
        sa.UniqueConstraint("name", "version", name="uq_composition_name_version"),
        sa.UniqueConstraint("node_id", "backbone_id", name="uq_composition_node_id_backbone_id"),
    )
    op.create_index("ix_composition_backbone_id", "composition", ["backbone_id"], unique=False)
    op.create_table(
        "export",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("composition_id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("version >= 1 AND size_bytes >= 0", name=op.f("ck_export_size")),
        sa.ForeignKeyConstraint(["composition_id"], ["composition.node_id"], name="fk_export_composition_id"),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_export_node_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_export"),
        sa.UniqueConstraint("name", "version", name="uq_export_name_version"),
    )
    op.create_index("ix_export_composition_id", "export", ["composition_id"], unique=False)
    op.create_table(
        "task",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("backbone_id", ID, nullable=False),
        sa.Column("dataset_id", ID, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("config", JSON, nullable=False),
        sa.Column("classes", JSON, nullable=False),
        sa.Column("lo", sa.Integer(), nullable=False),
        sa.Column("hi", sa.Integer(), nullable=False),
        sa.Column("next_version", sa.Integer(), nullable=False),
        sa.CheckConstraint("next_version >= 1", name=op.f("ck_task_counts_up")),
        sa.ForeignKeyConstraint(["backbone_id"], ["backbone.node_id"], name="fk_task_backbone_id"),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.node_id"], name="fk_task_dataset_id"),
        sa.ForeignKeyConstraint(
            ["node_id", "backbone_id", "lo", "hi"],
            ["class_block.owner_id", "class_block.backbone_id", "class_block.lo", "class_block.hi"],
            name="fk_task_node_id_backbone_id_lo_hi",
        ),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_task_node_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_task"),
        sa.UniqueConstraint("name", name="uq_task_name"),
        sa.UniqueConstraint("node_id", "backbone_id", name="uq_task_node_id_backbone_id"),
    )
    op.create_index("ix_task_backbone_id", "task", ["backbone_id"], unique=False)
    op.create_index("ix_task_dataset_id", "task", ["dataset_id"], unique=False)
    op.create_table(
        "job_task",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("task_id", ID, autoincrement=False, nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_job_task_job_id"),
        sa.ForeignKeyConstraint(["task_id"], ["task.node_id"], name="fk_job_task_task_id"),
        sa.PrimaryKeyConstraint("job_id", "task_id", name="pk_job_task"),
    )
    op.create_index(
        "uq_job_task_live",
        "job_task",
        ["task_id"],
        unique=True,
        sqlite_where=sa.text("live"),
        postgresql_where=sa.text("live"),
    )
    op.create_table(
        "run",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("task_id", ID, nullable=False),
        sa.Column("mlflow_run_id", sa.String(), nullable=True),
        sa.Column("mlflow_experiment", sa.String(), nullable=True),
        sa.Column("config", JSON, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("code_version", sa.String(), nullable=False),
        sa.Column("environment", JSON, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_run_job_id"),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_run_node_id"),
        sa.ForeignKeyConstraint(["task_id"], ["task.node_id"], name="fk_run_task_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_run"),
        sa.UniqueConstraint("job_id", "task_id", "mlflow_run_id", name="uq_run_job_id_task_id_mlflow_run_id"),
    )
    op.create_index("ix_run_task_id", "run", ["task_id"], unique=False)
    op.create_table(
        "adapter",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("task_id", ID, nullable=False),
        sa.Column("backbone_id", ID, nullable=False),
        sa.Column("dataset_id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=True),
        sa.Column("warm_start_id", ID, nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("blob_digest", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("config", JSON, nullable=False),
        sa.Column("provenance", JSON, nullable=False),
        sa.Column("metrics", JSON, nullable=False),
        sa.Column("mlflow_run_id", sa.String(), nullable=True),
        sa.Column("golden_blob", sa.String(), nullable=True),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=True),
        sa.CheckConstraint("(job_id IS NULL) = (fence IS NULL)", name=op.f("ck_adapter_fenced")),
        sa.CheckConstraint("parameters >= 0", name=op.f("ck_adapter_parameters")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_adapter_version")),
        sa.ForeignKeyConstraint(
            ["blob_digest", "size_bytes"],
            ["blob.digest", "blob.size_bytes"],
            name="fk_adapter_blob_digest_size_bytes",
        ),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.node_id"], name="fk_adapter_dataset_id"),
        sa.ForeignKeyConstraint(["golden_blob"], ["blob.digest"], name="fk_adapter_golden_blob"),
        sa.ForeignKeyConstraint(
            ["job_id", "task_id"], ["job_task.job_id", "job_task.task_id"], name="fk_adapter_job_id_task_id"
        ),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_adapter_node_id"),
        sa.ForeignKeyConstraint(["run_id"], ["run.node_id"], name="fk_adapter_run_id"),
        sa.ForeignKeyConstraint(
            ["task_id", "backbone_id"],
            ["task.node_id", "task.backbone_id"],
            name="fk_adapter_task_id_backbone_id",
        ),
        sa.ForeignKeyConstraint(["warm_start_id"], ["adapter.node_id"], name="fk_adapter_warm_start_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_adapter"),
        sa.UniqueConstraint(
            "node_id", "task_id", "backbone_id", name="uq_adapter_node_id_task_id_backbone_id"
        ),
        sa.UniqueConstraint("task_id", "version", name="uq_adapter_task_id_version"),
    )
    op.create_index("ix_adapter_backbone_id", "adapter", ["backbone_id"], unique=False)
    op.create_index("ix_adapter_blob_digest", "adapter", ["blob_digest"], unique=False)
    op.create_index("ix_adapter_dataset_id", "adapter", ["dataset_id"], unique=False)
    op.create_index("ix_adapter_job_id", "adapter", ["job_id"], unique=False)
    op.create_table(
        "certificate",
        sa.Column("node_id", ID, autoincrement=False, nullable=False),
        sa.Column("adapter_id", ID, nullable=False),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("results", JSON, nullable=False),
        sa.CheckConstraint(
            "level IN ('bit-exact', 'tolerance', 'unverified')", name=op.f("ck_certificate_level")
        ),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.node_id"], name="fk_certificate_adapter_id"),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name="fk_certificate_node_id"),
        sa.PrimaryKeyConstraint("node_id", name="pk_certificate"),
    )
    op.create_index("ix_certificate_adapter_id", "certificate", ["adapter_id"], unique=False)
    op.create_table(
        "composition_member",
        sa.Column("composition_id", ID, autoincrement=False, nullable=False),
        sa.Column("pos", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("adapter_id", ID, nullable=False),
        sa.Column("task_id", ID, nullable=False),
        sa.Column("backbone_id", ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id", "task_id", "backbone_id"],
            ["adapter.node_id", "adapter.task_id", "adapter.backbone_id"],
            name="fk_composition_member_adapter_id_task_id_backbone_id",
        ),
        sa.ForeignKeyConstraint(
            ["composition_id", "backbone_id"],
            ["composition.node_id", "composition.backbone_id"],
            name="fk_composition_member_composition_id_backbone_id",
        ),
        sa.PrimaryKeyConstraint("composition_id", "pos", name="pk_composition_member"),
        sa.UniqueConstraint("composition_id", "task_id", name="uq_composition_member_composition_id_task_id"),
    )
    op.create_index("ix_composition_member_adapter_id", "composition_member", ["adapter_id"], unique=False)
    _guard()


def _guard() -> None:
    """What a table definition cannot say: see migrations/guards_0001.py."""
    if op.get_bind().dialect.name == "sqlite":
        for trigger in guards_0001.sqlite().values():
            op.execute(trigger)
        return
    # SQLite wrote this key with its table; here the two tables that name each other are joined afterwards.
    op.create_foreign_key(
        "fk_composition_node_id_last_pos",
        "composition",
        "composition_member",
        ["node_id", "last_pos"],
        ["composition_id", "pos"],
        initially="DEFERRED",
        deferrable=True,
    )
    # Backbone and row are folded into one number, so that no extension (btree_gist) is needed.
    op.execute(
        "ALTER TABLE class_block ADD CONSTRAINT ex_class_block_no_overlap EXCLUDE USING gist "
        "(int8range(backbone_id * 2147483648 + lo, backbone_id * 2147483648 + hi) WITH &&)"
    )
    for function, trigger in guards_0001.postgresql().values():
        op.execute(function)
        op.execute(trigger)
