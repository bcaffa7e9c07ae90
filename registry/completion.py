"""How names go on that somebody has begun to type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from registry.models import AliasMove, Backbone, Composition, Dataset, Event, Task

NAMES: Mapping[str, InstrumentedAttribute[str]] = MappingProxyType(
    {"backbone": Backbone.name, "composition": Composition.name, "dataset": Dataset.name, "task": Task.name}
)


def names(session: Session, kind: str, beginning: str, limit: int = 50) -> list[str]:
    """The names of this kind that begin so, in their order, so many at most."""
    name = NAMES[kind]
    query = select(name).where(name.startswith(beginning, autoescape=True))
    return list(session.scalars(query.distinct().order_by(name).limit(limit)))


def aliases(session: Session, task: str, beginning: str, limit: int = 50) -> list[str]:
    """task@alias, of the aliases of this task that begin so."""
    query = select(AliasMove.name).join(Task, Task.node_id == AliasMove.task_id)
    query = query.where(Task.name == task, AliasMove.name.startswith(beginning, autoescape=True))
    return [
        f"{task}@{each}" for each in session.scalars(query.distinct().order_by(AliasMove.name).limit(limit))
    ]


def event_kinds(session: Session, beginning: str, limit: int = 50) -> list[str]:
    """The kinds of events that begin so and have happened."""
    query = select(Event.kind).where(Event.kind.startswith(beginning, autoescape=True))
    return list(session.scalars(query.distinct().order_by(Event.kind).limit(limit)))
