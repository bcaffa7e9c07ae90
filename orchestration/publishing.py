"""From a finished checkpoint to the record: judge, prove, store the bytes, then one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from affinery import tensor_files
from orchestration import failpoints, queue
from orchestration.certificates import Certificate, prove
from orchestration.conditions import facts
from orchestration.environment import code_version, environment_fingerprint
from orchestration.errors import StageMoved
from orchestration.jobs import Claim
from orchestration.ray_train import PROGRESS
from orchestration.services import Services
from orchestration.uploads import uploading
from registry import adapters, backbones, blobs, certificates, evaluations, runs
from registry.columns import utc_now
from registry.records import AdapterRecord, BackboneRecord, TaskRecord

if TYPE_CHECKING:
    from affinery.adapters.files import Adapter
    from affinery.composed import ComposedModel
    from orchestration.kinds.contract import Attempt
    from trainers.evaluation.judging import Judgement
    from trainers.plan import PlannedTask, TrainingPlan

JUDGED_SAMPLES = 200


@dataclass(frozen=True)
class Learnt:
    """One task's result: its file, its record in memory, how it was judged, its curve and its run's key."""

    task: TaskRecord
    file: Path
    adapter: Adapter
    judgement: Judgement
    curve: list[tuple[int, float]]
    key: str

    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.curve:
            found["final_loss"] = self.curve[-1][1]
        if self.judgement.recognition is not None:
            found["recognition"] = asdict(self.judgement.recognition)
        return found


@dataclass(frozen=True)
class Stage:
    """What a job's results join: the backbone and the newest adapter of every older task."""

    backbone: BackboneRecord
    older: tuple[AdapterRecord, ...]


def stage_of(services: Services, tasks: Sequence[TaskRecord]) -> Stage:
    """What stands beside these tasks on their backbone."""
    with services.sessions.read() as session:
        return _stage(session, tasks[0].backbone_id, tasks)


def _stage(session: Session, backbone_id: int, tasks: Sequence[TaskRecord]) -> Stage:
    backbone = backbones.by_id(session, backbone_id)
    newest: dict[str, AdapterRecord] = {}
    for record in adapters.list_all(session, backbone=backbone.ref):
        if record.task not in {task.name for task in tasks}:
            held = newest.get(record.task)
            newest[record.task] = record if held is None or record.version > held.version else held
    return Stage(backbone, tuple(newest.values()))


def compose(services: Services, stage: Stage, fresh: Sequence[Adapter]) -> ComposedModel:
    """The backbone with every older adapter and the fresh ones."""
    from affinery.adapters.files import read_adapter
    from affinery.backbones.files import load_backbone
    from affinery.composed import ComposedModel

    model = ComposedModel(
        load_backbone(services.store.path(stage.backbone.blob_digest)), stage.backbone.digest
    )
    for record in stage.older:
        model.load(read_adapter(services.store.path(record.blob_digest)).named(record.task))
    for adapter in fresh:
        model.load(adapter)
    return model


def points(folder: Path) -> dict[str, dict[int, tuple[float, float]]]:
    """By task and step, (loss, time) over all attempts of a job.

    What a later attempt does again comes out the same; the earlier line counts, as MLflow has its time.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for path in sorted(folder.glob(f"attempt-*/{PROGRESS}"), key=lambda p: int(p.parent.name.split("-")[1])):
        for line in path.read_bytes().split(b"\n")[:-1]:  # a torn last line is no line
            report = json.loads(line)
            for task, loss in report["losses"].items():
                found.setdefault(task, {}).setdefault(int(report["step"]), (float(loss), report["time"]))
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By task, (step, loss) over all attempts of a job."""
    return {
        task: sorted((step, loss) for step, (loss, _) in by_step.items())
        for task, by_step in points(folder).items()
    }


def publish(
    attempt: Attempt,
    plan: TrainingPlan,
    stage: Stage,
    model: ComposedModel,
    results: Sequence[Learnt],
    experiment: str | None,
    started_at: datetime,
    progress: Mapping[str, Any] | None = None,
) -> tuple[list[AdapterRecord], Certificate]:
    """Proves that nothing older changed, then publishes all results and ends the job in one transaction.

    progress: where the job stands then; None where no step was left to this attempt.
    Raises OlderTaskDisturbed, StageMoved, LeaseLost or StaleFence; then nothing is visible.
    """
    services, held = attempt.services, attempt.held
    environment = environment_fingerprint()
    certificate = prove(model, stage.backbone, stage.older, services.store, str(environment["digest"]))
    with uploading(services.sessions, held.owner):
        stored = [_store(services, model, learnt, environment) for learnt in results]
        failpoints.reach("uploaded")
        code = code_version()
        # MLflow may be away: then the run is found later by its key, in the provenance and a tag of the run.
        services.tracking.flush()
        mlflow_ids = {learnt.key: services.tracking.run_id(learnt.key) for learnt in results}
        attempt.check()

        def write(session: Session) -> list[AdapterRecord]:
            published = []
            for learnt, blob, golden in stored:
                failpoints.reach("row")
                blobs.commit(session, golden, services.store.size_bytes(golden))
                runs.record(
                    session,
                    job_id=held.job.id,
                    task=learnt.task.name,
                    mlflow_run_id=mlflow_ids[learnt.key],
                    mlflow_experiment=experiment,
                    config=plan.recipe.to_dict(),
                    seed=plan.recipe.seed,
                    code_version=code,
                    environment=environment,
                    started_at=started_at,
                    ended_at=utc_now(),
                )
                failpoints.reach("row")
                published.append(
                    adapters.publish(
                        session,
                        job_id=held.job.id,
                        fence=held.fence,
                        task=learnt.task.name,
                        digest=blob,
                        blob_digest=blob,
                        size_bytes=services.store.size_bytes(blob),
                        parameters=learnt.adapter.parameters,
                        kind=learnt.task.kind,
                        config=learnt.task.config,
                        provenance=_provenance(held, plan, stage, learnt, code, environment),
                        mlflow_run_id=mlflow_ids[learnt.key],
                        metrics=learnt.metrics(),
                        golden_blob=golden,
                    )
                )
            for record, learnt in zip(published, results, strict=True):
                failpoints.reach("row")
                evaluations.record(
                    session,
                    adapter=record.ref,
                    reference=record.dataset,
                    protocol=learnt.judgement.protocol,
                    results=learnt.judgement.results,
                    job_id=held.job.id,
                    fence=held.fence,
                )
                failpoints.reach("row")
                certificates.record(
                    session,
                    stage_adapter=record.ref,
                    results=certificate.results,
                    level=certificate.level,
                )
            if _stage(session, stage.backbone.node_id, [learnt.task for learnt in results]) != stage:
                raise StageMoved(stage.backbone.ref)
            queue.complete(session, held, progress)
            return published

        return attempt.commit(write), certificate


def _store(
    services: Services, model: ComposedModel, learnt: Learnt, environment: Mapping[str, Any]
) -> tuple[Learnt, str, str]:
    """Puts one result's bytes into the store. → it, its adapter's digest and its golden images'"""
    from trainers.replay import golden_bytes

    content = golden_bytes(model, learnt.task.name, str(environment["digest"]), learnt.judgement.draws)
    golden = services.store.put_bytes(content)
    failpoints.reach("blob-put")
    blob = services.store.put_file(learnt.file)
    failpoints.reach("blob-put")
    return learnt, blob, golden


def _provenance(
    held: Claim, plan: TrainingPlan, stage: Stage, learnt: Learnt, code: str, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """What is needed to train this adapter again."""
    planned = next(entry for entry in plan.tasks if entry.name == learnt.task.name)
    return {
        "job": held.job.id,
        "attempt": held.attempt,
        "strategy": held.job.strategy,
        "trained_with": [entry.name for entry in plan.tasks if entry.name != learnt.task.name],
        "backbone": stage.backbone.digest,
        "dataset": planned.dataset_digest,
        "recipe": plan.recipe.to_dict(),
        **facts(planned.condition, planned.image_size),
        "seed": plan.recipe.seed,
        "code_version": code,
        "environment": environment["digest"],
        "tracking_key": learnt.key,
        **_begun(planned, learnt.adapter),
    }


def _begun(planned: PlannedTask, learnt: Adapter) -> dict[str, Any]:
    """Which tensors did not fit the adapter that it began from, and were started fresh."""
    if planned.warm_start is None:
        return {}
    older = tensor_files.read_header(Path(planned.warm_start)).tensors
    fits = {
        name
        for name, entry in older.items()
        if name in learnt.tensors and _shape(learnt, name) == entry.shape
    }
    return {"warm_start": {"taken": len(fits), "fresh": sorted(learnt.tensors.keys() - fits)}}


def _shape(adapter: Adapter, name: str) -> tuple[int, ...]:
    return tuple(adapter.tensors[name].shape)


def read_results(
    folder: Path,
    checkpoint: Path,
    tasks: Sequence[TaskRecord],
    judged: Mapping[str, Judgement],
    fresh: Sequence[Adapter],
    keys: Mapping[str, str],
) -> list[Learnt]:
    """The results of a job, task by task, in the order of the plan."""
    from trainers.session import adapter_name

    by_task = curves(folder)
    return [
        Learnt(
            task,
            checkpoint / adapter_name(i),
            fresh[i],
            judged[task.name],
            by_task.get(task.name, []),
            keys[task.name],
        )
        for i, task in enumerate(tasks)
    ]
