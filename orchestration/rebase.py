"""A backbone's tasks are learnt anew on another backbone, usually its next version.

Adapters belong to their backbone, so each task gets a successor: a task of its own on the new backbone with
the same classes in the same order, in class rows of its own, and a recorded link to the one that it follows.
The old task and its adapters stay as they are. What was done is read from the record, so doing it again does
only what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any

from sqlalchemy.orm import Session

from affinery.errors import AffineryError, ConfigInvalid, near, words_of
from orchestration import admission, queue
from orchestration.conditions import check_architecture, facts
from orchestration.recipes import full_recipe
from orchestration.retraining import BUSY, Step, newest_in_use, recipe_of, started_fresh
from orchestration.specs import spec_of
from registry import backbones, beginnings, renaming, tasks
from registry.beginnings import Beginning
from registry.records import AdapterRecord, BackboneRecord, TaskRecord
from registry.session import Sessions
from registry.storage.contract import BlobStore


@dataclass(frozen=True)
class RebasePlan:
    """What becomes of each task of a backbone on another one."""

    old: BackboneRecord
    new: BackboneRecord
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"old": self.old.ref, "new": self.new.ref, "tasks": [step.to_json() for step in self.steps]}


def rebase(
    sessions: Sessions,
    store: BlobStore,
    old: str,
    new: str,
    *,
    only: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    warm: bool = True,
    dry_run: bool = False,
) -> RebasePlan:
    """Plans it and, unless it is a dry run, schedules all that can be, in one transaction.

    only: the tasks that are meant, all of the old backbone where none is named; given: settings of the
    trainings in place of those that each task was trained with last. Raises NotFound and ConfigInvalid.
    """
    with sessions.read() as session:
        plan = plan_rebase(session, store, old, new, only=only, given=given, warm=warm)
    if dry_run or not any(step.action == "schedule" for step in plan.steps):
        return plan
    with sessions.begin() as session:
        # Planned anew: somebody may have recorded something meanwhile. Names stay until it is written.
        renaming.take_turns(session, alone=False)
        plan = plan_rebase(session, store, old, new, only=only, given=given, warm=warm)
        return schedule_rebase(session, plan)


def plan_rebase(
    session: Session,
    store: BlobStore,
    old: str,
    new: str,
    *,
    only: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    warm: bool = True,
) -> RebasePlan:
    """What would be done, task by task; nothing is written."""
    before, after = backbones.get(session, old), backbones.get(session, new)
    if before.node_id == after.node_id:
        raise ConfigInvalid("rebase", f"old and new are the same backbone, {before.ref}.")
    found = tasks.list_all(session, backbone=before.ref)
    chosen = _chosen(session, before, found, only)
    there = {
        task.predecessor: task for task in tasks.list_all(session, backbone=after.ref) if task.predecessor
    }
    steps = [_step(session, store, task, after, there.get(task.name), given or {}, warm) for task in chosen]
    return RebasePlan(before, after, tuple(steps))


def _chosen(
    session: Session, backbone: BackboneRecord, found: Sequence[TaskRecord], only: Sequence[str]
) -> list[TaskRecord]:
    by_name = {task.name: task for task in found}
    meant = dict.fromkeys(tasks.get(session, ref).name for ref in only)
    for name in meant:
        if name not in by_name:
            raise ConfigInvalid(f"task {name!r}", f"it is not on {backbone.ref}.{near(name, by_name)}")
    return [by_name[name] for name in meant] if only else list(found)


def _step(
    session: Session,
    store: BlobStore,
    task: TaskRecord,
    new: BackboneRecord,
    successor: TaskRecord | None,
    given: Mapping[str, Any],
    warm: bool,
) -> Step:
    if successor is not None:
        return Step(task.name, successor.name, "there", _standing(successor))
    name = successor_name(session, task, new)
    if task.state in BUSY:
        reason = f"a job trains it now ({task.state}); rebase it when that is done"
        return Step(task.name, name, "refused", reason)
    taken = next((other for other in tasks.list_all(session) if other.name == name), None)
    if taken is not None:
        reason = f"the name {name!r} of its successor is taken by another task; rename that one"
        return Step(task.name, name, "refused", reason)
    latest = newest_in_use(session, task.name)
    try:
        check_architecture(new, [task.condition], task.image_size)
        recipe = full_recipe(new, recipe_of(latest, given))
        fresh = _begins(store, latest, task, new)
        admission.of_tasks(session, new, [task], recipe)
    except AffineryError as error:
        return Step(task.name, name, "refused", f"it does not fit {new.ref}: {words_of(error)}")
    if latest is None or fresh is None or not warm:
        why = (
            "it was never learnt"
            if latest is None
            else "as asked for"
            if not warm
            else "no layer's shape is kept"
        )
        return Step(task.name, name, "schedule", f"begun afresh: {why}", recipe=recipe)
    reason = f"begun from {latest.ref}" + (f", {len(fresh)} tensors afresh" if fresh else "")
    return Step(task.name, name, "schedule", reason, latest.ref, tuple(fresh), recipe)


def _begins(
    store: BlobStore, latest: AdapterRecord | None, task: TaskRecord, new: BackboneRecord
) -> list[str] | None:
    """What would be started fresh; None for everything. Raises ConfigInvalid where the kind does not fit."""
    from affinery.kind_settings import check_fits

    check_fits(spec_of(new), [(task.kind, task.config)])
    if latest is None:
        return None
    try:
        return started_fresh(store, latest, task, new)
    except ConfigInvalid:
        return None


def _standing(successor: TaskRecord) -> str:
    said = {
        "learnt": f"learnt there, version {successor.latest_version}",
        "learning": "being learnt there",
        "scheduled": "scheduled there",
        "paused": "paused there",
    }
    return said.get(successor.state, f"there, but not learnt: affinery task train {quote(successor.name)}")


def successor_name(session: Session, task: TaskRecord, new: BackboneRecord) -> str:
    """What a task is called on another backbone: the name of the first of its line, and the backbone's."""
    first = task
    while first.predecessor is not None:
        first = tasks.get(session, first.predecessor)
    return f"{first.name}.{new.name}-{new.version}"


def schedule_rebase(session: Session, plan: RebasePlan) -> RebasePlan:
    """Registers the successors and queues their training. → the plan, with its jobs"""
    done = (_schedule(session, plan.new, step) if step.action == "schedule" else step for step in plan.steps)
    return replace(plan, steps=tuple(done))


def _schedule(session: Session, new: BackboneRecord, step: Step) -> Step:
    old = tasks.get(session, step.task)
    made = tasks.register(
        session,
        name=step.learner,
        backbone=new.ref,
        dataset=old.dataset,
        kind=old.kind,
        config=old.config,
        facts=facts(old.condition, old.image_size),
        predecessor=old.name,
    )
    recipe = step.recipe or {}
    takes = admission.of_tasks(session, new, [made], recipe)
    job = queue.enqueue(session, [made.name], recipe, memory_bytes=takes)
    if step.warm_start is not None:
        latest = newest_in_use(session, step.task)
        assert latest is not None
        beginnings.write(session, job.id, made.node_id, Beginning(warm_start_id=latest.node_id))
    return replace(step, job=job.id)
