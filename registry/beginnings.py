"""What a job's tasks begin from: an older adapter whose tensors they take up, a dataset version they move to.

It is said when the job is scheduled, and stands once a worker has claimed it. Publication records it: the
warm start as an edge of the new adapter, the dataset version as the one that it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from registry.models import JobTask


@dataclass(frozen=True, slots=True)
class Beginning:
    """Nodes: the adapter to begin from, the dataset version to move to; None where there is none."""

    warm_start_id: int | None = None
    dataset_id: int | None = None


def write(session: Session, job_id: str, task_id: int, begins: Beginning) -> None:
    """Say what a task of a job that nobody has claimed yet begins from."""
    session.execute(
        update(JobTask)
        .where(JobTask.job_id == job_id, JobTask.task_id == task_id)
        .values(warm_start_id=begins.warm_start_id, dataset_id=begins.dataset_id)
        .execution_options(synchronize_session=False)
    )


def of(session: Session, job_id: str) -> dict[int, Beginning]:
    """By task, what this job's tasks begin from."""
    query = select(JobTask.task_id, JobTask.warm_start_id, JobTask.dataset_id).where(JobTask.job_id == job_id)
    return {row.task_id: Beginning(row.warm_start_id, row.dataset_id) for row in session.execute(query)}
