"""What a report of a task tells, gathered from the registry and from the workspace's own files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affinery_app.wiring import Workspace
from orchestration import publishing, queue
from orchestration.errors import JobNotFound
from registry import adapters, certificates, datasets, evaluations, notes, runs, tags, tasks
from registry.records import (
    AdapterRecord,
    CertificateRecord,
    DatasetRecord,
    EvaluationRecord,
    RunRecord,
    TaskRecord,
)

RETENTION = "retention.json"


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


def gather(space: Workspace, name: str) -> TaskReport:
    """Raises NotFound."""
    with space.sessions.read() as session:
        task = tasks.get(session, name)
        dataset = datasets.by_id(session, task.dataset_id)
        found = adapters.list_all(session, task=task.name)
        proofs = {each.ref: certificates.list_for(session, each.ref) for each in found}
        made = {each.ref: None if each.run_id is None else runs.by_id(session, each.run_id) for each in found}
        places = {each.ref: _place(session, each) for each in found}
        measured: dict[str, list[EvaluationRecord]] = {}
        for each in found:
            for evaluation in evaluations.latest_of(session, each.node_id):
                measured.setdefault(evaluation.protocol_digest, []).append(evaluation)
        said, held = notes.of(session, task.node_id), tags.of(session, task.node_id)
    versions = [
        Version(each, made[each.ref], proofs[each.ref], *_files(space, each, places[each.ref]))
        for each in found
    ]
    return TaskReport(task, dataset, said, held, versions, measured, _retention(space, task))


def _place(session: Any, adapter: AdapterRecord) -> int:
    """Which of its job's tasks an adapter's is: its pictures are kept by that number."""
    if adapter.job_id is None:
        return 0
    try:
        learnt = queue.get(session, adapter.job_id).tasks
    except JobNotFound:
        return 0
    return learnt.index(adapter.task) if adapter.task in learnt else 0


def _files(
    space: Workspace, adapter: AdapterRecord, place: int
) -> tuple[list[tuple[int, float]], dict[str, Path]]:
    pictures: dict[str, Path] = {}
    curve: list[tuple[int, float]] = []
    if adapter.job_id is not None:
        folder = space.runs / adapter.job_id
        curves = publishing.curves(folder)
        curve = curves.get(adapter.task, [])
        pictures |= {path.name: path for path in sorted((folder / f"pictures-{place}").glob("*.png"))}
    evaluated = space.folder / "evaluations" / adapter.ref.replace("@", "-")
    for path in sorted(evaluated.glob("*/*.png")):
        pictures[f"{path.stem} (protocol {path.parent.name})"] = path
    pictures.pop("loss.png", None)  # drawn anew, in the colours of the page
    return curve, pictures


def _retention(space: Workspace, task: TaskRecord) -> dict[str, Any] | None:
    path = space.folder / "evaluations" / task.backbone.replace("@", "-") / RETENTION
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found
