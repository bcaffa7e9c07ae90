"""The identity of what has no file of its own, made anew from its row: is it still the digest recorded?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from registry import evaluations, renaming, tasks
from registry.declared import Names
from registry.digests import digest_of
from registry.findings import RESTORE, Finding
from registry.models import (
    Adapter,
    Certificate,
    Composition,
    CompositionMember,
    Evaluation,
    Node,
    Run,
    Task,
)


def changed(session: Session) -> Iterator[Finding]:
    """What was recorded without a file of its own, and whose row is not what its digest was made of."""
    name = Names(session)
    made: tuple[Callable[[Session], Iterator[tuple[int, str, str]]], ...] = (
        _tasks_anew,
        _runs_anew,
        _certificates_anew,
        _evaluations_anew,
        _compositions_anew,
    )
    for anew in made:
        for node_id, recorded, computed in anew(session):
            if recorded != computed:
                what = f"its row is not what its digest {recorded[:12]} was made of (now {computed[:12]})"
                yield Finding("digests", name(node_id), what, RESTORE, (node_id,))


def _tasks_anew(session: Session) -> Iterator[tuple[int, str, str]]:
    own, base, source, followed = aliased(Node), aliased(Node), aliased(Node), aliased(Node)
    rows = (
        select(Task, own.digest, base.digest, source.digest, followed.digest)
        .join(own, own.id == Task.node_id)
        .join(base, base.id == Task.backbone_id)
        .join(source, source.id == Task.dataset_id)
        .outerjoin(followed, followed.id == Task.predecessor_id)
    )
    first = renaming.origins(session, "task")
    for task, digest, backbone, dataset, predecessor in session.execute(rows):
        name = first.get(task.name, task.name)
        made_of = tasks.identity(name, backbone, dataset, task.kind, task.config, predecessor)
        yield task.node_id, digest, digest_of(made_of)


def _runs_anew(session: Session) -> Iterator[tuple[int, str, str]]:
    own, learner = aliased(Node), aliased(Node)
    rows = (
        select(Run, own.digest, learner.digest)
        .join(own, own.id == Run.node_id)
        .join(learner, learner.id == Run.task_id)
    )
    for run, digest, task in session.execute(rows):
        identity = {
            "job": run.job_id,
            "task": task,
            "mlflow_run": run.mlflow_run_id,
            "config": run.config,
            "seed": run.seed,
            "code_version": run.code_version,
            "environment": run.environment,
            "started_at": run.started_at.isoformat(),
        }
        yield run.node_id, digest, digest_of(identity)


def _certificates_anew(session: Session) -> Iterator[tuple[int, str, str]]:
    own, adapter = aliased(Node), aliased(Node)
    rows = (
        select(Certificate, own.digest, adapter.digest)
        .join(own, own.id == Certificate.node_id)
        .join(adapter, adapter.id == Certificate.adapter_id)
    )
    for row, digest, proved in session.execute(rows):
        identity = {"adapter": proved, "level": row.level, "results": row.results}
        yield row.node_id, digest, digest_of(identity)


def _evaluations_anew(session: Session) -> Iterator[tuple[int, str, str]]:
    own, adapter, dataset = aliased(Node), aliased(Node), aliased(Node)
    rows = (
        select(Evaluation, own.digest, adapter.digest, dataset.digest)
        .join(own, own.id == Evaluation.node_id)
        .join(adapter, adapter.id == Evaluation.adapter_id)
        .join(dataset, dataset.id == Evaluation.dataset_id)
    )
    for row, digest, judged, against in session.execute(rows):
        made_of = evaluations.identity(judged, against, row.protocol, row.results)
        yield row.node_id, digest, digest_of(made_of)


def _compositions_anew(session: Session) -> Iterator[tuple[int, str, str]]:
    own, base, part = aliased(Node), aliased(Node), aliased(Node)
    members: dict[int, list[list[Any]]] = {}
    first = renaming.origins(session, "task")
    for composition_id, task, version, digest in session.execute(
        select(CompositionMember.composition_id, Task.name, Adapter.version, part.digest)
        .join(Adapter, Adapter.node_id == CompositionMember.adapter_id)
        .join(Task, Task.node_id == CompositionMember.task_id)
        .join(part, part.id == CompositionMember.adapter_id)
        .order_by(CompositionMember.composition_id, CompositionMember.pos)
    ):
        members.setdefault(composition_id, []).append([first.get(task, task), version, digest])
    rows = (
        select(Composition, own.digest, base.digest)
        .join(own, own.id == Composition.node_id)
        .join(base, base.id == Composition.backbone_id)
    )
    for row, digest, backbone in session.execute(rows):
        identity = {
            "backbone": backbone,
            "mode": row.mode,
            "recipe": row.recipe,
            "members": members.get(row.node_id, []),
        }
        yield row.node_id, digest, digest_of(identity)
