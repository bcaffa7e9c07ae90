"""Small registries for tests, made by the registry's own functions."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from registry import adapters, backbones, datasets, evaluations, runs, tasks
from registry.models import Job, JobTask
from registry.records import AdapterRecord, BackboneRecord, DatasetRecord, EvaluationRecord, TaskRecord

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def sha(text: str) -> str:
    """Some digest, always the same for a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def backbone(session: Session, name: str = "dit", salt: str = "", **given: Any) -> BackboneRecord:
    """A backbone with 10 classes; another salt makes another version."""
    values: dict[str, Any] = {
        "fingerprint": sha(f"backbone {name} {salt}"),
        "blob_digest": sha(f"backbone file {name} {salt}"),
        "size_bytes": 1000,
        "num_classes": 10,
        "null_index": 10,
        "spec": {"hidden": 192},
    }
    return backbones.register(session, name=name, **(values | given))


def dataset(session: Session, name: str = "digits", classes: int = 3, salt: str = "") -> DatasetRecord:
    """A dataset with two images a class."""
    return datasets.register(
        session,
        name=name,
        digest=sha(f"dataset {name} {classes} {salt}"),
        dvc_md5="0123456789abcdef.dir",
        dvc_path=f"data/{name}",
        size_bytes=500,
        image_count=2 * classes,
        classes=[f"class {number}" for number in range(classes)],
        class_counts=[2] * classes,
        licence="CC0-1.0",
        source="made for tests",
    )


def task(
    session: Session, name: str = "digits", on: str = "dit", classes: int = 3, rank: int | None = None
) -> TaskRecord:
    """A task with a dataset of its own name; rank: of an Affiner that can be trained."""
    made_of = dataset(session, name, classes)
    config: dict[str, Any] = {"d": 8} if rank is None else {"rank": rank}
    return tasks.register(session, name=name, backbone=on, dataset=made_of.ref, kind="affiner", config=config)


def job(session: Session, job_id: str, *learners: str, state: str = "running", fence: int = 1) -> None:
    """A job that trains these tasks."""
    session.add(Job(id=job_id, strategy="co-trained", state=state, fence=fence, payload={}))
    session.flush()
    for name in learners:
        live = state in ("queued", "running", "paused")
        session.add(JobTask(job_id=job_id, task_id=tasks.get(session, name).node_id, live=live))
        session.flush()


def run(session: Session, job_id: str, learner: str) -> int:
    """A recorded training; its node."""
    record = runs.record(
        session,
        job_id=job_id,
        task=learner,
        mlflow_run_id=f"mlflow-{job_id}-{learner}",
        mlflow_experiment="affinery",
        config={"steps": 10},
        seed=7,
        code_version="abc123",
        environment={"python": "3.11"},
        started_at=NOON,
        ended_at=NOON,
    )
    return record.node_id


def publish(session: Session, job_id: str, learner: str, fence: int = 1, **given: Any) -> AdapterRecord:
    """What a job learnt for a task."""
    values: dict[str, Any] = {
        "digest": sha(f"adapter {job_id} {learner}"),
        "blob_digest": sha(f"adapter file {job_id} {learner}"),
        "size_bytes": 64,
        "parameters": 16,
        "kind": "affiner",
        "config": {"d": 8},
        "provenance": {"seed": 7},
        "mlflow_run_id": f"mlflow-{job_id}-{learner}",
        "metrics": {"loss": 0.25},
        "golden_blob": None,
    }
    return adapters.publish(session, job_id=job_id, fence=fence, task=learner, **(values | given))


def learnt(session: Session, name: str, number: int = 1, on: str = "dit", **given: Any) -> AdapterRecord:
    """A task (made if need be) with one more adapter version, from a job that is done."""
    if name not in [known.name for known in tasks.list_all(session)]:
        task(session, name, on)
    job_id = f"job-{name}-{number}"
    job(session, job_id, name)
    run(session, job_id, name)
    record = publish(session, job_id, name, **given)
    session.get_one(Job, job_id).state = "done"
    session.flush()
    return record


def evaluated(session: Session, adapter: str, kid: float = 0.02, **given: Any) -> EvaluationRecord:
    """What an evaluation found of an adapter, against the dataset of its task's name."""
    values: dict[str, Any] = {
        "reference": f"dataset:{adapter.partition('@')[0]}",
        "protocol": {"extractor": "pixels", "samples": 100},
        "results": {"kid": {"mean": kid, "low": kid / 2, "high": kid * 2}, "images": 100},
    }
    return evaluations.record(session, adapter=adapter, **(values | given))


def learnt_on_new_backbone(session: Session, name: str = "digits") -> AdapterRecord:
    """A backbone, a task on it, and its first adapter."""
    backbone(session)
    return learnt(session, name)
