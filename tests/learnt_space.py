"""Real adapters without Ray, MLflow or a worker: the queue, the trainer and the registry alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from affinery.adapters.files import read_adapter
from orchestration import queue
from orchestration.kinds.train import plan_of
from orchestration.services import Services
from orchestration.uploads import uploading
from registry import adapters, blobs, certificates, runs
from registry.columns import utc_now
from registry.records import AdapterRecord
from trainers.plan import TrainingPlan
from trainers.session import TrainingSession, adapter_name


def learn(services: Services, folder: Path, metrics: dict[str, Any] | None = None) -> list[AdapterRecord]:
    """Does the next job, and publishes what was learnt under its fence."""
    with services.sessions.begin() as session:
        held = queue.claim(session, "tests")
    assert held is not None
    learners, plan = plan_of(services, held.job)
    training = TrainingSession(replace(plan, cache=None))
    while not training.advance().done:
        pass
    training.save(folder / held.job.id)
    published = []
    with uploading(services.sessions, "tests"):
        files = [folder / held.job.id / adapter_name(i) for i in range(len(learners))]
        stored = [services.store.put_file(file) for file in files]
        with services.sessions.begin() as session:
            for learner, file, digest in zip(learners, files, stored, strict=True):
                blobs.commit(session, digest, file.stat().st_size)
                _run(session, held.job.id, learner.name, plan)
                record = adapters.publish(
                    session,
                    job_id=held.job.id,
                    fence=held.fence,
                    task=learner.name,
                    digest=digest,
                    blob_digest=digest,
                    size_bytes=file.stat().st_size,
                    parameters=read_adapter(file).parameters,
                    kind=learner.kind,
                    config=learner.config,
                    provenance={"recipe": plan.recipe.to_dict(), "seed": plan.recipe.seed},
                    mlflow_run_id=None,
                    metrics=metrics or {},
                    golden_blob=None,
                )
                certificates.record(
                    session, stage_adapter=record.ref, results={"adapters": []}, level="bit-exact"
                )
                published.append(record)
            queue.complete(session, held)
    return published


def _run(session: Any, job_id: str, task: str, plan: TrainingPlan) -> None:
    runs.record(
        session,
        job_id=job_id,
        task=task,
        mlflow_run_id=None,
        mlflow_experiment=None,
        config=plan.recipe.to_dict(),
        seed=plan.recipe.seed,
        code_version="tests",
        environment={"packages": "0" * 64},
        started_at=utc_now(),
        ended_at=utc_now(),
    )
