"""The matrix R[stage, task] of a backbone, measured: what every task draws after every addition.

A stage is a job that added tasks. After each, the model holds the adapters that were newest then, and every
task in it is measured anew. All figures of a task are of one protocol: each of its adapters is measured
against the images that its newest one learnt from. What is measured of an adapter is recorded as its
evaluation: at a later stage the same figures are the same record, and other figures would be another.

The whole of it is an event of the backbone, which names things by their nodes: whoever reads the registry
has the newest matrix, by the names of today, wherever it was measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from affinery import tensor_files
from orchestration import evaluations, publishing
from orchestration.errors import NothingLearnt, TooFewImages
from orchestration.evaluations import Measured
from orchestration.services import Services
from orchestration.tracking import Tracking
from orchestration.tracking.trainings import EXPERIMENT
from registry import adapters, backbones, events, refs, runs
from registry.digests import digest_of
from registry.metrics import find
from registry.records import AdapterRecord, BackboneRecord

if TYPE_CHECKING:
    from affinery.composed import ComposedModel
    from orchestration import chores
    from trainers.data import Split
    from trainers.evaluation.continual import Matrix
    from trainers.evaluation.judging import Judgement, Measuring

FIGURE = "KD"
MEASURED = "backbone.measured"
FILE, PICTURE = "retention.json", "retention.png"
Told = Callable[[int, int, str], None]
"""Hears how many measurements of how many are done, and which is next."""


@dataclass(frozen=True)
class Cost:
    """What a task's newest adapter takes: bytes, parameters, and the seconds and steps of its training."""

    adapter: str
    size_bytes: int
    parameters: int
    seconds: float | None
    steps: int | None


@dataclass(frozen=True)
class Nodes:
    """tasks: of the columns; newest: the last adapter of each; stages: the adapters that each added."""

    tasks: tuple[int, ...]
    newest: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Retention:
    """Two matrices of one measuring, what each task took, and what was measured, stage after stage.

    recognition: None where no task has it; of some tasks, the columns of the others are empty. nodes: of what
    the matrices name.
    """

    backbone: BackboneRecord
    matrix: Matrix
    recognition: Matrix | None
    protocols: dict[str, str]
    costs: dict[str, Cost]
    nodes: Nodes
    measured: tuple[Measured, ...] = ()

    def record(self, session: Session, job_id: str | None = None, fence: int | None = None) -> None:
        """job_id, fence: of the job that measured it, where one did. Raises StaleFence."""
        for each in self.measured:
            each.record(session, job_id, fence)
        told = {
            "ref": self.backbone.ref,
            "tasks": len(self.matrix.tasks),
            "stages": len(self.matrix.stages),
            "matrix": self._by_nodes(),
        }
        events.append(session, MEASURED, self.backbone.node_id, told)

    def _by_nodes(self) -> dict[str, Any]:
        """All of it but what is read from the matrices."""
        return {
            **vars(self.nodes),
            "matrices": [
                {
                    "figure": each.figure,
                    "more_is_better": each.more_is_better,
                    "matrix": each.rows,
                    "step_0": each.before,
                }
                for each in (self.matrix, self.recognition)
                if each is not None
            ],
            "protocols": list(self.protocols.values()),
            "costs": [
                (cost.size_bytes, cost.parameters, cost.seconds, cost.steps) for cost in self.costs.values()
            ],
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone.ref,
            **self.matrix.to_json(),
            "recognition": None if self.recognition is None else self.recognition.to_json(),
            "protocols": self.protocols,
            "costs": {task: vars(cost) for task, cost in self.costs.items()},
        }


def newest(session: Session, backbone: BackboneRecord) -> tuple[datetime, Retention] | None:
    """What was measured last of a backbone, and when, by the names of today; None where nothing was."""
    from trainers.evaluation.continual import Matrix

    told = events.newest(session, limit=1, kind=MEASURED, subject=backbone.node_id)
    if not told:
        return None
    kept = told[0].payload["matrix"]
    nodes = Nodes(
        tuple(kept["tasks"]), tuple(kept["newest"]), tuple(tuple(added) for added in kept["stages"])
    )
    called = refs.describe(session, {*nodes.tasks, *nodes.newest, *chain(*nodes.stages)})
    tasks = tuple(called[task].name for task in nodes.tasks)
    names = tuple(" + ".join(called[each].ref for each in added) for added in nodes.stages)
    matrices = [
        Matrix(
            each["figure"],
            names,
            tasks,
            tuple(tuple(row) for row in each["matrix"]),
            tuple(each["step_0"]),
            each["more_is_better"],
        )
        for each in kept["matrices"]
    ]
    costs = (
        Cost(called[adapter].ref, *cost) for adapter, cost in zip(nodes.newest, kept["costs"], strict=True)
    )
    return told[0].at, Retention(
        backbone,
        matrices[0],
        matrices[1] if len(matrices) > 1 else None,
        dict(zip(tasks, kept["protocols"], strict=True)),
        dict(zip(tasks, costs, strict=True)),
        nodes,
    )


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
    asked: chores.Retention,
    told: Told,
) -> Retention:
    """Raises, before it draws any: NotFound, NothingLearnt for a backbone without adapters, TooFewImages."""
    from trainers.evaluation.judging import Measuring

    with services.sessions.read() as session:
        record = backbones.get(session, asked.backbone)
        found = adapters.list_all(session, backbone=record.ref)
    if not found:
        raise NothingLearnt(record.ref)
    usual = Measuring()
    measuring = Measuring(asked.samples or usual.samples, asked.seed, asked.extractor or usual.extractor)
    listed = stages(found)
    done, of = 0, sum(map(len, listed)) + len(listed[-1])
    tasks = list(dict.fromkeys(each.task for each in listed[-1]))
    subjects = {each.ref: evaluations.subject(services, each.ref) for stage in listed for each in stage}
    columns = {each.task: _column(services, record, subjects[each.ref]) for each in listed[-1]}
    for column in columns.values():
        column.check(measuring.samples)
    rows: list[dict[str, Judgement]] = []
    measured: list[Measured] = []
    for number, stage in enumerate(listed, 1):
        model = publishing.compose(
            services, publishing.Stage(record, ()), [subjects[each.ref].read(services) for each in stage]
        )
        row = {}
        for each in stage:
            told(done, of, f"stage {number} of {len(listed)}: {each.ref}")
            column = columns[each.task]
            row[each.task] = _judged(services, model, column, measuring, asked.steps)
            measured.append(Measured(each, column.newest.source, row[each.task]))
            done += 1
        rows.append(row)
    before: dict[str, Judgement] = {}
    for each in listed[-1]:
        told(done, of, f"step 0, every class the null row: {each.task}")
        before[each.task] = _before(services, record, columns[each.task], measuring, asked.steps)
        done += 1
    added = _added(listed)
    names = tuple(_name(new) for new in added)
    figure = next(name for name in before[tasks[0]].results if name.startswith((FIGURE, "KID")))
    recognised = any("recognition" in each.results for each in before.values())
    return Retention(
        record,
        _matrix(f"{figure}.mean", names, tasks, rows, before, more_is_better=False),
        _matrix("recognition", names, tasks, rows, before, more_is_better=True) if recognised else None,
        {task: _protocol(task, [*rows, before]) for task in tasks},
        {each.task: _cost(services, each) for each in listed[-1]},
        Nodes(
            tuple(each.task_id for each in listed[-1]),
            tuple(each.node_id for each in listed[-1]),
            tuple(tuple(each.node_id for each in new) for new in added),
        ),
        tuple(measured),
    )


@dataclass(frozen=True)
class _Column:
    """A task's newest adapter, and its images: those that all of the task's figures are measured against."""

    newest: evaluations.Subject
    images: Split

    def check(self, samples: int) -> None:
        """Raises TooFewImages where so many samples of it, or its own images, have no distance."""
        from trainers.evaluation.judging import FEWEST

        task = self.newest.task
        if max(samples, len(task.classes)) < FEWEST:
            raise TooFewImages(task.name, "samples", samples, FEWEST)
        if (learnt := len(self.images.train.labels)) < FEWEST:
            raise TooFewImages(task.name, self.newest.source.ref, learnt, FEWEST)


def _column(services: Services, backbone: BackboneRecord, newest: evaluations.Subject) -> _Column:
    frozen = publishing.compose(services, publishing.Stage(backbone, ()), [])
    return _Column(newest, newest.images(services, frozen))


def _judged(
    services: Services,
    model: ComposedModel,
    of: _Column,
    measuring: Measuring,
    steps: int | None,
) -> Judgement:
    """What the model draws of a task, and its figures."""
    from affinery.diffusion.sampling import default_settings
    from trainers.evaluation.judging import judge

    settings = default_settings(model, steps)
    measuring = replace(measuring, condition=of.newest.task.condition)
    name, digest = of.newest.task.name, of.newest.source.digest
    found = judge(model, name, of.images, settings, digest, measuring, services.cache)
    return replace(
        found, images=found.images[:0].clone(), draws=(), twins=None
    )  # the figures are what is kept


def _before(
    services: Services,
    backbone: BackboneRecord,
    of: _Column,
    measuring: Measuring,
    steps: int | None,
) -> Judgement:
    """A task at step 0: the frozen backbone, every class the null row."""
    import torch

    model = publishing.compose(services, publishing.Stage(backbone, ()), [])
    model.start(of.newest.read(services).meta, torch.Generator().manual_seed(measuring.seed))
    return _judged(services, model, of, measuring, steps)


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


def _protocol(task: str, rows: Sequence[dict[str, Judgement]]) -> str:
    """The digest of the protocol of a task's column: there is one, or none could be subtracted."""
    found = {digest_of(row[task].protocol) for row in rows if task in row}
    assert len(found) == 1, (task, found)
    return found.pop()


def _cost(services: Services, record: AdapterRecord) -> Cost:
    with services.sessions.read() as session:
        run = None if record.run_id is None else runs.by_id(session, record.run_id)
    if run is None:
        return Cost(record.ref, record.size_bytes, record.parameters, None, None)
    seconds = (run.ended_at - run.started_at).total_seconds()
    return Cost(record.ref, record.size_bytes, record.parameters, seconds, run.config.get("steps"))


@dataclass(frozen=True)
class Kept:
    """Where a backbone's matrix is written for people. evaluations: the workspace's folder of them."""

    evaluations: Path
    backbone: BackboneRecord

    @property
    def folder(self) -> Path:
        return evaluations.folder_of(self.evaluations, self.backbone)

    @property
    def picture(self) -> Path:
        return self.folder / PICTURE

    def write(self, found: Retention) -> None:
        """As JSON and as a picture; both are made before either is written."""
        from trainers.pictures import heat_map

        matrix = found.matrix
        title = f"{matrix.figure} after each stage"
        text = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
        picture = heat_map(matrix.rows, matrix.stages, matrix.tasks, title)
        self.folder.mkdir(parents=True, exist_ok=True)
        tensor_files.write_whole(self.picture, picture)
        tensor_files.write_whole(self.folder / FILE, text.encode())

    def tell(self, tracking: Tracking, found: Retention) -> None:
        """Gives MLflow a run of it, with what was written."""
        matrix = found.matrix
        now = int(time.time() * 1000)
        key = tracking.start_run(
            EXPERIMENT,
            f"retention of {found.backbone.ref}",
            {"backbone": found.backbone.ref, "figure": matrix.figure, "stages": len(matrix.stages)},
            {"affinery.retention": found.backbone.ref},
        )
        points = [
            (evaluations.mlflow_name(matrix.figure, task), value, step, now)
            for step, row in enumerate(matrix.rows)
            for task, value in zip(matrix.tasks, row, strict=True)
            if value is not None
        ]
        tracking.log_metrics(key, points)
        for name in (FILE, PICTURE):
            tracking.log_artifact(key, self.folder / name, "retention")
        tracking.finish(key)
