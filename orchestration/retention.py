"""The matrix R[stage, task] of a backbone, measured: what every task draws after every addition.

A stage is a job that added tasks. After each, the model holds the adapters that were newest then, and every
task in it is measured anew under one protocol. What is measured of an adapter is recorded as its evaluation:
at a later stage the same figures are the same record, and other figures would be another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery import tensor_files
from orchestration import evaluations, publishing
from orchestration.errors import NothingLearnt
from orchestration.services import Services
from orchestration.tracking.trainings import EXPERIMENT
from registry import adapters, backbones, runs
from registry.metrics import find
from registry.records import AdapterRecord, BackboneRecord

if TYPE_CHECKING:
    from affinery.composed import ComposedModel
    from trainers.evaluation.continual import Matrix
    from trainers.evaluation.judging import Judgement, Measuring

FIGURE = "KD"
FILE, PICTURE = "retention.json", "retention.png"


@dataclass(frozen=True)
class Cost:
    """What a task's newest adapter takes: bytes, parameters, and the seconds and steps of its training."""

    adapter: str
    size_bytes: int
    parameters: int
    seconds: float | None
    steps: int | None


@dataclass(frozen=True)
class Retention:
    """Two matrices of one measuring, and what each task took."""

    backbone: str
    matrix: Matrix
    recognition: Matrix | None
    protocols: dict[str, str]
    costs: dict[str, Cost]

    def to_json(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            **self.matrix.to_json(),
            "recognition": None if self.recognition is None else self.recognition.to_json(),
            "protocols": self.protocols,
            "costs": {task: vars(cost) for task, cost in self.costs.items()},
        }


def stages(found: Sequence[AdapterRecord]) -> list[list[AdapterRecord]]:
    """What the model held after each addition: the newest adapter of every task, oldest task first.

    found: all adapters of a backbone, oldest first. What one job trained was added together.
    """
    held: dict[str, AdapterRecord] = {}
    listed: list[list[AdapterRecord]] = []
    for i, record in enumerate(found):
        held[record.task] = record
        following = found[i + 1] if i + 1 < len(found) else None
        if following is None or record.job_id is None or following.job_id != record.job_id:
            listed.append(list(held.values()))
    return listed


def measure(
    services: Services,
    backbone: str,
    measuring: Measuring,
    steps: int | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> Retention:
    """Raises NotFound, or NothingLearnt for a backbone without adapters."""
    with services.sessions.read() as session:
        record = backbones.get(session, backbone)
        found = adapters.list_all(session, backbone=record.ref)
    if not found:
        raise NothingLearnt(record.ref)
    listed = stages(found)
    tasks = list(dict.fromkeys(each.task for each in listed[-1]))
    subjects = {each.ref: evaluations.subject(services, each.ref) for stage in listed for each in stage}
    rows: list[dict[str, Judgement]] = []
    for number, stage in enumerate(listed, 1):
        model = publishing.compose(
            services, publishing.Stage(record, ()), [subjects[each.ref].read(services) for each in stage]
        )
        row = {}
        for each in stage:
            on_stage(f"stage {number} of {len(listed)}: {each.ref}")
            row[each.task] = _judged(services, model, subjects[each.ref], measuring, steps)
        _record(services, stage, row)
        rows.append(row)
    on_stage("step 0: every class is the null row")
    before = {
        each.task: _before(services, record, subjects[each.ref], measuring, steps) for each in listed[-1]
    }
    names = tuple(_name(new) for new in _added(listed))
    figure = next(name for name in before[tasks[0]].results if name.startswith((FIGURE, "KID")))
    recognised = all("recognition" in each.results for each in before.values())
    return Retention(
        record.ref,
        _matrix(f"{figure}.mean", names, tasks, rows, before, more_is_better=False),
        _matrix("recognition", names, tasks, rows, before, more_is_better=True) if recognised else None,
        {task: _digest(rows[-1][task]) for task in tasks},
        {each.task: _cost(services, each) for each in listed[-1]},
    )


def _judged(
    services: Services,
    model: ComposedModel,
    of: evaluations.Subject,
    measuring: Measuring,
    steps: int | None,
) -> Judgement:
    from affinery.diffusion.sampling import default_settings
    from trainers.evaluation.judging import judge

    settings = default_settings(model, steps)
    images = of.images(services, model)
    return judge(model, of.task.name, images, settings, of.source.digest, measuring, services.cache)


def _before(
    services: Services,
    backbone: BackboneRecord,
    of: evaluations.Subject,
    measuring: Measuring,
    steps: int | None,
) -> Judgement:
    """A task at step 0: the frozen backbone, every class the null row."""
    import torch

    model = publishing.compose(services, publishing.Stage(backbone, ()), [])
    model.start(of.read(services).meta, torch.Generator().manual_seed(measuring.seed))
    return _judged(services, model, of, measuring, steps)


def _record(services: Services, stage: Sequence[AdapterRecord], row: dict[str, Judgement]) -> None:
    with services.sessions.begin() as session:
        for each in stage:
            evaluations.Measured(each, row[each.task]).record(session)


def _added(listed: Sequence[Sequence[AdapterRecord]]) -> list[list[AdapterRecord]]:
    """What each stage brought."""
    before: list[set[str]] = [set(), *({each.ref for each in stage} for stage in listed)]
    return [
        [each for each in stage if each.ref not in known]
        for stage, known in zip(listed, before, strict=False)
    ]


def _name(new: Sequence[AdapterRecord]) -> str:
    return " + ".join(each.ref for each in new)


def _matrix(
    figure: str,
    names: tuple[str, ...],
    tasks: Sequence[str],
    rows: Sequence[dict[str, Judgement]],
    before: dict[str, Judgement],
    *,
    more_is_better: bool,
) -> Matrix:
    from trainers.evaluation.continual import Matrix

    def figures(row: dict[str, Judgement]) -> tuple[float | None, ...]:
        return tuple(find(row[task].results, figure) if task in row else None for task in tasks)

    listed = tuple(figures(row) for row in rows)
    return Matrix(figure, names, tuple(tasks), listed, figures(before), more_is_better)


def _digest(judgement: Judgement) -> str:
    from registry.digests import digest_of

    return digest_of(judgement.protocol)


def _cost(services: Services, record: AdapterRecord) -> Cost:
    with services.sessions.read() as session:
        run = None if record.run_id is None else runs.by_id(session, record.run_id)
    if run is None:
        return Cost(record.ref, record.size_bytes, record.parameters, None, None)
    seconds = (run.ended_at - run.started_at).total_seconds()
    return Cost(record.ref, record.size_bytes, record.parameters, seconds, run.config.get("steps"))


def keep(services: Services, found: Retention, folder: Path) -> Path:
    """Writes the matrix as JSON and as a picture, and tells MLflow, as a run of its own. → the picture"""
    from trainers.pictures import heat_map

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
    tensor_files.write_whole(folder / FILE, text.encode())
    matrix = found.matrix
    tensor_files.write_whole(
        folder / PICTURE,
        heat_map(matrix.rows, matrix.stages, matrix.tasks, f"{matrix.figure} after each stage"),
    )
    now = int(time.time() * 1000)
    key = services.tracking.start_run(
        EXPERIMENT,
        f"retention of {found.backbone}",
        {"backbone": found.backbone, "figure": matrix.figure, "stages": len(matrix.stages)},
        {"affinery.retention": found.backbone},
    )
    points = [
        (f"{evaluations.mlflow_name(matrix.figure)}/{evaluations.mlflow_name(task)}", value, step, now)
        for step, row in enumerate(matrix.rows)
        for task, value in zip(matrix.tasks, row, strict=True)
        if value is not None
    ]
    services.tracking.log_metrics(key, points)
    for name in (FILE, PICTURE):
        services.tracking.log_artifact(key, folder / name, "retention")
    services.tracking.finish(key)
    return folder / PICTURE
