"""Train tasks through Ray, judge, prove and publish what was learnt."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestration import (
    datasets,
    distances,
    evaluations,
    failpoints,
    needs,
    planner,
    publishing,
    queue,
    ray_processes,
    ray_train,
)
from orchestration.jobs import JobRecord
from orchestration.kinds.contract import Attempt
from orchestration.services import Services
from orchestration.tracking import Point, trainings
from registry import adapters, backbones, beginnings, tasks
from registry import datasets as recorded
from registry.columns import utc_now
from registry.metrics import numbers
from registry.records import DatasetRecord, TaskRecord

if TYPE_CHECKING:
    from affinery.adapters.files import Adapter
    from affinery.composed import ComposedModel
    from trainers.evaluation.judging import Judgement
    from trainers.plan import TrainingPlan

CONDITIONS = 80
log = logging.getLogger(__name__)


class Train:
    """One training of one or more tasks on one backbone."""

    needs_ray: ClassVar[bool] = True

    def run(self, attempt: Attempt) -> None:
        job, services, folder = attempt.job, attempt.services, attempt.folder
        started_at = utc_now()
        attempt.stage("checking the data")
        learners, plan = plan_of(services, job)
        _check_memory(attempt, learners)
        sources = _datasets(services, learners)
        keys = trainings.begin(services.tracking, job, learners, sources, plan, folder)
        told = publishing.points(folder)
        attempt.tell.started(_furthest(attempt))
        attempt.stage("starting Ray and its workers")
        later = threading.Thread(target=_warm_up, name="warm-up", daemon=True)

        heard: list[ray_train.ProgressLine] = []  # the first and the last

        def on_progress(line: ray_train.ProgressLine) -> None:
            if later.ident is None:
                later.start()
            heard[1:] = [line]
            for name, loss in line.losses.items():
                if line.step not in told.get(name, {}):
                    idle = ("idle_share", line.idle, line.step, int(line.time * 1000))
                    services.tracking.log_metrics(keys[name], [_point(line.step, loss, line.time), idle])
            attempt.tell.progress(line)
            failpoints.reach("training")

        checkpoint = ray_train.train(
            plan, folder, attempt.held.fence, attempt.share, on_progress, attempt.check
        )
        failpoints.reach("trained")
        stage = publishing.stage_of(services, learners)
        attempt.stage("drawing and judging samples")
        fresh = _read_adapters(checkpoint, plan)
        model = publishing.compose(services, stage, fresh)
        judged = {task.name: _judge(model, plan, i) for i, task in enumerate(learners)}
        results = publishing.read_results(folder, checkpoint, learners, judged, fresh, keys)
        _record_runs(services, folder, results)
        failpoints.reach("judged")
        attempt.stage("proving that nothing older changed")
        published, certificate = publishing.publish(
            attempt, plan, stage, model, results, trainings.EXPERIMENT, started_at, _progress(heard)
        )
        attempt.tell.published(published, certificate)
        for record in published:
            distances.show(services, record, keys[record.task])
        trainings.conclude(services.tracking, job, published)


KIND = Train()


def plan_of(services: Services, job: JobRecord) -> tuple[list[TaskRecord], TrainingPlan]:
    """The plan of a job, its data checked against what was pinned. Raises DatasetChanged."""
    from trainers.plan import PlannedTask, TrainingPlan
    from trainers.recipe import Recipe

    with services.sessions.read() as session:
        learners = [tasks.get(session, name) for name in job.tasks]
        sources = [recorded.by_id(session, task.dataset_id) for task in learners]
        backbone = backbones.by_id(session, learners[0].backbone_id)
        begins = beginnings.of(session, job.id)
        older = [begins[task.node_id].warm_start_id for task in learners]
        starts = [None if node_id is None else adapters.by_id(session, node_id) for node_id in older]
    for blob in (backbone.blob_digest, *(start.blob_digest for start in starts if start is not None)):
        services.store.verify(blob)
    planned = tuple(
        PlannedTask(
            task.name,
            task.kind,
            task.config,
            str(datasets.ensure(services.data, source.dvc_path, source.digest)),
            source.digest,
            task.block,
            task.classes,
            task.condition,
            task.image_size,
            None if start is None else str(services.store.path(start.blob_digest)),
        )
        for task, source, start in zip(learners, sources, starts, strict=True)
    )
    recipe = Recipe.from_dict(job.recipe)
    save_every = max(10, recipe.steps // 10)
    plan = TrainingPlan(
        str(services.store.path(backbone.blob_digest)),
        backbone.digest,
        planned,
        recipe,
        report_every=max(1, min(10, recipe.steps // 20)),
        save_every=save_every,
        cache=str(services.cache),
    )
    # A checkpoint is saved at a report, so the one distance must be a multiple of the other.
    return learners, replace(plan, save_every=-(-save_every // plan.report_every) * plan.report_every)


def _progress(heard: Sequence[ray_train.ProgressLine]) -> dict[str, Any] | None:
    """Where a training ended, and how fast it went; None where all steps were done before."""
    if not heard:
        return None
    first, last = heard[0], heard[-1]
    told: dict[str, Any] = {"step": last.step, "of": last.steps, "losses": last.losses}
    if last.step > first.step:
        told["seconds_a_step"] = (last.time - first.time) / (last.step - first.step)
    return told


def end_runs(services: Services, job_id: str, status: str) -> None:
    """Ends the MLflow runs of a job that will have no result."""
    with services.sessions.read() as session:
        job = queue.get(session, job_id)
    trainings.end(services.tracking, job, status)


def _datasets(services: Services, learners: Sequence[TaskRecord]) -> list[DatasetRecord]:
    with services.sessions.read() as session:
        return [recorded.by_id(session, task.dataset_id) for task in learners]


def _warm_up() -> None:
    """Imports what comes after the training, while Ray trains elsewhere."""
    ray_processes.imports(ray_processes.AFTER_TRAINING)


def _judge(model: ComposedModel, plan: TrainingPlan, index: int) -> Judgement:
    from affinery.diffusion.sampling import default_settings
    from trainers.evaluation.judging import Measuring, judge
    from trainers.session import load_task

    task = plan.tasks[index]
    split = load_task(task, model.backbone, plan.cache)
    cache = None if plan.cache is None else Path(plan.cache)
    return judge(
        model,
        task.name,
        split,
        default_settings(model),
        task.dataset_digest,
        Measuring(publishing.JUDGED_SAMPLES, condition=task.condition),
        cache,
    )


def _record_runs(services: Services, folder: Path, results: Sequence[publishing.Learnt]) -> None:
    """Pictures, figures and the adapter itself, to MLflow; the pictures stay beside the run too."""
    import torch

    from trainers.pictures import loss_curve, png, tile

    tracking = services.tracking
    for i, learnt in enumerate(results):
        name = learnt.task.name
        pictures = folder / f"pictures-{i}"
        names = [path.name for path in evaluations.write_pictures(learnt.judgement, pictures)]
        told = [draw.condition for draw in learnt.judgement.draws[:CONDITIONS]]
        if conditions := [condition for condition in told if condition is not None]:
            (pictures / "conditions.png").write_bytes(png(tile(torch.stack(conditions), 10)))
            names.append("conditions.png")
        names.append("loss.png")
        (pictures / "loss.png").write_bytes(loss_curve({name: learnt.curve}))
        # Once more and whole: what a driver that was killed had not passed on is in no other place.
        whole = publishing.points(folder).get(name, {})
        tracking.log_metrics(learnt.key, [_point(step, *told) for step, told in sorted(whole.items())])
        now = int(time.time() * 1000)
        last = learnt.curve[-1][0] if learnt.curve else 0
        found = numbers(learnt.judgement.results)
        tracking.log_metrics(
            learnt.key, [(evaluations.mlflow_name(name), value, last, now) for name, value in found.items()]
        )
        for picture in names:
            tracking.log_artifact(learnt.key, pictures / picture, "pictures")
        tracking.log_artifact(learnt.key, learnt.file, "adapter")


def _point(step: int, loss: float, at: float) -> Point:
    return ("loss", loss, step, int(at * 1000))


def _check_memory(attempt: Attempt, learners: Sequence[TaskRecord]) -> None:
    """Raises TooLarge. Of a cluster's machines this one knows nothing; Ray tells what they have not."""
    share = attempt.share
    if not ray_train.is_own(share.ray):
        return
    import torch

    with attempt.services.sessions.read() as session:
        backbone = backbones.by_id(session, learners[0].backbone_id)
    need = needs.of_training(backbone, learners, attempt.job.recipe)
    if share.gpus > 0 and torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        whole = min(torch.cuda.get_device_properties(i).total_memory for i in devices)
        part = min(1.0, share.gpus / share.workers)
        room, where = int(whole * part), "a GPU here" if part == 1 else f"{part:g} of a GPU here"
        needs.check_fits(need, attempt.job.recipe, room, where, share.workers)
    else:
        needs.check_fits(need, attempt.job.recipe, planner.machine().memory_bytes, "this machine")


def _furthest(attempt: Attempt) -> int:
    """The step from which a job goes on: that of its newest whole checkpoint. Torn ones are told."""
    from trainers.checkpoints import checkpoints_in, read_record
    from trainers.errors import CheckpointUnreadable

    def on_torn(torn: CheckpointUnreadable) -> None:
        log.warning("%s", torn)
        attempt.tell.stage(torn.elsewhere())

    found = next(checkpoints_in(attempt.folder, on_torn), None)
    return 0 if found is None else int(read_record(found)["step"])


def _read_adapters(checkpoint: Path, plan: TrainingPlan) -> list[Adapter]:
    from affinery.adapters.files import read_adapter
    from trainers.session import adapter_name

    return [read_adapter(checkpoint / adapter_name(i)) for i in range(len(plan.tasks))]
