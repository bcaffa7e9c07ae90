"""Adapter versions: published once, under the fence of the job that learnt them, or brought in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, exists, func, insert, select, update
from sqlalchemy.orm import Session

from registry import backbones, beginnings, blobs, events, learners, names, nodes, refs, runs, seals, tasks
from registry.adapter_rows import BY_ID, BY_IDS, BY_VERSION, QUERY, record
from registry.digests import checked_digest, plain
from registry.errors import BlobUnknown, NotFound, RecordInvalid, StaleFence
from registry.learners import Learner
from registry.models import Adapter, Blob, Job, JobTask, Node, Task
from registry.records import AdapterRecord

_adapter, _blob, _job, _job_task = Adapter.rows().c, Blob.rows().c, Job.rows().c, JobTask.rows().c
_INSERT = insert(Adapter.rows())
_PUBLISHED = QUERY.where(
    _adapter.job_id == bindparam("job"),
    _adapter.task_id == bindparam("task"),
    Node.rows().c.digest == bindparam("of"),
)
# The file, which then stays until this transaction ends, and the task's adapter that is made of it.
_BROUGHT = (
    select(
        _blob.size_bytes,
        select(func.min(_adapter.node_id))
        .where(_adapter.task_id == bindparam("task"), _adapter.blob_digest == bindparam("of"))
        .scalar_subquery()
        .label("standing"),
    )
    .where(_blob.digest == bindparam("of"))
    .with_for_update(read=True, key_share=True, of=Blob.rows())
)
# The row lock (PostgreSQL) holds off a new claim of the job until this transaction ends.
_FENCE = (
    select(
        _job.fence,
        _job.state,
        exists().where(_job_task.job_id == _job.id, _job_task.task_id == bindparam("task")).label("trains"),
    )
    .where(_job.id == bindparam("job"))
    .with_for_update(key_share=True, of=Job.rows())
)
_NEXT_VERSION = (
    update(Task.rows())
    .where(Task.rows().c.node_id == bindparam("task"))
    .values(next_version=Task.rows().c.next_version + 1)
    .returning(Task.rows().c.next_version)
)


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
    learner = learners.get(session, task)
    checked_digest("The adapter", digest)
    job = session.execute(_FENCE, {"job": job_id, "task": learner.node_id}).first()
    # Asked when the job is held: who publishes the same at once has waited for it.
    same = session.execute(_PUBLISHED, {"job": job_id, "task": learner.node_id, "of": digest}).first()
    _check_fence(session, job, job_id, fence, learner, published=same is not None)
    if same is not None:
        return record(same)
    run = runs.latest_of(session, job_id, learner.node_id)
    begun = beginnings.of(session, job_id)[learner.node_id].warm_start_id
    if warm_start is not None:
        warm: AdapterRecord | None = get(session, warm_start)
    else:
        warm = None if begun is None else by_id(session, begun)
    blobs.commit(session, blob_digest, size_bytes)
    if golden_blob is not None:
        blobs.require(session, golden_blob)
    values = {
        "run_id": None if run is None else run.node_id,
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
    told = {"job": job_id, "fence": fence}
    return _insert(session, learner, digest, warm, values, "adapter.published", told)


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
    # On PostgreSQL the second to bring in one file waits here for the first.
    learner = learners.get(session, task, hold=True)
    file = session.execute(_BROUGHT, {"task": learner.node_id, "of": blob_digest}).first()
    if file is None:
        raise BlobUnknown(blob_digest)
    if file.standing is not None:
        return by_id(session, file.standing)
    warm = None if warm_start is None else get(session, warm_start)
    values = {
        "run_id": None,
        "kind": learner.kind,
        "blob_digest": blob_digest,
        "size_bytes": file.size_bytes,
        "parameters": parameters,
        "config": learner.config,
        "provenance": plain("The adapter's provenance", provenance),
        "metrics": plain("The adapter's metrics", metrics),
        "mlflow_run_id": plain("The MLflow run", mlflow_run_id),
        "golden_blob": None,
        "job_id": None,
        "fence": None,
    }
    return _insert(session, learner, blob_digest, warm, values, "adapter.brought-in", {})


def _insert(
    session: Session,
    learner: Learner,
    digest: str,
    warm: AdapterRecord | None,
    values: dict[str, Any],
    event: str,
    told: dict[str, Any],
) -> AdapterRecord:
    version = session.execute(_NEXT_VERSION, {"task": learner.node_id}).scalar_one() - 1
    parents = [
        (learner.backbone_id, "backbone"),
        (learner.dataset_id, "dataset"),
        (learner.node_id, "task"),
        *([(values["run_id"], "run")] if values["run_id"] is not None else []),
        *([(warm.node_id, "warm-start")] if warm is not None else []),
    ]
    node = nodes.add(session, "adapter", digest, parents)
    values |= {
        "node_id": node.id,
        "task_id": learner.node_id,
        "backbone_id": learner.backbone_id,
        "dataset_id": learner.dataset_id,
        "version": version,
    }
    row = values | {"warm_start_id": None if warm is None else warm.node_id}
    session.execute(_INSERT, row)
    happened = {"ref": f"{learner.name}@{version}", "digest": digest, **told, **seals.seal("adapter", row)}
    events.append(session, event, node.id, happened)
    return AdapterRecord(
        digest=digest,
        created_at=node.created_at,
        name=learner.name,
        backbone=learner.backbone,
        dataset=learner.dataset,
        block=learner.block,
        warm_start=None if warm is None else warm.ref,
        **values,
    )


def _check_fence(
    session: Session,
    job: Row[*tuple[Any, ...]] | None,
    job_id: str,
    fence: int,
    task: Learner,
    published: bool,
) -> None:
    if job is None:
        known = list(session.scalars(select(JobTask.job_id).where(JobTask.task_id == task.node_id)))
        raise NotFound("job", job_id, known)
    if job.fence != fence or (job.state != "running" and not published):
        raise StaleFence(job_id, fence, job.fence, job.state)
    if not job.trains:
        raise RecordInvalid("The adapter", f"job {job_id} does not train the task {task.name!r}")


def get(session: Session, ref: str) -> AdapterRecord:
    """The adapter that a reference means: a task (its latest version), its version or alias, or a digest."""
    wanted = names.parse_as("adapter", ref)
    if wanted.version is not None:  # asked most often, and one statement answers it
        row = session.execute(BY_VERSION, {"name": wanted.name, "number": wanted.version}).first()
        if row is not None:
            return record(row)
    return by_id(session, refs.find(session, "adapter", ref))


def by_id(session: Session, node_id: int) -> AdapterRecord:
    """The adapter of a node."""
    return record(session.execute(BY_ID, {"id": node_id}).one())


def by_ids(session: Session, node_ids: Sequence[int]) -> list[AdapterRecord]:
    """The adapters of these nodes, in this order."""
    found = {
        row.node_id: record(row)
        for chunk in refs.chunks(node_ids)
        for row in session.execute(BY_IDS, {"ids": chunk})
    }
    return [found[node_id] for node_id in node_ids]


def newest_of_tasks(session: Session, limit: int) -> list[AdapterRecord]:
    """The newest version of each task, of the tasks that learnt last; the newest first."""
    newest = func.max(Adapter.node_id)
    query = select(newest).group_by(Adapter.task_id).order_by(newest.desc()).limit(limit)
    return by_ids(session, list(session.scalars(query)))


def list_all(session: Session, task: str | None = None, backbone: str | None = None) -> list[AdapterRecord]:
    """Every adapter version (of a task, of a backbone version), oldest first."""
    query = QUERY.order_by(Adapter.node_id)
    if task is not None:
        query = query.where(Adapter.task_id == tasks.get(session, task).node_id)
    if backbone is not None:
        query = query.where(Adapter.backbone_id == backbones.get(session, backbone).node_id)
    return [record(row) for row in session.execute(query)]
