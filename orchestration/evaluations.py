"""Published adapters, measured: by a job or at once, recorded under their protocol, and told to MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from affinery import tensor_files
from orchestration import datasets, distances, publishing
from orchestration.services import Services
from registry import adapters, backbones, evaluations, refs, tasks
from registry import datasets as recorded
from registry.digests import digest_of
from registry.metrics import numbers
from registry.records import (
    AdapterRecord,
    BackboneRecord,
    DatasetRecord,
    EvaluationRecord,
    TaskRecord,
)

if TYPE_CHECKING:
    from affinery.adapters.files import Adapter
    from affinery.composed import ComposedModel
    from orchestration.chores import Evaluation
    from trainers.data import Split
    from trainers.evaluation.judging import Judgement

ROWS = 8


@dataclass(frozen=True)
class Measured:
    """What was measured of an adapter against a dataset version, not yet recorded."""

    adapter: AdapterRecord
    reference: DatasetRecord
    judgement: Judgement

    def record(
        self, session: Session, job_id: str | None = None, fence: int | None = None
    ) -> EvaluationRecord:
        """job_id, fence: of the job that measured it, where one did."""
        return evaluations.record(
            session,
            # By their numbers: either may have another name by now.
            adapter=refs.fixed(self.adapter.node_id),
            reference=refs.fixed(self.reference.node_id),
            protocol=self.judgement.protocol,
            results=self.judgement.results,
            job_id=job_id,
            fence=fence,
        )


@dataclass(frozen=True)
class Subject:
    """An adapter, what it was made from, and what it is measured against.

    source: the dataset version that it learnt from, unless another is asked for.
    """

    adapter: AdapterRecord
    task: TaskRecord
    source: DatasetRecord
    backbone: BackboneRecord

    def read(self, services: Services) -> Adapter:
        """The adapter, its bytes verified, under the task's present name."""
        from affinery.adapters.files import read_adapter

        services.store.verify(self.adapter.blob_digest)
        return read_adapter(services.store.path(self.adapter.blob_digest)).named(self.task.name)

    def images(self, services: Services, model: ComposedModel) -> Split:
        """The source's images to learn from, and those kept back. Raises DatasetChanged."""
        from trainers.plan import PlannedTask
        from trainers.session import load_task

        planned = PlannedTask(
            self.task.name,
            self.adapter.kind,
            self.task.config,
            str(datasets.ensure(services.data, self.source.dvc_path, self.source.digest)),
            self.source.digest,
            self.adapter.block,
            self.task.classes,
            self.task.condition,
            self.task.image_size,
        )
        return load_task(planned, model.backbone, str(services.cache))


def subject(services: Services, ref: str) -> Subject:
    """Raises NotFound, or BlobDamaged where the backbone is not what it was."""
    with services.sessions.read() as session:
        record = adapters.get(session, ref)
        found = Subject(
            record,
            tasks.by_id(session, record.task_id),
            recorded.by_id(session, record.dataset_id),
            backbones.by_id(session, record.backbone_id),
        )
    services.store.verify(found.backbone.blob_digest)
    return found


def measure(
    services: Services, ref: str, asked: Evaluation, on_stage: Callable[[str], None] = lambda _: None
) -> Measured:
    """Draws samples of an adapter and measures them.

    Raises NotFound, OtherClasses, ConfigInvalid, DatasetChanged …
    """
    from affinery.diffusion.sampling import default_settings
    from trainers.evaluation.judging import Measuring, judge

    found, usual = subject(services, ref), Measuring()
    with services.sessions.read() as session:
        found = replace(found, source=asked.reference(session, found.adapter))
    samples = asked.samples or usual.samples
    on_stage(f"drawing and measuring {samples} samples of {found.adapter.ref}")
    condition = _drawn_by(asked.condition_model, found.task.condition)
    model = publishing.compose(services, publishing.Stage(found.backbone, ()), [found.read(services)])
    measuring = Measuring(samples, asked.seed, asked.extractor or usual.extractor, condition)
    settings = default_settings(model, asked.steps, asked.guidance)
    images = found.images(services, model)
    return Measured(
        found.adapter,
        found.source,
        judge(model, found.task.name, images, settings, found.source.digest, measuring, services.cache),
    )


def _drawn_by(folder: str | None, condition: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A task's condition, as a model of a folder draws it where one is named. Raises ConfigInvalid."""
    if folder is None:
        return condition
    from affinery.errors import ConfigInvalid
    from trainers.conditions import condition_record

    if condition is None:
        raise ConfigInvalid("--condition-model", "the task is told no condition.")
    return condition_record(condition["name"], model=Path(folder))


def keep(services: Services, measured: Measured, evaluation: EvaluationRecord) -> list[Path]:
    """Writes its pictures, and adds them and the figures to the run that made the adapter. → the pictures

    MLflow is told nothing of an adapter that was made elsewhere.
    """
    record, tracking = measured.adapter, services.tracking
    folder = folder_of(services.evaluations, record)
    pictures = write_pictures(measured.judgement, folder / evaluation.protocol_digest[:12])
    key = record.provenance.get("tracking_key", "")
    if record.job_id is None or not tracking.kept.knows(key):
        return pictures
    now = int(time.time() * 1000)
    digest = evaluation.protocol_digest[:12]
    points = [
        (f"{mlflow_name(name)}/{digest}", number, 0, now)
        for name, number in numbers(evaluation.results).items()
    ]
    tracking.log_metrics(key, points)
    for path in pictures:
        tracking.log_artifact(key, path, f"{distances.FOLDER}/{digest}")
    distances.show(services, record, key)
    tracking.flush(key)
    return pictures


def folder_of(kept: Path, measured: AdapterRecord | BackboneRecord) -> Path:
    """Where what was measured of it is kept: by its digest, for its name may change.

    kept: the workspace's folder of all of them.
    """
    return kept / measured.digest


def mlflow_name(figure: str, task: str | None = None) -> str:
    """A figure's name in MLflow, which takes no brackets; of a task, where one is named."""
    name = _mlflow_part(figure.replace("[", "/").replace("]", ""))
    return name if task is None else f"{name}/{_mlflow_part(task)}"


def _mlflow_part(name: str) -> str:
    """A name with `_` for what MLflow refuses, and then some of its digest: no other becomes the same."""
    plain = "".join(c if c.isalnum() or c in "/_-. " else "_" for c in name)
    return plain if plain == name else f"{plain}-{digest_of(name)[:8]}"


def write_pictures(judgement: Judgement, folder: Path) -> list[Path]:
    """samples.png, and nearest.png: samples, each above the training image that is nearest."""
    import torch

    from trainers.pictures import png, tile

    folder.mkdir(parents=True, exist_ok=True)
    classes = int(judgement.labels.max()) + 1
    columns = min(classes, 20) if classes > 1 else 10
    pictures = {"samples.png": tile(judgement.images[: columns * ROWS], columns)}
    if judgement.twins is not None:
        count = min(16, len(judgement.twins))
        pictures["nearest.png"] = tile(torch.cat([judgement.images[:count], judgement.twins[:count]]), count)
    for name, picture in pictures.items():
        tensor_files.write_whole(folder / name, png(picture))
    return [folder / name for name in pictures]
