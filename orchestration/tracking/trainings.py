"""What MLflow is told of a training: a run a task, under a run of the job where several train together.

The keys follow from the job and the task, so that every attempt goes on with the same runs, and a process
that dies anywhere leaves none that nobody knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery import tensor_files
from orchestration.environment import code_version, environment_fingerprint
from orchestration.jobs import JobRecord
from orchestration.tracking.replay import DIGEST_TAG, REF_TAG
from orchestration.tracking.runs import Tracking
from registry.records import AdapterRecord, DatasetRecord, TaskRecord

if TYPE_CHECKING:
    from trainers.plan import TrainingPlan

EXPERIMENT = "affinery"
SHEET, DATA = "contact-sheet.png", "data"


def key_of(job_id: str, place: int | None = None) -> str:
    """The key of a job's own run, or of that of its task at a place, whatever that is called by now."""
    return hashlib.sha256(f"{job_id}/{'' if place is None else place}".encode()).hexdigest()[:32]


def keys_of(job: JobRecord) -> dict[str, str]:
    """By task, the keys of a job's runs."""
    return {task: key_of(job.id, place) for place, task in enumerate(job.tasks)}


def begin(
    tracking: Tracking,
    job: JobRecord,
    learners: Sequence[TaskRecord],
    sources: Sequence[DatasetRecord],
    plan: TrainingPlan,
    folder: Path,
) -> dict[str, str]:
    """Opens a job's runs, or goes on with them. folder: the job's. → by task, their keys"""
    keys = keys_of(job)
    if all(_has_begun(tracking, key) for key in keys.values()):
        return keys
    parent = _parent(tracking, job, plan) if len(learners) > 1 else None
    environment = json.dumps(environment_fingerprint(), indent=2)
    config = json.dumps(json.loads(plan.to_json()), indent=2, ensure_ascii=False)
    for i, (task, source) in enumerate(zip(learners, sources, strict=True)):
        key = keys[task.name]
        tags = _tags(job, plan) | {"affinery.task": task.name, "affinery.dataset": source.digest}
        params = _params(job, task, plan)
        tracking.start_run(EXPERIMENT, task.name, params, tags, key=key, parent=parent)
        tracking.log_text(key, environment, "environment.json")
        tracking.log_text(key, config, "plan.json")
        tracking.log_dataset(
            key,
            source.name,
            source.digest,
            {"dvc_path": source.dvc_path, "dvc_md5": source.dvc_md5, "from": source.source},
            {
                "sha256": source.digest,
                "ref": source.ref,
                "images": source.image_count,
                "classes": dict(zip(source.classes, source.class_counts, strict=True)),
                "licence": source.licence,
            },
        )
        _contact_sheet(tracking, key, Path(plan.tasks[i].pack), source, folder / f"data-{i}")
    return keys


def _has_begun(tracking: Tracking, key: str) -> bool:
    """Whether everything that `begin` tells is on disk; a part of it may be, after a kill."""
    told = tracking.kept.operations(key)
    return any(operation["op"] == "artifact" and operation["to"] == DATA for operation in told)


def _parent(tracking: Tracking, job: JobRecord, plan: TrainingPlan) -> str:
    params = plan.recipe.to_dict() | {"strategy": job.strategy, "tasks": ", ".join(job.tasks)}
    name = " + ".join(job.tasks)
    return tracking.start_run(
        EXPERIMENT,
        name if len(name) <= 200 else f"{name[:199]}…",
        params,
        _tags(job, plan),
        key=key_of(job.id),
    )


def _params(job: JobRecord, task: TaskRecord, plan: TrainingPlan) -> dict[str, Any]:
    params = plan.recipe.to_dict() | {f"{task.kind}.{name}": value for name, value in task.config.items()}
    params |= {"task": task.name, "kind": task.kind, "strategy": job.strategy}
    params |= {"dataset": task.dataset, "backbone": task.backbone, "class_rows": list(task.block)}
    params |= {f"condition.{name}": value for name, value in (task.condition or {}).items()}
    return params | ({} if task.image_size is None else {"image_size": task.image_size})


def _tags(job: JobRecord, plan: TrainingPlan) -> dict[str, str]:
    return {
        "affinery.job": job.id,
        "affinery.backbone": plan.fingerprint,
        "affinery.environment": str(environment_fingerprint()["digest"]),
        "affinery.code": code_version(),
    }


def _contact_sheet(tracking: Tracking, key: str, pack: Path, source: DatasetRecord, folder: Path) -> None:
    from orchestration.datasets.contact_sheet import contact_sheet

    folder.mkdir(parents=True, exist_ok=True)
    tensor_files.write_whole(folder / SHEET, contact_sheet(pack, source.ref))
    tracking.log_artifact(key, folder / SHEET, DATA)


def conclude(tracking: Tracking, job: JobRecord, published: Sequence[AdapterRecord]) -> None:
    """Published adapters become versions of their tasks' registered models, and the runs end."""
    keys = keys_of(job)
    for record in published:
        key = keys[record.task]
        tracking.set_tags(key, {"affinery.adapter": record.ref, DIGEST_TAG: record.digest})
        tracking.register(key, model_name(record), "adapter", model_tags(record))
        tracking.finish(key)
    _end_parent(tracking, job, "FINISHED")


def model_name(record: AdapterRecord) -> str:
    """The registered model of a task."""
    return f"task.{record.task}"


def model_tags(record: AdapterRecord) -> Mapping[str, str]:
    return {
        REF_TAG: record.ref,
        DIGEST_TAG: record.digest,
        "affinery.backbone": record.backbone,
        "affinery.dataset": record.dataset,
        "affinery.kind": record.kind,
        "affinery.parameters": str(record.parameters),
    }


def end(tracking: Tracking, job: JobRecord, status: str) -> None:
    """Ends the runs of a job that will have no result; nothing where it never began."""
    for key in keys_of(job).values():
        if tracking.kept.knows(key):
            tracking.finish(key, status)
    _end_parent(tracking, job, status)


def _end_parent(tracking: Tracking, job: JobRecord, status: str) -> None:
    if tracking.kept.knows(key_of(job.id)):
        tracking.finish(key_of(job.id), status)
