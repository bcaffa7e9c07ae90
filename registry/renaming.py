"""Names change, identity does not: what was renamed, when, and what an old name is called now.

A change is one row, and the database itself changes the name wherever it stands: of all versions of a
backbone, a dataset or a composition, or of a task and so of its adapters. What had a name keeps it for ever:
an old name is never given to anything else, so that a reference somebody wrote down cannot come to mean
another thing.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import names
from registry.errors import AmbiguousRef, NameTaken, NotFound, RecordInvalid, RefInvalid, TaskHeld
from registry.models import Composition, CompositionMember, JobTask, Renaming, Series, Task
from registry.records import RenamingRecord

KINDS = ("backbone", "dataset", "task", "composition")
_TURN = 4702113  # as the triggers have it


def rename(session: Session, ref: str, name: str) -> RenamingRecord:
    """Change the name of what ref means; all that is made of it keeps its digest and its lineage.

    ref is a name (kind:name where several kinds have it), without a version: all versions change together.
    Raises NotFound, AmbiguousRef, RefInvalid, NameInvalid, NameTaken and, of a task, TaskHeld while a job
    holds it, and RecordInvalid where a composition of it has a sum of that name.
    """
    take_turns(session, alone=True)
    kind, called = bearer(session, ref)
    name = names.checked(kind, name)
    source = origin(session, kind, called)
    if name == called:
        return RenamingRecord(kind=kind, origin=source, was=name, name=name, at=None)
    if _is_borne(session, kind, name) or _was_other(session, kind, name, source):
        raise NameTaken(kind, name)
    if kind == "task" and _is_held(session, called):
        raise TaskHeld(called)
    if kind == "task" and (whole := _summed_as(session, called, name)):
        raise RecordInvalid("The new name", f"{whole} has a sum of that name beside the task {called!r}")
    row = Renaming(kind=kind, origin=source, was=called, name=name)
    session.add(row)
    session.flush()
    session.expire_all()  # what was read before has its old name
    return _record(row)


def bearer(session: Session, ref: str) -> tuple[str, str]:
    """What a reference without a version is the name of: (kind, name). Raises as rename does."""
    wanted = names.parse(ref)
    if wanted.node_id is not None:
        raise RefInvalid(ref, "a name is to be changed, and this is a number.")
    if wanted.version is not None or wanted.alias is not None:
        raise RefInvalid(ref, "a name belongs to all versions: write it without one.")
    if wanted.kind is not None and wanted.kind not in KINDS:
        raise RefInvalid(ref, f"{wanted.kind}s have no names of their own; {', '.join(KINDS)} have.")
    kinds = KINDS if wanted.kind is None else (wanted.kind,)
    bearing = [kind for kind in kinds if _is_borne(session, kind, wanted.name)]
    if not bearing:
        raise NotFound(" or ".join(kinds), ref, _known(session, kinds))
    if len(bearing) > 1:
        raise AmbiguousRef(ref, [f"{kind}:{wanted.name}" for kind in bearing])
    return bearing[0], wanted.name


def take_turns(session: Session, *, alone: bool) -> None:
    """Until this transaction ends no name is given up (alone: nor taken): what is read of names stands.

    On PostgreSQL; on SQLite writers take turns anyway. The triggers do the same, later: who has it before any
    row of theirs does not wait crosswise.
    """
    if session.get_bind().dialect.name == "postgresql":
        take = func.pg_advisory_xact_lock if alone else func.pg_advisory_xact_lock_shared
        session.execute(select(take(_TURN)))


def history(session: Session, kind: str, name: str) -> list[RenamingRecord]:
    """How what is called so came by its name, oldest first."""
    query = select(Renaming).where(Renaming.kind == kind, Renaming.origin == origin(session, kind, name))
    return [_record(row) for row in session.scalars(query.order_by(Renaming.id))]


def origin(session: Session, kind: str, name: str) -> str:
    """The first name of what is, or once was, called so."""
    either = (Renaming.name == name) | (Renaming.was == name)
    query = select(Renaming.origin).where(Renaming.kind == kind, either).order_by(Renaming.id.desc()).limit(1)
    return session.scalar(query) or name


def origins(session: Session, kind: str) -> dict[str, str]:
    """By present name, the first name of everything of this kind that was ever renamed."""
    query = select(Renaming.origin, Renaming.name).where(Renaming.kind == kind).order_by(Renaming.id)
    last = {row.origin: row.name for row in session.execute(query)}
    return {name: first for first, name in last.items()}


def called_now(session: Session, kind: str, name: str) -> str | None:
    """What something of this kind that once had this name is called now; None where nothing had it."""
    first = session.scalar(
        select(Renaming.origin).where(Renaming.kind == kind, Renaming.was == name).limit(1)
    )
    if first is None:
        return None
    query = select(Renaming.name).where(Renaming.kind == kind, Renaming.origin == first)
    return session.scalar(query.order_by(Renaming.id.desc()).limit(1))


def was_a_name(session: Session, name: str) -> bool:
    """Whether something once had this name, of whatever kind."""
    query = select(Renaming.id).where(Renaming.kind.in_(KINDS), Renaming.was == name).limit(1)
    return session.scalar(query) is not None


def names_ever(session: Session, kind: str, name: str) -> set[str]:
    """Every name that what is called so ever had."""
    found = {name}
    for each in history(session, kind, name):
        found |= {each.was, each.name}
    return found


def _is_borne(session: Session, kind: str, name: str) -> bool:
    if kind == "task":
        return session.scalar(select(Task.node_id).where(Task.name == name)) is not None
    return session.get(Series, (kind, name)) is not None


def _was_other(session: Session, kind: str, name: str, source: str) -> bool:
    query = select(Renaming.id).where(Renaming.kind == kind, Renaming.was == name, Renaming.origin != source)
    return session.scalar(query.limit(1)) is not None


def _is_held(session: Session, task: str) -> bool:
    query = select(JobTask.job_id).join(Task, Task.node_id == JobTask.task_id)
    return session.scalar(query.where(Task.name == task, JobTask.live).limit(1)) is not None


def _summed_as(session: Session, task: str, name: str) -> str | None:
    """A composition of the task in which a sum has this name: both would be asked for by it."""
    query = (
        select(Composition.name, Composition.version, Composition.recipe)
        .join(CompositionMember, CompositionMember.composition_id == Composition.node_id)
        .join(Task, Task.node_id == CompositionMember.task_id)
        .where(Task.name == task, Composition.mode == "merged")
    )
    for row in session.execute(query):
        if any(each["name"] == name for each in row.recipe["merges"]):
            return f"{row.name}@{row.version}"
    return None


def _known(session: Session, kinds: Iterable[str]) -> list[str]:
    found: list[str] = []
    for kind in kinds:
        column = select(Task.name) if kind == "task" else select(Series.name).where(Series.kind == kind)
        found += session.scalars(column.limit(1000))
    return sorted(set(found))


def _record(row: Renaming) -> RenamingRecord:
    return RenamingRecord(kind=row.kind, origin=row.origin, was=row.was, name=row.name, at=row.at)
