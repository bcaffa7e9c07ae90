"""What people hang on recorded things, and find them by: aliases, tags, notes, metrics, names."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Double, ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import Id, Json, utc_now
from registry.models.base import Base


class AliasMove(Base):
    """An alias was pointed at a version of its task's adapter, or (adapter_id NULL) taken away.

    Moves are numbered and never edited; the last one is what the alias means. Two who move it at once write
    the same number, of which the key lets one through.
    """

    __tablename__ = "alias_move"
    __table_args__ = (
        ForeignKeyConstraint(["task_id", "backbone_id"], ["task.node_id", "task.backbone_id"]),
        ForeignKeyConstraint(
            ["adapter_id", "task_id", "backbone_id"],
            ["adapter.node_id", "adapter.task_id", "adapter.backbone_id"],
        ),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("length(name) BETWEEN 1 AND 64", name="name"),
        Index(None, "adapter_id"),
    )

    task_id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    backbone_id: Mapped[int] = mapped_column(Id)
    adapter_id: Mapped[int | None] = mapped_column(Id)
    gate: Mapped[list[Any] | None] = mapped_column(Json)
    at: Mapped[datetime] = mapped_column(default=utc_now)


class Tag(Base):
    """A key and its value on a node. They may change; a trigger appends the event that remembers it."""

    __tablename__ = "tag"
    __table_args__ = (
        CheckConstraint("length(key) BETWEEN 1 AND 64", name="key"),
        CheckConstraint("length(value) BETWEEN 1 AND 500", name="value"),
        Index(None, "key", "value", "node_id"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(default=utc_now)


class Note(Base):
    """What people say about a node. It may change; a trigger appends the event that remembers it."""

    __tablename__ = "note"
    __table_args__ = (CheckConstraint("length(text) BETWEEN 1 AND 10000", name="text"),)

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    text: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(default=utc_now)


class Metric(Base):
    """A number out of an adapter's metrics, to search by. Triggers write it and keep it true.

    `{"recognition": {"share": 0.9}}` is the metric `recognition.share`; deeper numbers are not searched.
    """

    __tablename__ = "metric"
    __table_args__ = (Index(None, "name", "value", "adapter_id"),)

    adapter_id: Mapped[int] = mapped_column(
        Id, ForeignKey("adapter.node_id"), primary_key=True, autoincrement=False
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Double)


class Figure(Base):
    """A number out of an evaluation's results, to search by: what Metric is to an adapter's own metrics."""

    __tablename__ = "figure"
    __table_args__ = (Index(None, "name", "value", "evaluation_id"),)

    evaluation_id: Mapped[int] = mapped_column(
        Id, ForeignKey("evaluation.node_id"), primary_key=True, autoincrement=False
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Double)


class Renaming(Base):
    """A name was changed. Writing this row changes it, wherever it stands; nothing else can.

    origin is the first name that its bearer had: it tells two things apart that once had one name each.
    """

    __tablename__ = "renaming"
    __table_args__ = (
        CheckConstraint("was <> name", name="changes"),
        Index(None, "kind", "was", "id"),
        Index(None, "kind", "name", "id"),
        Index(None, "kind", "origin", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[str]
    origin: Mapped[str]
    was: Mapped[str]
    name: Mapped[str]
    at: Mapped[datetime] = mapped_column(default=utc_now)
