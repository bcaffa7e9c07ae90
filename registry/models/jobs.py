"""Jobs, their attempts, schedules and limits. The queue's logic is elsewhere; what must never be is here."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Computed, Dialect, Double, ForeignKey, Index, text
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.expression import ColumnElement

from registry.columns import Id, Json, utc_now
from registry.models.base import Base

KINDS = ("train", "evaluate", "export", "rebase", "verify", "retention")
STATES = ("queued", "running", "paused", "done", "dead", "cancelled")
STRATEGIES = ("sequential", "co-trained", "parallel", "data-parallel")
REQUESTS = ("cancel", "pause")
SCOPES = ("backbone", "submitter", "resource")


def _one_of(column: str, words: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(word) for word in words)})", name=column)


class NextNumber(ColumnElement[int]):
    """The next job's number: a sequence; on SQLite, where writers take turns, one more than the last."""

    inherit_cache = True
    type = BigInteger()


@compiles(NextNumber)
def _next_number(_: NextNumber, compiler: Any, **__: Any) -> str:
    dialect: Dialect = compiler.dialect
    return "(SELECT coalesce(max(number), 0) + 1 FROM job)" if dialect.name == "sqlite" else _SEQUENCE


_SEQUENCE = "nextval('job_number_seq')"


class Job(Base):
    """An entry in the queue. The fence rises at each claim; a result must carry the present one.

    number: the order in which jobs were accepted. waits: how many of its needs are not done; awaited:
    whether another ever waited for it; lost_need_id: a need that never will be. generation: rises when a dead
    or cancelled job is tried anew; failures counts within it. cpus, gpus and memory_bytes are NULL where
    those of its kind are meant. error_here: the error with the places of this machine, where it names any.
    """

    __tablename__ = "job"
    __table_args__ = (
        _one_of("kind", KINDS),
        _one_of("strategy", STRATEGIES),
        _one_of("state", STATES),
        _one_of("request", REQUESTS),
        CheckConstraint("request IS NULL OR state = 'running'", name="asked_while_running"),
        CheckConstraint("lease_expires_at IS NULL OR state = 'running'", name="leased"),
        CheckConstraint(
            "fence >= 0 AND generation >= 0 AND attempts >= 0 AND failures >= 0", name="counts_up"
        ),
        CheckConstraint("waits >= 0", name="waits"),
        CheckConstraint("workers >= 1 AND max_attempts >= 1", name="at_least_one"),
        CheckConstraint("cpus >= 0 AND gpus >= 0 AND memory_bytes >= 0", name="resources"),
        CheckConstraint("timeout_seconds > 0", name="timeout"),
        Unique("idempotency_key"),
        Unique("number"),
        # Partial on PostgreSQL too; but to say so here would import its dialect whenever SQLite is read.
        # state and waits lead, though each has one value in it: only so does SQLite prefer this one.
        Index(
            "ix_job_ready",
            *("state", "waits", "rank", "number"),
            sqlite_where=text("state = 'queued' AND waits = 0"),
        ),
        Index("ix_job_lease", "lease_expires_at", sqlite_where=text("state = 'running'")),
        Index(
            "ix_job_hopeless",
            "number",
            sqlite_where=text("lost_need_id IS NOT NULL AND state IN ('queued', 'paused')"),
        ),
        Index(None, "state", "number"),
        Index(None, "backbone_id", "state"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, default=NextNumber())
    kind: Mapped[str] = mapped_column(default="train")
    strategy: Mapped[str | None]
    workers: Mapped[int] = mapped_column(default=1)
    state: Mapped[str] = mapped_column(default="queued")
    priority: Mapped[int] = mapped_column(default=0)
    rank: Mapped[int] = mapped_column(Computed("-priority", persisted=True))  # indexes count upwards
    payload: Mapped[dict[str, Any]]
    submitted_by: Mapped[str | None]
    cpus: Mapped[float | None] = mapped_column(Double)
    gpus: Mapped[float | None] = mapped_column(Double)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    backbone_id: Mapped[int | None] = mapped_column(Id, ForeignKey("backbone.node_id"))
    schedule_id: Mapped[int | None] = mapped_column(Id, ForeignKey("schedule.id"))
    run_at: Mapped[datetime] = mapped_column(default=utc_now)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    fence: Mapped[int] = mapped_column(default=0)
    generation: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=5)
    timeout_seconds: Mapped[float | None] = mapped_column(Double)
    waits: Mapped[int] = mapped_column(default=0)
    awaited: Mapped[bool] = mapped_column(default=False)
    lost_need_id: Mapped[str | None] = mapped_column(ForeignKey("job.id"))
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    request: Mapped[str | None]
    requested_by: Mapped[str | None]
    requested_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    error_here: Mapped[str | None]


class JobTask(Base):
    """The tasks of a job. live follows the job's state; a task has at most one live job.

    dataset_id: the dataset version to move the task to, NULL where it stays on its own; warm_start_id: the
    adapter to begin from.
    """

    __tablename__ = "job_task"
    __table_args__ = (
        # On PostgreSQL too; but to say so here would import its dialect whenever a SQLite registry is read.
        Index("uq_job_task_live", "task_id", unique=True, sqlite_where=text("live")),
        Index(None, "task_id"),
        Index(None, "dataset_id"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    task_id: Mapped[int] = mapped_column(
        Id, ForeignKey("task.node_id"), primary_key=True, autoincrement=False
    )
    live: Mapped[bool] = mapped_column(default=True)
    dataset_id: Mapped[int | None] = mapped_column(Id, ForeignKey("dataset.node_id"))
    warm_start_id: Mapped[int | None] = mapped_column(Id, ForeignKey("adapter.node_id", use_alter=True))


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
    """One try of a job, under one fence, by one worker."""

    __tablename__ = "attempt"
    __table_args__ = (CheckConstraint("number >= 1", name="number"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int]
    owner: Mapped[str | None]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    error: Mapped[str | None]
    error_here: Mapped[str | None]


class Schedule(Base):
    """Tasks to be trained again and again. next_run_at moves on with each firing, so none fires twice."""

    __tablename__ = "schedule"
    __table_args__ = (Unique("name"), Index(None, "next_run_at"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str]
    cron: Mapped[str]
    timezone: Mapped[str]
    when_changed: Mapped[bool]
    together: Mapped[bool]
    paused: Mapped[bool] = mapped_column(default=False)
    task_ids: Mapped[list[int]]
    payload: Mapped[dict[str, Any]]
    priority: Mapped[int] = mapped_column(default=0)
    submitted_by: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    next_run_at: Mapped[datetime]
    last_run_at: Mapped[datetime | None]


class QueueLimit(Base):
    """How much may run at once: jobs of a backbone or a submitter (key * is each of them), or a resource."""

    __tablename__ = "queue_limit"
    __table_args__ = (_one_of("scope", SCOPES), CheckConstraint("most >= 0", name="most"))

    scope: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    most: Mapped[float] = mapped_column(Double)
