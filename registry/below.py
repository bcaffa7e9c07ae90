"""Which adapters were made from a backbone or a dataset, asked of their columns rather than of the graph.

Nearly every adapter says it itself: it is on that backbone version, or of that dataset version, or of a
version made from it. Few others descend from it in another way, by a warm start, by a task that another one
follows, or by a task that was moved to another dataset: these alone are walked.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from registry import lineage
from registry.models import Adapter, JobTask, Task
from registry.records import NodeRecord

KINDS = ("backbone", "dataset")
_FEW = 1000


def made_from(session: Session, node: NodeRecord) -> ColumnElement[bool] | None:
    """A condition on Adapter; None where too many adapters would have to be walked one by one."""
    column = Adapter.backbone_id if node.kind == "backbone" else Adapter.dataset_id
    versions = list(session.scalars(lineage.reach(node.node_id, down=True, roles=["parent"])))
    said = column.in_(versions) if len(versions) > 1 else column == node.node_id
    followers = select(Task.node_id).where(Task.predecessor_id > 0)
    moved = select(JobTask.task_id).where(JobTask.dataset_id > 0)
    otherwise: set[int] = set()
    # Above zero, as every node is: SQLite finds those through the index, and would not find what is not NULL.
    for how in (Adapter.warm_start_id > 0, Adapter.task_id.in_(followers), Adapter.task_id.in_(moved)):
        query = select(Adapter.node_id).where(how, column.not_in(versions))
        otherwise.update(session.scalars(query.limit(_FEW + 1)))
    if len(otherwise) > _FEW:
        return None
    walked = lineage.descending(session, node.node_id, sorted(otherwise))
    return or_(said, Adapter.node_id.in_(walked)) if walked else said
