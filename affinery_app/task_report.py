"""What a report of a task tells, gathered from the registry and from the workspace's own files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from affinery_app.wiring import Workspace
from orchestration import distances, publishing, queue
from orchestration.errors import JobNotFound
from orchestration.evaluations import folder_of
from orchestration.retention import newest as measured_last
from registry import (
    adapters,
    backbones,
    certificates,
    datasets,
    notes,
    search,
    tags,
    tasks,
)
from registry.records import (
    AdapterRecord,
    CertificateRecord,
    DatasetRecord,
    EvaluationRecord,
    RunRecord,
    TaskRecord,
)


@dataclass(frozen=True)
class Version:
    """One adapter of the task. curve: (step, loss); pictures: by name, those on this machine."""

    adapter: AdapterRecord
    run: RunRecord | None
    certificates: list[CertificateRecord]
    curve: list[tuple[int, float]]
    pictures: dict[str, Path]


@dataclass(frozen=True)
class TaskReport:
    """evaluations: by protocol, of each adapter the last one. retention: of its backbone, where measured."""

    task: TaskRecord
    dataset: DatasetRecord
    note: str | None
    tags: dict[str, str]
    versions: list[Version]
    evaluations: dict[str, list[EvaluationRecord]]
    retention: dict[str, Any] | None

    def over_steps(self) -> dict[str, distances.Lines]:
        """By protocol and figure, (steps, distance) of the versions."""
        return distances.over_steps([(each.adapter, each.run) for each in self.versions], self.evaluations)


def gather(space: Workspace, name: str, newest: int | None = None) -> TaskReport:
    """All versions, or so many of the newest, oldest first. Raises NotFound."""
    with space.sessions.read() as session:
        task = tasks.get(session, name)
        dataset = datasets.by_id(session, task.dataset_id)
        backbone = backbones.by_id(session, task.backbone_id)
        if newest is None:
            found = adapters.list_all(session, task=task.name)
        else:
            found = list(search.search(session, f"task={task.digest}", limit=newest).adapters)[::-1]
        proofs = {each.ref: certificates.list_for(session, each.ref) for each in found}
        made = {each.ref: distances.run_of(session, each) for each in found}
        places = {each.ref: place_of(session, each) for each in found}
        measured = distances.measured(session, found)
        remembered = measured_last(session, backbone)
        said, held = notes.of(session, task.node_id), tags.of(session, task.node_id)
    versions = [
        Version(
            each,
            made[each.ref],
            proofs[each.ref],
            curve_of(space, each),
            pictures(space, each, places[each.ref]),
        )
        for each in found
    ]
    matrix = None if remembered is None else remembered[1].to_json()
    return TaskReport(task, dataset, said, held, versions, measured, matrix)


def place_of(session: Session, adapter: AdapterRecord) -> int:
    """Which of its job's tasks an adapter's is: its pictures are kept by that number."""
    if adapter.job_id is None:
        return 0
    try:
        learnt = queue.get(session, adapter.job_id).tasks
    except JobNotFound:
        return 0
    return learnt.index(adapter.task) if adapter.task in learnt else 0


def curve_of(space: Workspace, adapter: AdapterRecord) -> list[tuple[int, float]]:
    """(step, loss) of the training that made a version, where its reports are on this machine."""
    if adapter.job_id is None:
        return []
    return publishing.curves(space.runs / adapter.job_id).get(adapter.task, [])


def pictures(space: Workspace, adapter: AdapterRecord, place: int) -> dict[str, Path]:
    """What was drawn of a version, by name, where it is on this machine. place: see place_of."""
    found: dict[str, Path] = {}
    if adapter.job_id is not None:
        drawn = space.runs / adapter.job_id / f"pictures-{place}"
        found |= {path.name: path for path in sorted(drawn.glob("*.png"))}
    for path in sorted(folder_of(space.evaluations, adapter).glob("*/*.png")):
        found[f"{path.stem} (protocol {path.parent.name})"] = path
    found.pop("loss.png", None)  # drawn anew, in the colours of the page
    return found
