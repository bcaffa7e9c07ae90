"""Accepting jobs: what is refused is refused whole; what is accepted is the caller's transaction's."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import bindparam, func, insert, select, text, update
from sqlalchemy.orm import Session

from affinery.errors import ConfigInvalid
from orchestration.errors import JobsWaitForEachOther, NeedNotMet, OverLimit, TaskIsBusy, TasksDoNotMatch
from orchestration.jobs import DEAD, JobRecord, Order
from orchestration.queue import amounts, clock, limits
from orchestration.queue.listing import by_ids, chunks, get
from orchestration.queue.waiting import ring
from registry import tasks
from registry.columns import utc_now
from registry.digests import plain
from registry.models import Backbone, Event, Job, JobDependency, JobTask, Task

_BUSY = {"queued": "scheduled", "running": "learning", "paused": "paused"}
_KEYS = 4702112  # the space of advisory locks in which keys are


@dataclass(frozen=True)
class _Learner:
    """What of a task decides with whom it trains."""

    id: int
    name: str
    backbone_id: int
    backbone: str
    image_size: int | None


def enqueue(
    session: Session,
    names: Sequence[str] = (),
    recipe: Mapping[str, Any] | None = None,
    *,
    kind: str = "train",
    payload: Mapping[str, Any] | None = None,
    after: Sequence[str] = (),
    priority: int = 0,
    key: str | None = None,
    run_at: datetime | None = None,
    **given: Any,
) -> JobRecord:
    """Accepts one job; the tasks of a training train together, on the one frozen backbone.

    payload: what the job is to do; {"recipe": recipe} if it is not given. after: jobs to be done before it.
    key: an idempotency key; a second call with it returns the first's job. given: further fields of an Order.
    Raises TaskIsBusy, TasksDoNotMatch, JobNotFound, NeedNotMet, OverLimit,
    ConfigInvalid for an amount that cannot be, and the registry's NotFound.
    """
    content = {"recipe": dict(recipe or {})} if payload is None else payload
    order = Order(
        str(uuid.uuid4()),
        kind=kind,
        tasks=tuple(names),
        payload=content,
        after=tuple(after),
        key=key,
        priority=priority,
        run_at=run_at,
        **given,
    )
    return enqueue_all(session, [order])[0]


def enqueue_all(session: Session, orders: Sequence[Order]) -> list[JobRecord]:
    """Accepts jobs, all or none, in a few statements for thousands of them. → one a job, in their order

    Where a key is known, the job that was accepted with it. Raises as enqueue does, and JobsWaitForEachOther.
    """
    keys = {order.key for order in orders if order.key is not None}
    _lock(session, keys)
    known = _known(session, sorted(keys))
    there = {order.id: known[order.key] for order in orders if order.key is not None and order.key in known}
    if fresh := [order for order in orders if order.id not in there]:
        _accept(session, fresh, there)
    return by_ids(session, [there.get(order.id, order.id) for order in orders])


def by_keys(session: Session, keys: Sequence[str]) -> dict[str, JobRecord]:
    """The jobs that were accepted with these idempotency keys."""
    known = _known(session, keys)
    return dict(zip(known, by_ids(session, list(known.values())), strict=True))


def lock_keys(session: Session, keys: Sequence[str]) -> dict[str, JobRecord]:
    """As by_keys; whoever else comes with these keys waits until this transaction ends."""
    _lock(session, set(keys))
    return by_keys(session, keys)


def _lock(session: Session, keys: Iterable[str]) -> None:
    if session.get_bind().dialect.name == "postgresql":  # on SQLite writers take turns anyway
        statement = text("SELECT pg_advisory_xact_lock(:space, hashtext(:key))")
        for key in sorted(keys):
            session.execute(statement, {"space": _KEYS, "key": key})


def _known(session: Session, keys: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for chunk in chunks(keys):
        query = select(Job.idempotency_key, Job.id).where(Job.idempotency_key.in_(chunk))
        found |= {str(key): job_id for key, job_id in session.execute(query)}
    return found


def _accept(session: Session, orders: Sequence[Order], others: Mapping[str, str]) -> None:
    """others: ids in the batch whose jobs are there already under another id."""
    for order in orders:
        amounts.check(order)
    learners = _learners(session, {name for order in orders for name in order.tasks})
    for order in orders:
        if order.kind == "train":
            _check_together([learners[name] for name in order.tasks])
            _check_strategy(order)
    _check_free(session, orders, learners)
    _check_memory(session, orders)
    needs = _needs(session, orders, others)
    moment = session.scalars(select(clock.now())).one()
    numbers = _numbers(session, len(orders))
    awaited = {need for each in needs.values() for need in each.open}
    rows, members, edges, told = [], [], [], []
    for order, number in zip(orders, numbers, strict=True):
        own = [learners[name] for name in order.tasks]
        backbone = own[0].backbone_id if own else order.backbone_id
        rows.append(_row(order, number, moment, backbone, len(needs[order.id].open), awaited))
        members += [_member(order, each) for each in own]
        edges += [{"job_id": order.id, "needs_job_id": need} for need in sorted(needs[order.id].all)]
        names = [each.name for each in own]
        fact = {"job": order.id, "kind": order.kind, "tasks": names, "by": order.submitted_by}
        told.append({"kind": "job.queued", "subject": None, "payload": fact, "at": utc_now()})
    for table, values in ((Job, rows), (JobTask, members), (JobDependency, edges), (Event, told)):
        for chunk in chunks(values):
            session.execute(insert(table), chunk)
    ring(session)


def _check_strategy(order: Order) -> None:
    """Raises ConfigInvalid where a job would be trained otherwise than it says."""
    count = len(order.tasks)
    if order.strategy == "co-trained" and count == 1:
        raise ConfigInvalid("strategy", f"{order.tasks[0]!r} is alone in its job; co-trained takes several.")
    if order.strategy == "sequential" and count > 1:
        one_by_one = "for one after another schedule each in a job of its own"
        raise ConfigInvalid("strategy", f"the {count} tasks of one job train together; {one_by_one}.")
    if order.strategy in ("sequential", "parallel") and order.workers > 1:
        raise ConfigInvalid("strategy", f"{order.workers} workers of one training are data-parallel.")


def _member(order: Order, learner: _Learner) -> dict[str, Any]:
    dataset = order.datasets.get(learner.name)
    return {"job_id": order.id, "task_id": learner.id, "live": True, "dataset_id": dataset}


def _row(
    order: Order, number: int, moment: datetime, backbone: int | None, waits: int, awaited: Collection[str]
) -> dict[str, Any]:
    strategy = "co-trained" if order.strategy is None and len(order.tasks) > 1 else order.strategy
    return {
        "id": order.id,
        "number": number,
        "kind": order.kind,
        "strategy": strategy,
        "workers": order.workers,
        "state": "queued",
        "priority": order.priority,
        "payload": plain("The job", dict(order.payload)),
        "submitted_by": order.submitted_by,
        "cpus": order.cpus,
        "gpus": order.gpus,
        "memory_bytes": order.memory_bytes,
        "backbone_id": backbone,
        "schedule_id": order.schedule_id,
        "created_at": moment,
        "run_at": moment if order.run_at is None else order.run_at,
        "max_attempts": order.max_attempts,
        "timeout_seconds": order.timeout_seconds,
        "waits": waits,
        "awaited": order.id in awaited,
        "idempotency_key": order.key,
    }


def _numbers(session: Session, count: int) -> Sequence[int]:
    if session.get_bind().dialect.name == "sqlite":
        last = session.scalars(select(func.coalesce(func.max(Job.number), 0))).one()
        return range(last + 1, last + 1 + count)
    query = text("SELECT nextval('job_number_seq') FROM generate_series(1, :count)")
    return sorted(session.scalars(query, {"count": count}))


def _learners(session: Session, names: set[str]) -> dict[str, _Learner]:
    found: dict[str, _Learner] = {}
    query = select(Task, Backbone.name, Backbone.version).join(Backbone, Backbone.node_id == Task.backbone_id)
    for chunk in chunks(sorted(names)):
        for row, backbone, version in session.execute(query.where(Task.name.in_(chunk))):
            size = row.config.get(tasks.FACTS, {}).get("image_size")
            found[row.name] = _Learner(row.node_id, row.name, row.backbone_id, f"{backbone}@{version}", size)
    for name in sorted(names - found.keys()):  # a digest; or nothing, which raises
        task = tasks.get(session, name)
        found[name] = _Learner(task.node_id, task.name, task.backbone_id, task.backbone, task.image_size)
    return found


def _check_together(found: Sequence[_Learner]) -> None:
    if not found:
        raise TasksDoNotMatch("no task", "was named")
    seen: set[int] = set()
    for task in found:
        if task.id in seen:
            raise TasksDoNotMatch(task.name, "is named twice")
        seen.add(task.id)
        if task.image_size != found[0].image_size:
            raise TasksDoNotMatch(task.name, f"draws images of another size than {found[0].name!r}")
        if task.backbone_id != found[0].backbone_id:
            raise TasksDoNotMatch(
                task.name, f"is on {task.backbone}, but {found[0].name!r} is on {found[0].backbone}"
            )


def _check_free(session: Session, orders: Sequence[Order], learners: Mapping[str, _Learner]) -> None:
    """A task is in one live job at most."""
    wanted: set[int] = set()
    for order in orders:
        for name in order.tasks:
            if learners[name].id in wanted:
                raise TaskIsBusy(learners[name].name, "scheduled")
            wanted.add(learners[name].id)
    query = select(Task.name, Job.state).join(JobTask, JobTask.task_id == Task.node_id)
    query = query.join(Job, Job.id == JobTask.job_id).where(text("job_task.live"))
    for chunk in chunks(sorted(wanted)):
        for name, state in session.execute(query.where(JobTask.task_id.in_(chunk)).limit(1)):
            raise TaskIsBusy(name, _BUSY[state])


def _check_memory(session: Session, orders: Sequence[Order]) -> None:
    """No job says that it takes more than all together may."""
    largest = max(orders, key=lambda order: order.memory_bytes or 0)
    most = limits.memory_bytes(session) if largest.memory_bytes else None
    if largest.memory_bytes and most is not None and largest.memory_bytes > most:
        raise OverLimit(
            f"The job ({' + '.join(largest.tasks) or largest.kind}) says that it takes",
            f"{largest.memory_bytes / (1 << 30):.3g} GiB",
            f"{most / (1 << 30):.3g} GiB",
            ["less --memory"],
            largest.memory_bytes,
        )


@dataclass(frozen=True)
class _Needs:
    """The jobs to be done before one: all, and those that are not."""

    all: set[str]
    open: set[str]


def _needs(session: Session, orders: Sequence[Order], others: Mapping[str, str]) -> dict[str, _Needs]:
    own = {order.id for order in orders}
    named = {others.get(need, need) for order in orders for need in order.after} - own
    there = {need: get(session, need).id for need in named}
    states: dict[str, str] = {}
    for chunk in chunks(sorted(set(there.values()))):
        # Held until this transaction ends: a need that is done meanwhile would not tell who waits for it.
        query = select(Job.id, Job.state).where(Job.id.in_(chunk)).with_for_update(key_share=True)
        states |= dict(session.execute(query.order_by(Job.id)).all())
        session.execute(_AWAITED, {"needs": chunk})
    for need, state in states.items():
        if state in DEAD:
            lost = get(session, need)
            raise NeedNotMet(lost.id, lost.tasks, lost.state, lost.error)
    after: defaultdict[str, set[str]] = defaultdict(set)
    for order in orders:
        for need in order.after:
            need = others.get(need, need)
            after[order.id].add(there.get(need, need))
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        raise JobsWaitForEachOther(_called(orders, error.args[1])) from error
    return {
        order.id: _Needs(after[order.id], {each for each in after[order.id] if states.get(each) != "done"})
        for order in orders
    }


_NEEDS: Any = bindparam("needs", expanding=True)
_AWAITED = update(Job.__table__).where(Job.id.in_(_NEEDS), ~Job.awaited).values(awaited=True)  # type: ignore[arg-type]


def _called(orders: Sequence[Order], cycle: Sequence[str]) -> list[str]:
    names = {order.id: " + ".join(order.tasks) or order.kind for order in orders}
    return [names.get(job_id, job_id[:8]) for job_id in cycle]
