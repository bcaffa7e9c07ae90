"""What would be scheduled, looked at before it is: every job as it would be, in its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter
from typing import Any

from sqlalchemy.orm import Session

from orchestration import needs, planner
from orchestration.errors import TooLarge
from orchestration.jobs import JobRecord
from orchestration.obstacles import obstacles
from orchestration.queue.history import pace
from orchestration.scheduling import Scheduled
from registry import backbones, tasks
from registry.records import TaskRecord


class Rehearsal:
    """Sees what schedule_all would keep, while it is there.

    words: how an error is told to who asked. jobs: in the order in which they would run. seconds: of all, one
    after another; None where no such training is done yet to reckon by.
    """

    def __init__(self, words: Callable[[Exception], str] = str) -> None:
        self.words = words
        self.jobs: list[dict[str, Any]] = []
        self.seconds: float | None = 0.0

    def __call__(self, session: Session, found: Sequence[Scheduled]) -> None:
        places: dict[str, int] = {}
        waiting = sum(each.new and each.job.strategy is None for each in found)
        for place, each in enumerate(_in_order(found), 1):
            places[each.job.id] = place
            learners = [tasks.get(session, name) for name in each.job.tasks]
            job = _described(session, each.job, learners, waiting, self.words)
            after = [str(places.get(need, f"job {need[:8]}")) for need in each.job.needs]
            self.jobs.append({"place": place, "new": each.new} | job | {"after": after})
        times = [job["seconds"] for job in self.jobs if job["new"]]
        self.seconds = None if None in times else sum(times)


def _in_order(found: Sequence[Scheduled]) -> list[Scheduled]:
    """As a single worker would take them: needs first, then priority, then as they were given."""
    by_id = {each.job.id: each for each in found}
    rank = {each.job.id: (-each.job.priority, each.job.number) for each in found}
    graph = TopologicalSorter({each.job.id: [n for n in each.job.needs if n in by_id] for each in found})
    graph.prepare()
    ready, order = list(graph.get_ready()), []
    while ready:
        ready.sort(key=rank.__getitem__)
        job_id = ready.pop(0)
        order.append(by_id[job_id])
        graph.done(job_id)
        ready += graph.get_ready()
    return order


def _described(
    session: Session,
    job: JobRecord,
    learners: Sequence[TaskRecord],
    waiting: int,
    words: Callable[[Exception], str],
) -> dict[str, Any]:
    """What it does, what it takes, how it would be trained here, and how long such jobs took here."""
    backbone, recipe, here = backbones.by_id(session, learners[0].backbone_id), job.recipe, planner.machine()
    need = needs.of_training(backbone, learners, recipe)
    choice = planner.foreseen(job, waiting, need.memory_bytes, here)
    refused = None
    try:
        if not here.gpus:
            needs.check_fits(need, recipe, here.memory_bytes, "this machine")
    except TooLarge as error:
        refused = words(error)
    refused = refused or obstacles(session, [job], here).get(job.id)
    known = pace(session, backbone.node_id)
    return {
        "tasks": [task.name for task in learners],
        "datasets": [task.dataset for task in learners],
        "kinds": [task.kind for task in learners],
        "backbone": backbone.ref,
        "class_rows": [list(task.block) for task in learners],
        "priority": job.priority,
        "strategy": choice.strategy,
        "because": choice.why,
        "refused": refused,
        "steps": recipe["steps"],
        "parameters": need.parameters,
        "memory_bytes": need.memory_bytes,
        "macs": need.macs * recipe["steps"],
        "seconds": None if known is None else known.seconds(recipe["steps"], len(learners)),
        "seconds_from_jobs": 0 if known is None else known.jobs,
    }
