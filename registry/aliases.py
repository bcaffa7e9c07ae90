"""Aliases of a task's adapter versions: champion, candidate, and names of your own.

An alias is the last of its moves. Moves are only ever appended, numbered 1, 2, …; the database refuses one
that points at nothing or at another task's adapter, and appends the event itself. Two who move one alias at
once take turns, and who said what it was to mean until then is told if it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session, aliased

from registry import adapters, evaluations, names, refs, tasks
from registry.errors import AliasMoved, GateClosed, NotFound, RefInvalid
from registry.metrics import Requirement
from registry.models import Adapter, AliasMove, Task
from registry.records import AdapterRecord, AliasRecord

NOTHING = "none"


def point(
    session: Session,
    name: str,
    ref: str,
    *,
    expect: str | None = None,
    expect_moves: Collection[int] | None = None,
    require: Sequence[Requirement] = (),
) -> AliasRecord:
    """Point an alias of a task at the adapter version that ref means.

    expect: the version (or "none") that the alias must mean now, expect_moves: numbers of which one must be
    that of its last move (0: there is none), else AliasMoved. require: what the adapter's metrics must hold,
    else GateClosed. Where it points there already, nothing is written.
    """
    name = names.checked_alias(name)
    adapter = adapters.get(session, ref)
    _hold(session, adapter.task_id)
    now = _now(session, adapter.task_id, name)
    _compare(session, name, adapter.task, now, expect, expect_moves)
    gate = _passed(session, adapter, require)
    if now is not None and now.adapter_id == adapter.node_id:
        return now
    return _append(session, adapter.task_id, adapter.backbone_id, name, adapter.node_id, gate)


def remove(
    session: Session, ref: str, *, expect: str | None = None, expect_moves: Collection[int] | None = None
) -> AliasRecord:
    """Take an alias (task@name) away. What it meant stays in its history; NotFound where it means nothing."""
    task_id, backbone_id, task, name = _alias(session, ref)
    _hold(session, task_id)
    now = _now(session, task_id, name)
    if now is None or now.adapter is None:
        raise NotFound("alias", ref, [f"{task}@{alias.name}" for alias in list_all(session, task=task)])
    _compare(session, name, task, now, expect, expect_moves)
    return _append(session, task_id, backbone_id, name, None, None)


def list_all(
    session: Session, *, task: str | None = None, adapter_id: int | None = None
) -> list[AliasRecord]:
    """Every alias (of a task; that means this adapter version), by task and name."""
    last = (
        select(AliasMove.task_id, AliasMove.name, func.max(AliasMove.number).label("number"))
        .group_by(AliasMove.task_id, AliasMove.name)
        .subquery("last")
    )
    query = (
        _query()
        .join(
            last,
            (last.c.task_id == AliasMove.task_id)
            & (last.c.name == AliasMove.name)
            & (last.c.number == AliasMove.number),
        )
        .where(AliasMove.adapter_id.is_not(None))
        .order_by(Task.name, AliasMove.name)
    )
    if task is not None:
        query = query.where(AliasMove.task_id == tasks.get(session, task).node_id)
    if adapter_id is not None:
        query = query.where(AliasMove.adapter_id == adapter_id)
    return [_record(row) for row in session.execute(query)]


def get(session: Session, ref: str) -> AliasRecord:
    """What an alias (task@name) means now; NotFound where it means nothing."""
    task_id, _, task, name = _alias(session, ref)
    now = _now(session, task_id, name)
    if now is None or now.adapter is None:
        raise NotFound("alias", ref, [alias.ref for alias in list_all(session, task=task)])
    return now


def history(session: Session, ref: str) -> list[AliasRecord]:
    """Every move of an alias (task@name), the latest first. NotFound where it never was."""
    task_id, _, task, name = _alias(session, ref)
    query = _query().where(AliasMove.task_id == task_id, AliasMove.name == name)
    moves = [_record(row) for row in session.execute(query.order_by(AliasMove.number.desc()))]
    if not moves:
        raise NotFound("alias", ref, [f"{task}@{alias.name}" for alias in list_all(session, task=task)])
    return moves


def _alias(session: Session, ref: str) -> tuple[int, int, str, str]:
    """(task, its backbone, the task's name, the alias's name) of task@alias."""
    wanted = names.parse_as("adapter", ref)
    if wanted.alias is None:
        raise RefInvalid(ref, "it names no alias: write task@alias.")
    task = tasks.get(session, wanted.name)
    return task.node_id, task.backbone_id, task.name, wanted.alias


def _hold(session: Session, task_id: int) -> None:
    """Make others who move an alias of this task wait until this transaction ends (PostgreSQL)."""
    query = select(Task.node_id).where(Task.node_id == task_id).with_for_update(key_share=True)
    session.execute(query).one()


def _now(session: Session, task_id: int, name: str) -> AliasRecord | None:
    query = _query().where(AliasMove.task_id == task_id, AliasMove.name == name)
    row = session.execute(query.order_by(AliasMove.number.desc()).limit(1)).first()
    return None if row is None else _record(row)


def _compare(
    session: Session,
    name: str,
    task: str,
    now: AliasRecord | None,
    expect: str | None,
    moves: Collection[int] | None,
) -> None:
    if moves is not None and (0 if now is None else now.number) not in moves:
        found = NOTHING if now is None else now.adapter or NOTHING
        raise AliasMoved(f"{task}@{name}", "what it meant when it was read", found)
    if expect is None:
        return
    means = None if now is None else now.adapter_id
    wanted = None if expect == NOTHING else _expected(session, task, expect)
    if means != wanted:
        raise AliasMoved(f"{task}@{name}", expect, NOTHING if now is None else now.adapter or NOTHING)


def _expected(session: Session, task: str, expect: str) -> int:
    """A version may be written alone: 3 for task@3."""
    return refs.find(session, "adapter", f"{task}@{expect}" if expect.isdecimal() else expect)


def _passed(
    session: Session, adapter: AdapterRecord, require: Sequence[Requirement]
) -> list[dict[str, Any]] | None:
    passed: list[dict[str, Any]] = []
    for each in require:
        found, protocol = evaluations.figure(session, adapter, each.metric)
        if found is None or not each.holds(found):
            raise GateClosed(adapter.ref, str(each), each.metric, found)
        bound = {"metric": each.metric, "comparison": each.comparison, "bound": each.bound, "found": found}
        passed.append(bound if protocol is None else bound | {"protocol": protocol})
    return passed or None


def _append(
    session: Session,
    task_id: int,
    backbone_id: int,
    name: str,
    adapter_id: int | None,
    gate: list[dict[str, Any]] | None,
) -> AliasRecord:
    last = select(func.max(AliasMove.number)).where(AliasMove.task_id == task_id, AliasMove.name == name)
    number = (session.scalar(last) or 0) + 1
    session.add(
        AliasMove(
            task_id=task_id,
            name=name,
            number=number,
            backbone_id=backbone_id,
            adapter_id=adapter_id,
            gate=gate,
        )
    )
    session.flush()
    moved = _now(session, task_id, name)
    assert moved is not None
    return moved


_Meant = aliased(Adapter)


def _query() -> Select[AliasMove, str, int]:
    return (
        select(AliasMove, Task.name, _Meant.version)
        .join(Task, Task.node_id == AliasMove.task_id)
        .outerjoin(_Meant, _Meant.node_id == AliasMove.adapter_id)
    )


def _record(row: Row[AliasMove, str, int]) -> AliasRecord:
    move, task, version = row
    return AliasRecord(
        task=task,
        name=move.name,
        number=move.number,
        adapter=None if move.adapter_id is None else f"{task}@{version}",
        adapter_id=move.adapter_id,
        gate=tuple(move.gate or ()),
        at=move.at,
    )
