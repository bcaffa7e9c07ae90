"""Trainings that come again: at a cron expression's times in a named zone, on the database's clock.

A firing moves next_run_at on in the transaction that accepts its jobs, so that of several workers one fires.
Firings that nobody was there for are one. With when_changed, only tasks whose dataset has a newer version
than their newest adapter was trained on are trained, and on that version.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from shlex import quote
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from affinery.errors import AffineryError, words_of
from orchestration.errors import ScheduleInvalid, TaskIsBusy
from orchestration.jobs import JobRecord, Order
from orchestration.queue import clock
from orchestration.queue.accepting import enqueue_all
from orchestration.queue.amounts import check_priority, key_of
from registry import events, names, tasks
from registry.digests import plain
from registry.errors import NotFound
from registry.models import Adapter, Dataset, Job, Schedule, Task


@dataclass(frozen=True)
class ScheduleRecord:
    """A schedule as it stands. together: its tasks train in one job; memory_bytes: what each counts with."""

    id: int
    name: str
    cron: str
    timezone: str
    when_changed: bool
    together: bool
    paused: bool
    tasks: tuple[str, ...]
    recipe: dict[str, Any]
    memory_bytes: int | None
    priority: int
    submitted_by: str | None
    created_at: datetime
    next_run_at: datetime
    last_run_at: datetime | None

    def to_json(self) -> dict[str, Any]:
        values = {each.name: getattr(self, each.name) for each in fields(self)} | {"tasks": list(self.tasks)}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in values.items()
        }


def add(
    session: Session,
    name: str,
    cron: str,
    learners: Sequence[str],
    recipe: Mapping[str, Any],
    *,
    timezone: str = "UTC",
    when_changed: bool = False,
    together: bool = False,
    memory_bytes: int | None = None,
    priority: int = 0,
    submitted_by: str | None = None,
) -> ScheduleRecord:
    """Raises ScheduleInvalid, NameInvalid, NotFound, ConfigInvalid and what would refuse its jobs."""
    name = names.checked("schedule", name)
    if session.scalar(select(Schedule.id).where(Schedule.name == name)) is not None:
        mend = f"remove it first: affinery schedule rm {quote(name)}"
        raise ScheduleInvalid(name, f"there is one of this name; {mend}")
    if not learners:
        raise ScheduleInvalid(name, "it names no task; name one with --task")
    found = [tasks.get(session, learner) for learner in dict.fromkeys(learners)]
    if len({task.backbone_id for task in found}) > 1:  # they have one recipe, and it is a backbone's
        raise ScheduleInvalid(name, "its tasks are on several backbones; make a schedule for each backbone")
    moment = session.scalars(select(clock.now())).one()
    row = Schedule(
        name=name,
        cron=cron,
        timezone=timezone,
        when_changed=when_changed,
        together=together,
        task_ids=[task.node_id for task in found],
        payload=plain("The schedule's recipe", {"recipe": dict(recipe), "memory_bytes": memory_bytes}),
        priority=check_priority(priority),
        submitted_by=submitted_by,
        created_at=moment,
        next_run_at=next_time(name, cron, timezone, moment),
    )
    session.add(row)
    session.flush()
    events.append(session, "schedule.added", None, {"schedule": name, "cron": cron})
    return get(session, name)


def next_time(name: str, cron: str, timezone: str, after: datetime) -> datetime:
    """When a schedule fires next, after a moment. Raises ScheduleInvalid."""
    from cronsim import CronSim, CronSimError

    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        reason = f"there is no time zone {timezone!r}; write one like UTC or Europe/Berlin"
        raise ScheduleInvalid(name, reason) from error
    if len(cron.split()) != 5:  # CronSim takes a sixth, of seconds; the queue does not fire so often
        raise ScheduleInvalid(name, f"{cron!r} is no cron expression; write five fields, like '0 3 * * *'")
    try:
        return next(CronSim(cron, after.astimezone(zone))).astimezone(UTC)
    except CronSimError as error:
        reason = f"{cron!r} is no cron expression ({error}); write five fields, like '0 3 * * *'"
        raise ScheduleInvalid(name, reason) from error
    except StopIteration as error:
        raise ScheduleInvalid(name, f"{cron!r} names a time that never comes") from error


def get(session: Session, name: str) -> ScheduleRecord:
    """Raises NotFound."""
    found = {record.name: record for record in list_all(session)}
    if name not in found:
        raise NotFound("schedule", name, list(found))
    return found[name]


def hold(session: Session, name: str) -> ScheduleRecord:
    """One schedule, which nobody else changes until this transaction ends. Raises NotFound."""
    session.execute(select(Schedule.id).where(Schedule.id == get(session, name).id).with_for_update())
    return get(session, name)


def list_all(session: Session) -> list[ScheduleRecord]:
    """The schedules by name."""
    there = select(Schedule).where(Schedule.name.not_like("%#%"))
    query = there.order_by(Schedule.name).execution_options(populate_existing=True)
    rows = list(session.scalars(query))
    ids = {task_id for row in rows for task_id in row.task_ids}
    called = select(Task.node_id, Task.name).where(Task.node_id.in_(ids))
    by_id = dict(session.execute(called).all())
    return [_record(row, by_id) for row in rows]


def remove(session: Session, name: str) -> None:
    """Its jobs stay. Raises NotFound."""
    number = get(session, name).id
    if session.scalar(select(func.count()).where(Job.schedule_id == number)):
        # Jobs say where they come from for ever; the row stays behind under a name that nothing can be given.
        _set(session, number, name=f"{name}#{number}", paused=True)
    else:
        session.execute(delete(Schedule).where(Schedule.id == number))
    events.append(session, "schedule.removed", None, {"schedule": name})


def pause(session: Session, name: str, paused: bool = True) -> ScheduleRecord:
    """A paused schedule fires no more; resumed, it goes on with its next time. Raises NotFound."""
    row = get(session, name)
    values: dict[str, Any] = {"paused": paused}
    if row.paused and not paused:
        moment = session.scalars(select(clock.now())).one()
        values["next_run_at"] = next_time(row.name, row.cron, row.timezone, moment)
    _set(session, row.id, **values)
    word = "paused" if paused else "resumed"
    events.append(session, f"schedule.{word}", None, {"schedule": name})
    return get(session, name)


def fire_due(session: Session) -> list[JobRecord]:
    """Accepts the jobs of every schedule whose time has come. → those jobs

    Every worker calls this when it looks for work. What refuses a task's training is told in an event, and
    holds up neither the schedule nor other tasks.
    """
    due = select(Schedule).where(Schedule.next_run_at <= clock.now(), Schedule.paused.is_(False))
    rows = session.scalars(due.order_by(Schedule.id).with_for_update(skip_locked=True))
    fired: list[JobRecord] = []
    for row in list(rows):
        moment = session.scalars(select(clock.now())).one()
        try:
            following = next_time(row.name, row.cron, row.timezone, moment)
        except ScheduleInvalid as error:  # written by another version of the cron library, or of the zones
            _set(session, row.id, paused=True)
            events.append(session, "schedule.paused", None, {"schedule": row.name, "error": words_of(error)})
            continue
        _set(session, row.id, next_run_at=following, last_run_at=moment)
        fired += _fire(session, row, row.next_run_at)
    return fired


def _fire(session: Session, row: Schedule, at: datetime) -> list[JobRecord]:
    groups = _groups(session, row)
    fired: list[JobRecord] = []
    for members in groups:
        stamp = f"{at.astimezone(UTC):%Y-%m-%dT%H:%MZ}"
        order = Order(
            str(uuid.uuid4()),
            tasks=tuple(name for name, _ in members),
            payload={"recipe": row.payload["recipe"]},
            memory_bytes=row.payload.get("memory_bytes"),
            key=key_of(f"schedule:{row.id}:{stamp}", (name for name, _ in members)),
            priority=row.priority,
            submitted_by=row.submitted_by,
            schedule_id=row.id,
            datasets={name: dataset for name, dataset in members if dataset is not None},
        )
        try:
            with session.begin_nested():
                fired += enqueue_all(session, [order])
        except AffineryError as error:
            why = "it is busy still" if isinstance(error, TaskIsBusy) else words_of(error)
            told = {"schedule": row.name, "tasks": list(order.tasks), "error": why}
            events.append(session, "schedule.skipped", None, told)
    events.append(session, "schedule.fired", None, {"schedule": row.name, "jobs": [job.id for job in fired]})
    return fired


def _groups(session: Session, row: Schedule) -> list[list[tuple[str, int | None]]]:
    """Which tasks train in which job, each with the dataset version if it is not the task's own."""
    members: list[tuple[str, int | None]] = []
    for task_id in row.task_ids:
        task = tasks.by_id(session, task_id)
        newest = _newest(session, task.dataset_id, task.classes)
        if row.when_changed and newest == _trained_on(session, task_id):
            continue
        members.append((task.name, None if newest == task.dataset_id else newest))
    if row.together:
        return [members] if members else []
    return [[member] for member in members]


def _newest(session: Session, dataset_id: int, classes: Sequence[str]) -> int:
    """The newest version of a dataset of which the task's class rows are true."""
    name = select(Dataset.name).where(Dataset.node_id == dataset_id).scalar_subquery()
    versions = select(Dataset.node_id, Dataset.classes).where(Dataset.name == name)
    for node_id, found in session.execute(versions.order_by(Dataset.version.desc())):
        if tuple(found) == tuple(classes):
            return node_id
    return dataset_id


def _trained_on(session: Session, task_id: int) -> int | None:
    query = select(Adapter.dataset_id).where(Adapter.task_id == task_id)
    return session.scalars(query.order_by(Adapter.version.desc()).limit(1)).first()


def _set(session: Session, number: int, **values: Any) -> None:
    session.execute(
        update(Schedule)
        .where(Schedule.id == number)
        .values(**values)
        .execution_options(synchronize_session=False)
    )


def _record(row: Schedule, called: Mapping[int, str]) -> ScheduleRecord:
    return ScheduleRecord(
        row.id,
        row.name,
        row.cron,
        row.timezone,
        row.when_changed,
        row.together,
        row.paused,
        tuple(called[task_id] for task_id in row.task_ids),
        row.payload.get("recipe", {}),
        row.payload.get("memory_bytes"),
        row.priority,
        row.submitted_by,
        row.created_at,
        row.next_run_at,
        row.last_run_at,
    )
