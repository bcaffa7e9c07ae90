"""What the registry says beside its rows, and must say alike: beginnings, names, numbers to search by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from registry import metrics
from registry.declared import Names
from registry.findings import RESTORE, Finding
from registry.models import (
    Adapter,
    Evaluation,
    Event,
    Figure,
    JobDependency,
    Metric,
    Node,
    Renaming,
    Series,
    Task,
)
from registry.seals import KEY, SEALED, seal

_LARGEST = 1e308
_BEGINNINGS = ("registered", "recorded", "published", "brought-in", "imported")


def untrue(session: Session) -> Iterator[Finding]:
    """Everything that contradicts the rows, each named."""
    for ask in (_beginnings, _seals, _names, _numbers, _circles):
        yield from ask(session)


def _beginnings(session: Session) -> Iterator[Finding]:
    """Of everything that was recorded an event tells how."""
    name = Names(session)
    told = or_(*(Event.kind == Node.kind + f".{each}" for each in _BEGINNINGS))
    untold = select(Node.id).where(~exists().where(Event.subject == Node.id, told)).order_by(Node.id)
    for node_id in session.scalars(untold):
        what = "no event tells how it came to be recorded"
        yield Finding("events", name(node_id), what, RESTORE, (node_id,))


def _seals(session: Session) -> Iterator[Finding]:
    """What was recorded says what it said when it was."""
    name = Names(session)
    for kind, table in SEALED.items():
        row = table.rows()
        began = (row.c.node_id == Event.subject) & Event.kind.in_([f"{kind}.{each}" for each in _BEGINNINGS])
        for said in session.execute(select(*row.columns, Event.payload).join(Event, began)):
            values = dict(said._mapping)
            told = values.pop("payload").get(KEY)
            if told is not None and told != seal(kind, values)[KEY]:
                what = "it was recorded with other values than its row has now"
                yield Finding("events", name(values["node_id"]), what, RESTORE, (values["node_id"],))


def _names(session: Session) -> Iterator[Finding]:
    """What was renamed bears its last name, and an old name is nobody else's."""
    borne = {(row.kind, row.name) for row in session.execute(select(Series.kind, Series.name))}
    borne |= {("task", name) for name in session.scalars(select(Task.name))}
    last: dict[tuple[str, str], str] = {}  # by kind and origin
    was: dict[tuple[str, str], set[str]] = {}  # by kind and name, whose it ever was
    for row in session.scalars(select(Renaming).order_by(Renaming.id)):
        last[row.kind, row.origin] = row.name
        was.setdefault((row.kind, row.was), set()).add(row.origin)
    for (kind, origin), name in last.items():
        if (kind, name) not in borne:
            what = f"it is said to be what {origin!r} is called now, and nothing is called so"
            yield Finding("names", f"{kind}:{name}", what, RESTORE)
    now = {(kind, name): origin for (kind, origin), name in last.items()}
    for kind, name in sorted(borne & was.keys()):
        if was[kind, name] != {now.get((kind, name))}:
            what = "it bears a name that belonged to something else, whose references now mean it"
            yield Finding("names", f"{kind}:{name}", what, RESTORE)


def _numbers(session: Session) -> Iterator[Finding]:
    """What adapters and evaluations are searched by is what they say."""
    name = Names(session)
    tables: tuple[tuple[Any, Any, Any, Any], ...] = (
        (Adapter.node_id, Adapter.metrics, Metric, Metric.adapter_id),
        (Evaluation.node_id, Evaluation.results, Figure, Figure.evaluation_id),
    )
    for node, said, table, owner in tables:
        kept: dict[int, dict[str, float]] = {}
        for row in session.execute(select(owner, table.name, table.value)):
            kept.setdefault(row[0], {})[row.name] = row.value
        for node_id, value in session.execute(select(node, said).order_by(node)):
            if wrong := _differing(_numbers_of(value), kept.get(node_id, {})):
                what = f"it is searched by another {wrong!r} than it says"
                yield Finding("numbers", name(node_id), what, RESTORE, (node_id,))


def _numbers_of(said: Any) -> dict[str, float]:
    found: dict[str, float] = metrics.numbers(said) if isinstance(said, dict) else {}
    return {key: value for key, value in found.items() if abs(value) < _LARGEST}


def _differing(said: Mapping[str, float], kept: Mapping[str, float]) -> str | None:
    return next((key for key in sorted(said.keys() | kept.keys()) if said.get(key) != kept.get(key)), None)


def _circles(session: Session) -> Iterator[Finding]:
    """Jobs that wait for each other: none of them would ever run."""
    needs: dict[str, set[str]] = {}
    for row in session.execute(select(JobDependency.job_id, JobDependency.needs_job_id)):
        needs.setdefault(row.job_id, set()).add(row.needs_job_id)
    # Who needs nobody that is left is in no circle.
    while free := {job for job, needed in needs.items() if not needed & needs.keys()}:
        needs = {job: needed for job, needed in needs.items() if job not in free}
    for job in sorted(needs):
        what = "it waits, in the end, for itself or for jobs that wait for each other"
        yield Finding("jobs", f"job {job}", what, RESTORE)
