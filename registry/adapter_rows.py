"""Adapters as they are read: one statement over their rows and names, made once and asked often."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, bindparam, select

from registry.models import Adapter, Backbone, Dataset, Node, Task
from registry.records import AdapterRecord

_adapter, _node, _task = Adapter.__table__.c, Node.__table__.c, Task.__table__.c
_backbone, _dataset = Backbone.__table__.c, Dataset.__table__.c
_Warm, _WarmTask = Adapter.__table__.alias("warm"), Task.__table__.alias("warm_task")

# Columns, not entities: what is only read needs no session's care, which costs several times as much.
QUERY = (
    select(
        *_adapter,
        _node.digest,
        _node.created_at,
        _task.name,
        _task.lo,
        _task.hi,
        _backbone.name.label("backbone_name"),
        _backbone.version.label("backbone_version"),
        _dataset.name.label("dataset_name"),
        _dataset.version.label("dataset_version"),
        _WarmTask.c.name.label("warm_name"),
        _Warm.c.version.label("warm_version"),
    )
    .select_from(Adapter.__table__)
    .join(Node.__table__, _node.id == _adapter.node_id)
    .join(Task.__table__, _task.node_id == _adapter.task_id)
    .join(Backbone.__table__, _backbone.node_id == _adapter.backbone_id)
    .join(Dataset.__table__, _dataset.node_id == _adapter.dataset_id)
    .outerjoin(_Warm, _Warm.c.node_id == _adapter.warm_start_id)
    .outerjoin(_WarmTask, _WarmTask.c.node_id == _Warm.c.task_id)
)
BY_ID = QUERY.where(_adapter.node_id == bindparam("id"))
BY_IDS = QUERY.where(_adapter.node_id.in_(bindparam("ids", expanding=True)))
BY_VERSION = QUERY.where(_task.name == bindparam("name"), _adapter.version == bindparam("number"))


def record(row: Row[*tuple[Any, ...]]) -> AdapterRecord:
    """What a row of QUERY says."""
    return AdapterRecord(
        node_id=row.node_id,
        digest=row.digest,
        created_at=row.created_at,
        name=row.name,
        version=row.version,
        task_id=row.task_id,
        backbone=f"{row.backbone_name}@{row.backbone_version}",
        backbone_id=row.backbone_id,
        dataset=f"{row.dataset_name}@{row.dataset_version}",
        dataset_id=row.dataset_id,
        block=(row.lo, row.hi),
        kind=row.kind,
        blob_digest=row.blob_digest,
        size_bytes=row.size_bytes,
        parameters=row.parameters,
        config=row.config,
        provenance=row.provenance,
        metrics=row.metrics,
        mlflow_run_id=row.mlflow_run_id,
        golden_blob=row.golden_blob,
        run_id=row.run_id,
        warm_start=None if row.warm_start_id is None else f"{row.warm_name}@{row.warm_version}",
        job_id=row.job_id,
        fence=row.fence,
    )
