"""Adapter versions: published once, under the fence of the job that learnt them, or brought in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, select, update
from sqlalchemy.orm import Session, aliased

from registry import backbones, beginnings, blobs, events, names, nodes, refs, runs, tasks
from registry.digests import checked_digest, plain
from registry.errors import NotFound, RecordInvalid, StaleFence
from registry.models import Adapter, Backbone, Dataset, Job, JobTask, Node, Task
from registry.records import AdapterRecord, TaskRecord


def publish(
    session: Session,
    *,
    job_id: str,
    fence: int,
    task: str,
    digest: str,
    blob_digest: str,
    size_bytes: int,
    parameters: int,
    kind: str,
    config: dict[str, Any],
    provenance: dict[str, Any],
    mlflow_run_id: str | None,
    metrics: dict[str, Any],
    golden_blob: str | None,
    warm_start: str | None = None,
) -> AdapterRecord:
    """Publish what a job learnt as the task's next adapter version.

    digest is the identity of the adapter, blob_digest and size_bytes the stored file. golden_blob must have
    been committed. The run recorded last for this job and task becomes its parent, and so does what the task
    began from (registry/beginnings.py), unless warm_start names another. The same digest again from
    the same job gives the record that stands. StaleFence where the job has been given to another worker or no
    longer runs.
    """
    learner = tasks.get(session, task)
    checked_digest("The adapter", digest)
    same = session.execute(
        _query().where(Adapter.job_id == job_id, Adapter.task_id == learner.node_id, Node.digest == digest)
    ).first()
    _check_fence(session, job_id, fence, learner, published=same is not None)
    if same is not None:
        return _record(same)
    run = runs.latest_of(session, job_id, learner.node_id)
    begins = beginnings.of(session, job_id)[learner.node_id]
    warm = begins.warm_start_id if warm_start is None else get(session, warm_start).node_id
    blobs.commit(session, blob_digest, size_bytes)
    if golden_blob is not None:
        blobs.require(session, golden_blob)
    parents = [
        (learner.backbone_id, "backbone"),
        (learner.dataset_id, "dataset"),
        (learner.node_id, "task"),
        *([(run.node_id, "run")] if run is not None else []),
        *([(warm, "warm-start")] if warm is not None else []),
    ]
    values = {
        "run_id": None if run is None else run.node_id,
        "warm_start_id": warm,
        "kind": names.checked("kind", kind),
        "blob_digest": blob_digest,
        "size_bytes": size_bytes,
        "parameters": parameters,
        "config": plain("The adapter's config", config),
        "provenance": plain("The adapter's provenance", provenance),
        "metrics": plain("The adapter's metrics", metrics),
        "mlflow_run_id": mlflow_run_id,
        "golden_blob": golden_blob,
        "job_id": job_id,
        "fence": fence,
    }
    record = _insert(session, learner, digest, parents, values)
    happened = {"ref": record.ref, "digest": digest, "job": job_id, "fence": fence}
    events.append(session, "adapter.published", record.node_id, happened)
    return record


def bring_in(
    session: Session,
    *,
    task: str,
    blob_digest: str,
    parameters: int,
    provenance: dict[str, Any],
    mlflow_run_id: str | None = None,
    metrics: dict[str, Any],
    warm_start: str | None = None,
) -> AdapterRecord:
    """Record what was trained elsewhere, and whose file was committed, as the task's next adapter version.

    It has no job, and so no fence; the file is its identity, and the kind and its config are the task's. The
    same file again for this task gives the record that stands.
    """
    learner = tasks.get(session, task)
    # On PostgreSQL the second to bring in one file waits here for the first.
    held = select(Task.node_id).where(Task.node_id == learner.node_id).with_for_update(key_share=True)
    session.execute(held).one()
    standing = _query().where(Adapter.task_id == learner.node_id, Adapter.blob_digest == blob_digest)
    if (same := session.execute(standing.order_by(Adapter.node_id).limit(1)).first()) is not None:
        return _record(same)
    warm = get(session, warm_start).node_id if warm_start is not None else None
    values = {
        "warm_start_id": warm,
        "kind": learner.kind,
        "blob_digest": blob_digest,
        "size_bytes": blobs.require(session, blob_digest),
        "parameters": parameters,
        "config": learner.config,
        "provenance": plain("The adapter's provenance", provenance),
        "metrics": plain("The adapter's metrics", metrics),
        "mlflow_run_id": plain("The MLflow run", mlflow_run_id),
    }
    parents = [
        (learner.backbone_id, "backbone"),
        (learner.dataset_id, "dataset"),
        (learner.node_id, "task"),
        *([(warm, "warm-start")] if warm is not None else []),
    ]
    record = _insert(session, learner, blob_digest, parents, values)
    events.append(session, "adapter.brought-in", record.node_id, {"ref": record.ref, "digest": blob_digest})
    return record


def _insert(
    session: Session,
    learner: TaskRecord,
    digest: str,
    parents: Sequence[nodes.Parent],
    values: dict[str, Any],
) -> AdapterRecord:
    version = _next_version(session, learner.node_id)
    node = nodes.add(session, "adapter", digest, parents)
    session.add(
        Adapter(
            node_id=node.id,
            task_id=learner.node_id,
            backbone_id=learner.backbone_id,
            dataset_id=learner.dataset_id,
            version=version,
            **values,
        )
    )
    session.flush()
    return by_id(session, node.id)


def _check_fence(session: Session, job_id: str, fence: int, task: TaskRecord, published: bool) -> None:
    # The row lock (PostgreSQL) holds off a new claim of the job until this transaction ends.
    query = select(Job.fence, Job.state).where(Job.id == job_id).with_for_update(key_share=True)
    job = session.execute(query).first()
    if job is None:
        known = list(session.scalars(select(JobTask.job_id).where(JobTask.task_id == task.node_id)))
        raise NotFound("job", job_id, known)
    if job.fence != fence or (job.state != "running" and not published):
        raise StaleFence(job_id, fence, job.fence, job.state)
    if session.get(JobTask, (job_id, task.node_id)) is None:
        raise RecordInvalid("The adapter", f"job {job_id} does not train the task {task.name!r}")


def _next_version(session: Session, task_id: int) -> int:
    statement = (
        update(Task)
        .where(Task.node_id == task_id)
        .values(next_version=Task.next_version + 1)
        .returning(Task.next_version)
        .execution_options(synchronize_session=False)
    )
    return session.scalars(statement).one() - 1


def get(session: Session, ref: str) -> AdapterRecord:
    """The adapter that a reference means: a task (its latest version), its version or alias, or a digest."""
    return by_id(session, refs.find(session, "adapter", ref))


def by_id(session: Session, node_id: int) -> AdapterRecord:
    """The adapter of a node."""
    return _record(session.execute(_query().where(Adapter.node_id == node_id)).one())


def by_ids(session: Session, node_ids: Sequence[int]) -> list[AdapterRecord]:
    """The adapters of these nodes, in this order."""
    found = {
        row[0].node_id: _record(row)
        for chunk in refs.chunks(node_ids)
        for row in session.execute(_query().where(Adapter.node_id.in_(chunk)))
    }
    return [found[node_id] for node_id in node_ids]


def list_all(session: Session, task: str | None = None, backbone: str | None = None) -> list[AdapterRecord]:
    """Every adapter version (of a task, of a backbone version), oldest first."""
    query = _query().order_by(Adapter.node_id)
    if task is not None:
        query = query.where(Adapter.task_id == tasks.get(session, task).node_id)
    if backbone is not None:
        query = query.where(Adapter.backbone_id == backbones.get(session, backbone).node_id)
    return [_record(row) for row in session.execute(query)]


_Warm = aliased(Adapter)
_WarmTask = aliased(Task)
_Row = Row[Adapter, Node, Task, str, int, str, int, str, int]


def _query() -> Select[Adapter, Node, Task, str, int, str, int, str, int]:
    return (
        select(
            Adapter,
            Node,
            Task,
            Backbone.name,
            Backbone.version,
            Dataset.name,
            Dataset.version,
            _WarmTask.name,
            _Warm.version,
        )
        .join(Node, Node.id == Adapter.node_id)
        .join(Task, Task.node_id == Adapter.task_id)
        .join(Backbone, Backbone.node_id == Adapter.backbone_id)
        .join(Dataset, Dataset.node_id == Adapter.dataset_id)
        .outerjoin(_Warm, _Warm.node_id == Adapter.warm_start_id)
        .outerjoin(_WarmTask, _WarmTask.node_id == _Warm.task_id)
    )


def _record(row: _Row) -> AdapterRecord:
    adapter, node, task, backbone, backbone_version, dataset, dataset_version, warm, warm_version = row
    return AdapterRecord(
        node_id=node.id,
        digest=node.digest,
        created_at=node.created_at,
        name=task.name,
        version=adapter.version,
        task_id=adapter.task_id,
        backbone=f"{backbone}@{backbone_version}",
        backbone_id=adapter.backbone_id,
        dataset=f"{dataset}@{dataset_version}",
        dataset_id=adapter.dataset_id,
        block=(task.lo, task.hi),
        kind=adapter.kind,
        blob_digest=adapter.blob_digest,
        size_bytes=adapter.size_bytes,
        parameters=adapter.parameters,
        config=adapter.config,
        provenance=adapter.provenance,
        metrics=adapter.metrics,
        mlflow_run_id=adapter.mlflow_run_id,
        golden_blob=adapter.golden_blob,
        run_id=adapter.run_id,
        warm_start=None if adapter.warm_start_id is None else f"{warm}@{warm_version}",
        job_id=adapter.job_id,
        fence=adapter.fence,
    )
