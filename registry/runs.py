"""Runs: one training of one task."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session

from registry import events, learners, nodes, tasks
from registry.digests import digest_of, plain
from registry.models import Node, Run, Task
from registry.records import RunRecord


def record(
    session: Session,
    *,
    job_id: str | None,
    task: str,
    mlflow_run_id: str | None,
    mlflow_experiment: str | None,
    config: dict[str, Any],
    seed: int,
    code_version: str,
    environment: dict[str, Any],
    started_at: datetime,
    ended_at: datetime,
) -> RunRecord:
    """Record a training that ended. The same job, task and MLflow run again give the record that stands."""
    learner = learners.get(session, task)
    if job_id is not None and mlflow_run_id is not None:
        query = _query().where(
            Run.job_id == job_id, Run.task_id == learner.node_id, Run.mlflow_run_id == mlflow_run_id
        )
        same = session.execute(query).first()
        if same is not None:
            return _record(same)
    config, environment = plain("The run's config", config), plain("The run's environment", environment)
    identity = {
        "job": job_id,
        "task": learner.digest,
        "mlflow_run": mlflow_run_id,
        "config": config,
        "seed": seed,
        "code_version": code_version,
        "environment": environment,
        "started_at": started_at.isoformat(),
    }
    parents = [
        (learner.node_id, "task"),
        (learner.backbone_id, "backbone"),
        (learner.dataset_id, "dataset"),
    ]
    node = nodes.add(session, "run", digest_of(identity), parents)
    session.add(
        Run(
            node_id=node.id,
            job_id=job_id,
            task_id=learner.node_id,
            mlflow_run_id=mlflow_run_id,
            mlflow_experiment=mlflow_experiment,
            config=config,
            seed=seed,
            code_version=code_version,
            environment=environment,
            started_at=started_at,
            ended_at=ended_at,
        )
    )
    session.flush()
    events.append(session, "run.recorded", node.id, {"task": task, "mlflow_run_id": mlflow_run_id})
    return by_id(session, node.id)


def by_id(session: Session, node_id: int) -> RunRecord:
    """The run of a node."""
    return _record(session.execute(_query().where(Run.node_id == node_id)).one())


def list_all(session: Session, *, task: str | None = None) -> list[RunRecord]:
    """Every run (of a task), oldest first."""
    query = _query().order_by(Run.node_id)
    if task is not None:
        query = query.where(Run.task_id == tasks.get(session, task).node_id)
    return [_record(row) for row in session.execute(query)]


def latest_of(session: Session, job_id: str, task_id: int) -> RunRecord | None:
    """The last run that was recorded for a task of a job."""
    query = _query().where(Run.job_id == job_id, Run.task_id == task_id).order_by(Run.node_id.desc())
    row = session.execute(query.limit(1)).first()
    return None if row is None else _record(row)


def _query() -> Select[Run, Node, str]:
    return (
        select(Run, Node, Task.name)
        .join(Node, Node.id == Run.node_id)
        .join(Task, Task.node_id == Run.task_id)
    )


def _record(row: Row[Run, Node, str]) -> RunRecord:
    run, node, task = row
    return RunRecord(
        node_id=node.id,
        digest=node.digest,
        created_at=node.created_at,
        job_id=run.job_id,
        task=task,
        task_id=run.task_id,
        mlflow_run_id=run.mlflow_run_id,
        mlflow_experiment=run.mlflow_experiment,
        config=run.config,
        seed=run.seed,
        code_version=run.code_version,
        environment=run.environment,
        started_at=run.started_at,
        ended_at=run.ended_at,
    )
