"""Which adapters were made from a backbone or a dataset, asked of their columns rather than of the graph.

Nearly every adapter says it itself: it is on that backbone version, or of that dataset version, or of a
version made from it. Few others descend from it in another way, by a warm start, by a task that another one
follows, or by a task that was moved to another dataset: these alone are walked.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from registry import lineage
from registry.models import Adapter, Backbone, Dataset, JobTask, Task
from registry.records import NodeRecord

KINDS = ("backbone", "dataset")
_FEW = 1000


def made_from(session: Session, node: NodeRecord) -> ColumnElement[bool] | None:
    """A condition on Adapter; None where too many adapters would have to be walked one by one."""
    column = Adapter.backbone_id if node.kind == "backbone" else Adapter.dataset_id
    versions = _made_of(session, Backbone if node.kind == "backbone" else Dataset, node.node_id)
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


def _made_of(session: Session, table: type[Backbone] | type[Dataset], root: int) -> list[int]:
    """This version and those made from it, by their column: in the graph all its adapters are beside them."""
    found = [root]
    query = select(table.node_id, table.parent_id).where(table.parent_id.is_not(None)).order_by(table.node_id)
    for row in session.execute(query):  # parents are older than their children
        if row.parent_id in found:
            found.append(row.node_id)
    return found
