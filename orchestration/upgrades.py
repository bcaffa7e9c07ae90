"""Tasks move to the newest version of their dataset: trained again on it, from their latest adapter.

A task keeps its class rows, so the new version must have its classes, in their order. What a task is on is
what its latest adapter was made from; it moves when the new one is published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from affinery.errors import AffineryError, words_of
from orchestration import admission, queue
from orchestration.recipes import full_recipe
from orchestration.retraining import BUSY, Step, newest_in_use, recipe_of
from registry import backbones, beginnings, datasets, tasks
from registry.beginnings import Beginning
from registry.records import DatasetRecord, TaskRecord
from registry.session import Sessions


@dataclass(frozen=True)
class Upgrade:
    """What becomes of one task: the dataset version that it is on, the one that it moves to, and how."""

    step: Step
    on: str
    to: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return self.step.to_json() | {"on": self.on, "to": self.to}


def upgrade(
    sessions: Sessions,
    names: Sequence[str] = (),
    *,
    to: str | None = None,
    given: Mapping[str, Any] | None = None,
    warm: bool = True,
    dry_run: bool = False,
) -> list[Upgrade]:
    """Plans it and, unless it is a dry run, schedules all that can be, in one transaction.

    names: tasks, all where there is none; to: the dataset version, else the newest of each task's own
    dataset. given: settings of the trainings in place of those that each task was trained with last. Raises
    NotFound.
    """
    with sessions.read() as session:
        plan = plan_upgrade(session, names, to=to, given=given, warm=warm)
    if dry_run or not any(each.step.action == "schedule" for each in plan):
        return plan
    with sessions.begin() as session:
        # Planned anew: somebody may have recorded something meanwhile.
        plan = plan_upgrade(session, names, to=to, given=given, warm=warm)
        return [_schedule(session, each) if each.step.action == "schedule" else each for each in plan]


def plan_upgrade(
    session: Session,
    names: Sequence[str] = (),
    *,
    to: str | None = None,
    given: Mapping[str, Any] | None = None,
    warm: bool = True,
) -> list[Upgrade]:
    """What would be done, task by task; nothing is written."""
    chosen = [tasks.get(session, name) for name in dict.fromkeys(names)] if names else tasks.list_all(session)
    target = None if to is None else datasets.get(session, to)
    found = []
    for task in chosen:
        on = datasets.by_id(session, task.dataset_id)
        newest = target or datasets.get(session, f"dataset:{on.name}")
        found.append(Upgrade(_step(session, task, on, newest, given or {}, warm), on.ref, newest.ref))
    return found


def _step(
    session: Session,
    task: TaskRecord,
    on: DatasetRecord,
    to: DatasetRecord,
    given: Mapping[str, Any],
    warm: bool,
) -> Step:
    if on.node_id == to.node_id:
        state = f"; its job is {task.state}" if task.state in BUSY else ""
        return Step(task.name, task.name, "there", f"on {on.ref}{state}")
    if task.state in BUSY:
        reason = f"a job trains it on {on.ref} now ({task.state}); upgrade it when that is done"
        return Step(task.name, task.name, "refused", reason)
    if changed := changed_classes(task.classes, to.classes):
        means = "the task's class rows would not mean what they mean: add a new task"
        reason = f"{to.ref} has other classes ({changed}), and {means}"
        return Step(task.name, task.name, "refused", reason)
    latest = newest_in_use(session, task.name)
    try:
        backbone = backbones.by_id(session, task.backbone_id)
        recipe = full_recipe(backbone, recipe_of(latest, given))
        admission.of_tasks(session, backbone, [task], recipe)
    except AffineryError as error:
        return Step(task.name, task.name, "refused", words_of(error))
    start = latest if warm else None
    reason = "begun afresh" if start is None else f"begun from {start.ref}"
    ref = None if start is None else start.ref
    return Step(task.name, task.name, "schedule", reason, ref, recipe=recipe)


def changed_classes(before: Sequence[str], after: Sequence[str]) -> str:
    """What differs between two lists of classes, in words; empty where nothing does."""
    if tuple(before) == tuple(after):
        return ""
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    parts = [
        f"{what} {', '.join(map(repr, names[:5]))}{' …' if len(names) > 5 else ''}"
        for what, names in (("without", gone), ("with", new))
        if names
    ]
    return " and ".join(parts) or "the same in another order"


def _schedule(session: Session, planned: Upgrade) -> Upgrade:
    step = planned.step
    task, to = tasks.get(session, step.task), datasets.get(session, planned.to)
    start = newest_in_use(session, step.task) if step.warm_start is not None else None
    recipe = step.recipe or {}
    takes = admission.of_tasks(session, backbones.by_id(session, task.backbone_id), [task], recipe)
    job = queue.enqueue(session, [task.name], recipe, memory_bytes=takes)
    begins = Beginning(None if start is None else start.node_id, to.node_id)
    beginnings.write(session, job.id, task.node_id, begins)
    return replace(planned, step=replace(step, job=job.id))
