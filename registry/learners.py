"""A task as what it learns is recorded of it: where it stands, and what it is made from, in one statement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, select
from sqlalchemy.orm import Session

from registry import names, refs, tasks
from registry.models import Backbone, Dataset, Node, Task


@dataclass(frozen=True, slots=True)
class Learner:
    """What an adapter or a run takes over from its task. backbone and dataset are references."""

    node_id: int
    digest: str
    name: str
    backbone: str
    backbone_id: int
    dataset: str
    dataset_id: int
    kind: str
    config: dict[str, Any]
    block: tuple[int, int]


_task, _backbone, _dataset = Task.rows().c, Backbone.rows().c, Dataset.rows().c
_QUERY = (
    select(
        *(_task.node_id, _task.name, _task.backbone_id, _task.kind, _task.config, _task.lo, _task.hi),
        Node.rows().c.digest,
        _backbone.name.label("backbone_name"),
        _backbone.version.label("backbone_version"),
        _dataset.node_id.label("dataset_id"),
        _dataset.name.label("dataset_name"),
        _dataset.version.label("dataset_version"),
    )
    .select_from(Task.rows())
    .join(Node.rows(), Node.rows().c.id == _task.node_id)
    .join(Backbone.rows(), _backbone.node_id == _task.backbone_id)
    .join(Dataset.rows(), _dataset.node_id == tasks.learns_from())
)
_HELD = _QUERY.with_for_update(key_share=True, of=Task.rows())
_NAMED, _ONE = _task.name == bindparam("called"), _task.node_id == bindparam("id")
# By whether others who hold it wait: by its name, by its node.
_WAYS = {hold: (way.where(_NAMED), way.where(_ONE)) for hold, way in ((False, _QUERY), (True, _HELD))}


def get(session: Session, ref: str, *, hold: bool = False) -> Learner:
    """The task of this name (or digest); NotFound otherwise.

    hold: others who hold it wait until this transaction ends (PostgreSQL; on SQLite writers take turns).
    """
    named, one = _WAYS[hold]
    wanted = names.parse_as("task", ref)
    row = None
    if wanted.version is None and wanted.alias is None:
        row = session.execute(named, {"called": wanted.name}).first()
    if row is None:
        row = session.execute(one, {"id": refs.find(session, "task", ref)}).one()
    return _learner(row)


def _learner(row: Row[*tuple[Any, ...]]) -> Learner:
    return Learner(
        node_id=row.node_id,
        digest=row.digest,
        name=row.name,
        backbone=f"{row.backbone_name}@{row.backbone_version}",
        backbone_id=row.backbone_id,
        dataset=f"{row.dataset_name}@{row.dataset_version}",
        dataset_id=row.dataset_id,
        kind=row.kind,
        config={key: value for key, value in row.config.items() if key != tasks.FACTS},
        block=(row.lo, row.hi),
    )
