"""The tables of the registry.

Constraints stand here as far as both databases spell them alike; the triggers, and PostgreSQL's exclusion
constraint on class blocks, are in the migrations, and registry/guards.py names them all.
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    text,
)
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from registry.columns import Id, Json, UtcDateTime, utc_now


class Base(DeclarativeBase):
    """Names of constraints are fixed, so that a migration can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: Json,
        list[str]: Json,
        list[int]: Json,
    }


# --- what every recorded thing is ------------------------------------------------------------------


class Node(Base):
    """Anything that was recorded: its kind, its digest and when. The other tables say the rest."""

    __tablename__ = "node"
    __table_args__ = (
        CheckConstraint("length(digest) = 64", name="digest"),
        Index(None, "digest"),
        Index(None, "kind", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[str]
    digest: Mapped[str] = mapped_column(String().with_variant(String(collation="C"), "postgresql"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Edge(Base):
    """child was made from parent, in this role. Parents are older, so no cycle can be written."""

    __tablename__ = "edge"
    __table_args__ = (CheckConstraint("parent < child", name="no_cycle"), Index(None, "parent", "child"))

    child: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True)
    parent: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    pos: Mapped[int] = mapped_column(default=0)


class Series(Base):
    """A name under which versions are given out, each number once."""

    __tablename__ = "series"
    __table_args__ = (CheckConstraint("next_version >= 1", name="counts_up"),)

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    next_version: Mapped[int] = mapped_column(default=1)


class Blob(Base):
    """Bytes that are in the store, by the SHA-256 of the bytes."""

    __tablename__ = "blob"
    __table_args__ = (
        CheckConstraint("length(digest) = 64", name="digest"),
        CheckConstraint("size_bytes >= 0", name="size"),
        Unique("digest", "size_bytes"),
    )

    digest: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Upload(Base):
    """A lease: bytes that arrive after started_at may belong to this upload, until it ends or expires."""

    __tablename__ = "upload"
    __table_args__ = (Index(None, "expires_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    started_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Event(Base):
    """What happened, in the transaction in which it happened: audit log and outbox in one."""

    __tablename__ = "event"
    __table_args__ = (Index(None, "subject", "id"), Index(None, "kind", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    kind: Mapped[str]
    subject: Mapped[int | None] = mapped_column(Id, ForeignKey("node.id"))
    payload: Mapped[dict[str, Any]]


class RegistryInfo(Base):
    """Facts about the registry itself: the version of Affinery that last migrated it."""

    __tablename__ = "registry_info"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


# --- backbones, datasets, tasks --------------------------------------------------------------------


class Backbone(Base):
    """A version of a frozen denoiser; its node's digest is its fingerprint."""

    __tablename__ = "backbone"
    __table_args__ = (
        Unique("name", "version"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("num_classes >= 0 AND null_index >= 0", name="classes"),
        ForeignKeyConstraint(["blob_digest", "size_bytes"], ["blob.digest", "blob.size_bytes"]),
        Index(None, "blob_digest"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    name: Mapped[str]
    version: Mapped[int]
    blob_digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    num_classes: Mapped[int]
    null_index: Mapped[int]
    spec: Mapped[dict[str, Any]]
    parent_id: Mapped[int | None] = mapped_column(Id, ForeignKey("backbone.node_id"))


class ClassBlock(Base):
    """The rows [lo, hi) of a backbone's class table: its own first, then each task's, end to end."""

    __tablename__ = "class_block"
    __table_args__ = (
        # 2^31 rows a backbone: PostgreSQL's exclusion constraint folds (backbone, row) into one 64-bit range.
        CheckConstraint("0 <= lo AND lo < hi AND hi <= 2147483647", name="half_open"),
        CheckConstraint("(owner_id = backbone_id) = (lo = 0)", name="own_rows_first"),
        Unique("owner_id", "backbone_id", "lo", "hi"),
        Unique("backbone_id", "lo"),
    )

    owner_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    backbone_id: Mapped[int] = mapped_column(Id, ForeignKey("backbone.node_id"))
    lo: Mapped[int]
    hi: Mapped[int]


class Dataset(Base):
    """A version of a dataset; its node's digest is that of its manifest, which holds every image's."""

    __tablename__ = "dataset"
    __table_args__ = (
        Unique("name", "version"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("size_bytes >= 0 AND image_count >= 1", name="size"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    name: Mapped[str]
    version: Mapped[int]
    dvc_md5: Mapped[str]
    dvc_path: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    image_count: Mapped[int]
    classes: Mapped[list[str]]
    class_counts: Mapped[list[int]]
    licence: Mapped[str]
    source: Mapped[str]


class Task(Base):
    """Something to learn on one backbone, with the class rows that are its own for ever."""

    __tablename__ = "task"
    __table_args__ = (
        Unique("name"),
        Unique("node_id", "backbone_id"),
        ForeignKeyConstraint(
            ["node_id", "backbone_id", "lo", "hi"],
            ["class_block.owner_id", "class_block.backbone_id", "class_block.lo", "class_block.hi"],
        ),
        CheckConstraint("next_version >= 1", name="counts_up"),
        Index(None, "backbone_id"),
        Index(None, "dataset_id"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    name: Mapped[str]
    backbone_id: Mapped[int] = mapped_column(Id, ForeignKey("backbone.node_id"))
    dataset_id: Mapped[int] = mapped_column(Id, ForeignKey("dataset.node_id"))
    kind: Mapped[str]
    config: Mapped[dict[str, Any]]
    classes: Mapped[list[str]]
    lo: Mapped[int]
    hi: Mapped[int]
    next_version: Mapped[int] = mapped_column(default=1)


# --- jobs (the queue's logic is elsewhere; what must never be is here) -----------------------------


class Job(Base):
    """An entry in the queue. The fence rises at each claim; a result must carry the present one."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint("kind IN ('train')", name="kind"),
        CheckConstraint("strategy IN ('co-trained', 'sequential')", name="strategy"),
        CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="state"),
        CheckConstraint("fence >= 0", name="fence"),
        Unique("idempotency_key"),
        Index(None, "state", "priority", "run_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="train")
    strategy: Mapped[str]
    state: Mapped[str] = mapped_column(default="queued")
    priority: Mapped[int] = mapped_column(default=0)
    recipe: Mapped[dict[str, Any]]
    run_at: Mapped[datetime] = mapped_column(default=utc_now)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    fence: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[str | None]
    idempotency_key: Mapped[str | None]


class JobTask(Base):
    """The tasks of a job. live follows the job's state; a task has at most one live job."""

    __tablename__ = "job_task"
    __table_args__ = (
        # On PostgreSQL too; but to say so here would import its dialect whenever a SQLite registry is read.
        Index("uq_job_task_live", "task_id", unique=True, sqlite_where=text("live")),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    task_id: Mapped[int] = mapped_column(
        Id, ForeignKey("task.node_id"), primary_key=True, autoincrement=False
    )
    live: Mapped[bool] = mapped_column(default=True)


class JobDependency(Base):
    """job_id waits until needs_job_id is done."""

    __tablename__ = "job_dependency"
    __table_args__ = (
        CheckConstraint("job_id <> needs_job_id", name="not_itself"),
        Index(None, "needs_job_id"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    needs_job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)


class Attempt(Base):
    """One try of a job, under one fence."""

    __tablename__ = "attempt"
    __table_args__ = (CheckConstraint("number >= 1", name="number"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    error: Mapped[str | None]


# --- what was learnt, proved, composed and exported ------------------------------------------------


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
