"""Jobs and their attempts. The queue's logic is elsewhere; what must never be is here."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import Id, Json, utc_now
from registry.models.base import Base


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
