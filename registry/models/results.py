"""What was learnt, proved, composed and exported."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import Id
from registry.models.base import Base


class Run(Base):
    """One training of one task."""

    __tablename__ = "run"
    __table_args__ = (Unique("job_id", "task_id", "mlflow_run_id"), Index(None, "task_id"))

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    task_id: Mapped[int] = mapped_column(Id, ForeignKey("task.node_id"))
    mlflow_run_id: Mapped[str | None]
    mlflow_experiment: Mapped[str | None]
    config: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    code_version: Mapped[str]
    environment: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime]


class Adapter(Base):
    """A version of a task's adapter set. (task, backbone) is carried down to compositions as one key."""

    __tablename__ = "adapter"
    __table_args__ = (
        Unique("task_id", "version"),
        Unique("node_id", "task_id", "backbone_id"),
        ForeignKeyConstraint(["task_id", "backbone_id"], ["task.node_id", "task.backbone_id"]),
        ForeignKeyConstraint(["job_id", "task_id"], ["job_task.job_id", "job_task.task_id"]),
        ForeignKeyConstraint(["blob_digest", "size_bytes"], ["blob.digest", "blob.size_bytes"]),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("(job_id IS NULL) = (fence IS NULL)", name="fenced"),
        CheckConstraint("parameters >= 0", name="parameters"),
        Index(None, "backbone_id"),
        Index(None, "dataset_id"),
        Index(None, "job_id"),
        Index(None, "blob_digest"),
        Index(None, "mlflow_run_id"),
        Index(None, "warm_start_id"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    task_id: Mapped[int] = mapped_column(Id)
    backbone_id: Mapped[int] = mapped_column(Id)
    dataset_id: Mapped[int] = mapped_column(Id, ForeignKey("dataset.node_id"))
    run_id: Mapped[int | None] = mapped_column(Id, ForeignKey("run.node_id"))
    warm_start_id: Mapped[int | None] = mapped_column(Id, ForeignKey("adapter.node_id"))
    version: Mapped[int]
    kind: Mapped[str]
    blob_digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    parameters: Mapped[int] = mapped_column(BigInteger)
    config: Mapped[dict[str, Any]]
    provenance: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    mlflow_run_id: Mapped[str | None]
    golden_blob: Mapped[str | None] = mapped_column(ForeignKey("blob.digest"))
    job_id: Mapped[str | None]
    fence: Mapped[int | None]


class Certificate(Base):
    """What was proved about everything older when this adapter was added."""

    __tablename__ = "certificate"
    __table_args__ = (
        CheckConstraint("level IN ('bit-exact', 'tolerance', 'unverified')", name="level"),
        Index(None, "adapter_id"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    adapter_id: Mapped[int] = mapped_column(Id, ForeignKey("adapter.node_id"))
    level: Mapped[str]
    results: Mapped[dict[str, Any]]


class Evaluation(Base):
    """What was measured of an adapter against a reference dataset, under one protocol."""

    __tablename__ = "evaluation"
    __table_args__ = (
        CheckConstraint("length(protocol_digest) = 64", name="protocol"),
        CheckConstraint("(job_id IS NULL) = (fence IS NULL)", name="fenced"),
        Index(None, "adapter_id", "protocol_digest", "node_id"),
        Index(None, "protocol_digest", "adapter_id"),
        Index(None, "dataset_id"),
        Index(None, "job_id"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    adapter_id: Mapped[int] = mapped_column(Id, ForeignKey("adapter.node_id"))
    dataset_id: Mapped[int] = mapped_column(Id, ForeignKey("dataset.node_id"))
    protocol: Mapped[dict[str, Any]]
    protocol_digest: Mapped[str]
    results: Mapped[dict[str, Any]]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    fence: Mapped[int | None]


class Composition(Base):
    """Adapter versions on one backbone. last_pos must be a member by the time of commit: all or none."""

    __tablename__ = "composition"
    __table_args__ = (
        Unique("name", "version"),
        Unique("node_id", "backbone_id"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("mode IN ('routed', 'merged')", name="mode"),
        CheckConstraint("last_pos >= 0", name="has_members"),
        ForeignKeyConstraint(
            ["node_id", "last_pos"],
            ["composition_member.composition_id", "composition_member.pos"],
            deferrable=True,
            initially="DEFERRED",
            use_alter=True,
        ),
        Index(None, "backbone_id"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    name: Mapped[str]
    version: Mapped[int]
    backbone_id: Mapped[int] = mapped_column(Id, ForeignKey("backbone.node_id"))
    mode: Mapped[str]
    recipe: Mapped[dict[str, Any]]
    last_pos: Mapped[int]


class CompositionMember(Base):
    """An adapter in a composition: of the composition's backbone, and the only one of its task."""

    __tablename__ = "composition_member"
    __table_args__ = (
        Unique("composition_id", "task_id"),
        ForeignKeyConstraint(
            ["composition_id", "backbone_id"], ["composition.node_id", "composition.backbone_id"]
        ),
        ForeignKeyConstraint(
            ["adapter_id", "task_id", "backbone_id"],
            ["adapter.node_id", "adapter.task_id", "adapter.backbone_id"],
        ),
        Index(None, "adapter_id"),
    )

    composition_id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    pos: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    adapter_id: Mapped[int] = mapped_column(Id)
    task_id: Mapped[int] = mapped_column(Id)
    backbone_id: Mapped[int] = mapped_column(Id)


class Export(Base):
    """A bundle that was written; its node's digest is the bundle's."""

    __tablename__ = "export"
    __table_args__ = (
        Unique("name", "version"),
        CheckConstraint("version >= 1 AND size_bytes >= 0", name="size"),
        Index(None, "composition_id"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    composition_id: Mapped[int] = mapped_column(Id, ForeignKey("composition.node_id"))
    name: Mapped[str]
    version: Mapped[int]
    format: Mapped[str]
    path: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
