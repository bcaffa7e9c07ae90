"""Trainings scheduled: new tasks registered and queued, tasks trained again, now or by a timetable.

What belongs together is one transaction, and what takes its time is done before it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from affinery.errors import ConfigInvalid
from orchestration import admission, queue, there_already
from orchestration.conditions import check_architecture, check_dataset, facts, one_each
from orchestration.errors import KeyTaken
from orchestration.jobs import JobRecord, Order
from orchestration.needs import Need
from orchestration.queue import schedules
from orchestration.queue.schedules import ScheduleRecord
from orchestration.recipes import full_configs, full_recipe
from registry import adapters, backbones, beginnings, datasets, tasks
from registry.beginnings import Beginning
from registry.errors import NotFound, Renamed
from registry.records import BackboneRecord, TaskRecord
from registry.session import Sessions


@dataclass(frozen=True)
class Wanted:
    """Tasks to be learnt in one job; several train together.

    sources: their datasets. kinds, conditions: of all tasks, or one a task; config: the kinds' settings, each
    for the kinds that have it; configs: those of each task, in its place. after: jobs, by id, or by their
    place among all that is wanted. adopt: tasks that were scheduled before without this key count as there.
    job: further fields of the queue's Order. What the backbone's spec advises fills in what is not given.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    backbone: str
    kinds: tuple[str, ...] = ("affiner",)
    config: Mapping[str, Any] = field(default_factory=dict)
    configs: tuple[Mapping[str, Any], ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    conditions: tuple[Mapping[str, Any] | None, ...] = ()
    image_size: int | None = None
    after: tuple[str | int, ...] = ()
    key: str | None = None
    adopt: bool = False
    job: Mapping[str, Any] = field(default_factory=dict)

    def apart(self) -> list[Wanted]:
        """Each task in a job of its own."""
        several: dict[str, tuple[Any, ...]] = {
            "sources": self.sources,
            "kinds": self.kinds,
            "conditions": self.conditions,
            "configs": self.configs,
        }
        own = {name: values for name, values in several.items() if len(values) == len(self.names)}
        return [
            replace(
                self,
                names=(name,),
                key=None if self.key is None else f"{self.key}/{name}",
                **_own(own, i),
            )
            for i, name in enumerate(self.names)
        ]


def _own(values: Mapping[str, tuple[Any, ...]], place: int) -> dict[str, Any]:
    return {name: (each[place],) for name, each in values.items()}


@dataclass(frozen=True)
class Scheduled:
    """new: whether it was scheduled now; else it was there before."""

    job: JobRecord
    new: bool


class _Rehearsed(Exception):
    """No error: it takes back what was only to be looked at."""


def schedule(
    sessions: Sessions,
    names: Sequence[str],
    sources: Sequence[str],
    *,
    backbone: str,
    kind: str | Sequence[str],
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
    after: Sequence[str] = (),
    key: str | None = None,
    conditions: Sequence[Mapping[str, Any] | None] = (),
    image_size: int | None = None,
    data: Path | None = None,
    on_note: Callable[[str], None] = lambda _: None,
    **job: Any,
) -> JobRecord:
    """Registers new tasks, each with its class block, and queues their training, in one transaction.

    The arguments are those of Wanted. data: where datasets lie, to check beforehand what they hold; on_note:
    told what is worth knowing of it. key: an idempotency key; a second call with it returns the first's job
    and registers nothing. Raises TaskExists, KeyTaken, ConfigInvalid, NotFound …; then nothing was written.
    """
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    if not isinstance(kind, str) and len(kinds) != len(names):
        raise ConfigInvalid("--kind", f"{len(kinds)} kinds were named for {len(names)} tasks.")
    wanted = Wanted(
        tuple(names),
        tuple(sources),
        backbone,
        kinds,
        config,
        recipe=recipe,
        conditions=tuple(conditions),
        image_size=image_size,
        after=tuple(after),
        key=key,
        job=job,
    )
    return schedule_all(sessions, [wanted], data=data, on_note=on_note)[0].job


def schedule_all(
    sessions: Sessions,
    wanted: Sequence[Wanted],
    *,
    data: Path | None = None,
    on_note: Callable[[str], None] = lambda _: None,
    rehearse: Callable[[Session, list[Scheduled]], None] | None = None,
) -> list[Scheduled]:
    """Registers and queues all that is wanted in one transaction; what is there by its key already stays.

    rehearse: shown everything as it would be, and then nothing of it is kept. Raises as `schedule` does.
    """
    found: list[Scheduled] = []
    with sessions.read() as session:  # what takes its time is done before anybody has to wait for it
        there = queue.by_keys(session, [each.key for each in wanted if each.key is not None])
        for each in wanted:
            if each.key in there:
                _note_change(session, each, there[each.key], on_note)
        ready = [None if each.key in there else _prepare(session, each) for each in wanted]
    try:
        with sessions.begin() as session:
            found = _schedule_all(session, list(zip(wanted, ready, strict=True)), data, on_note)
            if rehearse is not None:
                rehearse(session, found)
                raise _Rehearsed
    except _Rehearsed:
        pass
    return found


def _note_change(session: Session, wanted: Wanted, there: JobRecord, on_note: Callable[[str], None]) -> None:
    """A job that was accepted stays as it is; another recipe, backbone or kind beside its key is told."""
    chosen = backbones.get(session, wanted.backbone)
    asked = full_recipe(chosen, wanted.recipe)
    other = sorted(name for name, value in asked.items() if there.recipe.get(name, value) != value)
    told = [f"{name} {there.recipe[name]!r} and not {asked[name]!r}" for name in other]
    learners = [tasks.get(session, name) for name in there.tasks]
    if any(task.backbone_id != chosen.node_id for task in learners):
        told.append(f"on {learners[0].backbone} and not {chosen.ref}")
    several = len(wanted.kinds) == len(learners)
    kinds = wanted.kinds if several else wanted.kinds[:1] * len(learners)
    pairs = zip(learners, kinds, strict=True)
    told += [f"{task.name} as {task.kind} and not {kind}" for task, kind in pairs if task.kind != kind]
    if told:
        names = ", ".join(told)
        on_note(f"job {there.number} ({', '.join(there.tasks)}) is there already and stays as it is: {names}")


def _check_same(session: Session, key: str | None, names: Sequence[str], there: JobRecord) -> None:
    """Raises KeyTaken where a key stands for a job of other tasks: nothing would become of these."""
    if sorted(there.tasks) != sorted(_called_now(session, name) for name in names):
        raise KeyTaken(key, there.number, there.tasks, names)


def _called_now(session: Session, name: str) -> str:
    try:
        return tasks.get(session, name).name
    except Renamed as changed:
        return tasks.get(session, changed.args[2]).name
    except NotFound:
        return name


@dataclass(frozen=True)
class _Ready:
    """What is to be registered, checked against the backbone and filled in.

    need: where memory is limited, and the job does not say what it takes.
    """

    backbone: BackboneRecord
    kinds: list[str]
    configs: list[dict[str, Any]]
    conditions: list[Mapping[str, Any] | None]
    image_size: int | None
    recipe: dict[str, Any]
    need: Need | None


@dataclass(frozen=True)
class _Sketch:
    """A task that is not registered yet, as far as it decides what its training needs."""

    kind: str
    config: dict[str, Any]
    classes: Sequence[str]
    image_size: int | None


def _prepare(session: Session, wanted: Wanted) -> _Ready:
    names, sources, kinds = wanted.names, wanted.sources, list(wanted.kinds)
    if len(names) != len(sources):
        raise ConfigInvalid("--dataset", f"{len(sources)} datasets were named for {len(names)} tasks.")
    if len(kinds) == 1:
        kinds *= len(names)
    if len(kinds) != len(names):
        raise ConfigInvalid("--kind", f"{len(kinds)} kinds were named for {len(names)} tasks.")
    from affinery.kind_settings import shared_out

    chosen = backbones.get(session, wanted.backbone)
    recipe = full_recipe(chosen, wanted.recipe)
    configs = full_configs(chosen, kinds, wanted.configs or shared_out(kinds, wanted.config))
    told: list[Mapping[str, Any] | None] = [*one_each(names, wanted.conditions)]
    size = check_architecture(chosen, told, wanted.image_size)
    need = None
    if wanted.job.get("memory_bytes") is None:
        found = (datasets.get(session, source).classes for source in sources)
        own = zip(kinds, configs, found, strict=True)
        sketches = [_Sketch(kind, config, classes, size) for kind, config, classes in own]
        need = admission.need_of(session, chosen, sketches, recipe)
    return _Ready(chosen, kinds, configs, told, size, recipe, need)


def _schedule_all(
    session: Session,
    wanted: Sequence[tuple[Wanted, _Ready | None]],
    data: Path | None,
    on_note: Callable[[str], None],
) -> list[Scheduled]:
    known = queue.lock_keys(session, [each.key for each, _ in wanted if each.key is not None])
    for each, ready in wanted:
        if each.key in known:
            _check_same(session, each.key, each.names, known[each.key])
        if each.adopt and each.key is not None and ready is not None and each.key not in known:
            there = there_already.job_of(session, each.names, each.backbone, each.sources, ready.kinds)
            if there is not None:
                known[each.key] = there
                _note_change(session, each, there, on_note)
    ids = [known[each.key].id if each.key in known else str(uuid.uuid4()) for each, _ in wanted]
    orders = []
    for (each, ready), job_id in zip(wanted, ids, strict=True):
        if ready is not None and each.key not in known:
            _register(session, each, ready, data, on_note)
            after = tuple(ids[need] if isinstance(need, int) else need for need in each.after)
            order = Order(
                job_id, tasks=each.names, payload={"recipe": ready.recipe}, after=after, key=each.key
            )
            order = replace(order, **each.job)
            if order.memory_bytes is None:
                takes = admission.counted(session, each.names, ready.need, ready.recipe, order.workers)
                order = replace(order, memory_bytes=takes)
            orders.append(order)
    made = {job.id: job for job in queue.enqueue_all(session, orders)}
    return [
        Scheduled(made[job_id], True) if job_id in made else Scheduled(known[each.key or ""], False)
        for (each, _), job_id in zip(wanted, ids, strict=True)
    ]


def _register(
    session: Session, wanted: Wanted, ready: _Ready, data: Path | None, on_note: Callable[[str], None]
) -> None:
    for i, name in enumerate(wanted.names):
        dataset = datasets.get(session, wanted.sources[i])
        if data is not None:
            check_dataset(data, dataset, ready.backbone, ready.conditions[i], on_note)
        tasks.register(
            session,
            name=name,
            backbone=ready.backbone.ref,
            dataset=dataset.ref,
            kind=ready.kinds[i],
            config=ready.configs[i],
            facts=facts(ready.conditions[i], ready.image_size),
        )


def schedule_again(
    sessions: Sessions,
    names: Sequence[str],
    recipe: Mapping[str, Any],
    warm_starts: Sequence[str] | None = None,
    key: str | None = None,
    **job: Any,
) -> JobRecord:
    """Queues tasks that are registered already: after a failure, or for a next version of their adapters.

    warm_starts: the adapters that they begin from, one a task; () for the latest version of each that is in
    use, None where they begin afresh. key: an idempotency key, whose job is returned where there is one.
    job: as queue.enqueue takes it. Raises NotFound, KeyTaken, and ConfigInvalid for one from which a task
    cannot begin.
    """
    full: dict[str, Any] = {}
    with sessions.read() as session:
        found = [tasks.get(session, name) for name in names]
        if found:
            backbone = backbones.by_id(session, found[0].backbone_id)
            full = full_recipe(backbone, recipe)
            if job.get("memory_bytes") is None:
                workers = job.get("workers", 1)
                job["memory_bytes"] = admission.of_tasks(session, backbone, found, full, workers)
    with sessions.begin() as session:
        known = queue.lock_keys(session, [] if key is None else [key])
        if key in known:
            _check_same(session, key, names, known[key])
            return known[key]
        older = _older(session, found, warm_starts)
        record = queue.enqueue(session, names, full, key=key, **job)
        for task, start in zip(found, older, strict=True):
            if start is not None:
                beginnings.write(session, record.id, task.node_id, Beginning(warm_start_id=start))
        return record


def _older(session: Session, found: Sequence[TaskRecord], refs: Sequence[str] | None) -> Sequence[int | None]:
    if refs is None:
        return [None] * len(found)
    if refs and len(refs) != len(found):
        raise ConfigInvalid("--warm-start", f"{len(refs)} adapters were named for {len(found)} tasks.")
    chosen = refs or [f"adapter:{task.name}" for task in found]
    older = [adapters.get(session, ref) for ref in chosen]
    for task, start in zip(found, older, strict=True):
        if start.kind != task.kind:
            what = f"{start.ref} is of the kind {start.kind}, and {task.name!r} is learnt with {task.kind}"
            raise ConfigInvalid("--warm-start", f"{what}. Name an adapter of that kind.")
    return [start.node_id for start in older]


def schedule_repeatedly(
    sessions: Sessions, name: str, cron: str, learners: Sequence[str], recipe: Mapping[str, Any], **given: Any
) -> ScheduleRecord:
    """Adds a schedule; its recipe is filled in now. given: as queue.schedules.add takes it."""
    full, takes = repeated_recipe(sessions, learners, recipe, together=bool(given.get("together")))
    with sessions.begin() as session:
        return schedules.add(session, name, cron, learners, full, memory_bytes=takes, **given)


def repeated_recipe(
    sessions: Sessions, learners: Sequence[str], recipe: Mapping[str, Any], *, together: bool
) -> tuple[dict[str, Any], int | None]:
    """The recipe of a schedule of these tasks, filled in, and the bytes with which each of its jobs counts.

    Raises OverLimit; what else refuses a schedule is refused where it is added.
    """
    with sessions.read() as session:
        found = [tasks.get(session, learner) for learner in dict.fromkeys(learners)]
        if len({task.backbone_id for task in found}) != 1:
            return dict(recipe), None
        backbone = backbones.by_id(session, found[0].backbone_id)
        full = full_recipe(backbone, recipe)
        groups = [found] if together else [[task] for task in found]
        return full, admission.of_jobs(session, backbone, groups, full)
