"""How much may run at once, on all workers together: of a backbone, of who submits, of a resource.

    backbone   NAME@VERSION, or * for each of them    jobs at once
    submitter  a name, or * for each of them          jobs at once
    resource   cpus, gpus, memory_bytes               their sum over the jobs that run

A claim that finds limits holds them until it is committed, so that two workers never pass one together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, func, or_, select
from sqlalchemy.orm import Session

from orchestration.errors import LimitInvalid
from orchestration.jobs import Capacity
from orchestration.queue.amounts import LARGEST_BYTES, LONGEST_KEY
from registry import backbones, events
from registry.errors import NotFound
from registry.models import Backbone, Job, QueueLimit
from registry.models.jobs import SCOPES

EACH = "*"
RESOURCES = ("cpus", "gpus", "memory_bytes")


@dataclass(frozen=True)
class Limit:
    """most: jobs at once, or an amount of a resource."""

    scope: str
    key: str
    most: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def put(session: Session, scope: str, key: str, most: float) -> Limit:
    """Sets a limit, in place of the one that stood there. Raises LimitInvalid and the registry's NotFound."""
    if scope not in SCOPES:
        raise LimitInvalid(f"{scope}:{key}", f"there is no such scope; there is {', '.join(SCOPES)}")
    if not most >= 0 or most == float("inf"):
        raise LimitInvalid(f"{scope}:{key}", f"{most:g} is no amount")
    if scope == "resource" and key not in RESOURCES:
        raise LimitInvalid(f"{scope}:{key}", f"there is no such resource; there is {', '.join(RESOURCES)}")
    if scope != "resource" and most != int(most):
        raise LimitInvalid(f"{scope}:{key}", f"{most:g} is no number of jobs")
    if most > LARGEST_BYTES:
        raise LimitInvalid(f"{scope}:{key}", f"{most:g} is more than can be counted; without a limit: rm")
    if not (key.isprintable() and 1 <= len(key) <= LONGEST_KEY and key == key.strip()):
        shown = key if len(key) <= 40 else f"{key[:40]}…"
        reason = f"{shown!r} is no name of 1 to {LONGEST_KEY} characters"
        raise LimitInvalid(scope, reason)
    if scope == "backbone" and key != EACH:
        key = backbones.get(session, key).ref
    row = session.get(QueueLimit, (scope, key), with_for_update=True)
    if row is None:
        session.add(QueueLimit(scope=scope, key=key, most=most))
    else:
        row.most = most
    session.flush()
    events.append(session, "limit.set", None, {"scope": scope, "key": key, "most": most})
    return Limit(scope, key, most)


def remove(session: Session, scope: str, key: str) -> Limit:
    """→ what it was. Raises NotFound."""
    gone = get(session, scope, key, hold=True)
    session.execute(delete(QueueLimit).where(QueueLimit.scope == gone.scope, QueueLimit.key == gone.key))
    events.append(session, "limit.removed", None, {"scope": gone.scope, "key": gone.key})
    return gone


def get(session: Session, scope: str, key: str, *, hold: bool = False) -> Limit:
    """As `find`. Raises NotFound where there is none, too."""
    found = find(session, scope, key, hold=hold)
    if found is None:
        raise NotFound("limit", f"{scope} {key}", [f"{each.scope} {each.key}" for each in list_all(session)])
    return found


def find(session: Session, scope: str, key: str, *, hold: bool = False) -> Limit | None:
    """A limit, where there is one; a backbone's also by its name alone. Raises NotFound for no backbone.

    hold: nobody else changes it until the transaction ends.
    """
    row = session.get(QueueLimit, (scope, key), with_for_update=hold)
    if row is None and scope == "backbone" and key != EACH:
        row = session.get(QueueLimit, (scope, backbones.get(session, key).ref), with_for_update=hold)
    return None if row is None else Limit(row.scope, row.key, row.most)


def list_all(session: Session) -> list[Limit]:
    """The limits, by scope and key."""
    rows = session.scalars(select(QueueLimit).order_by(QueueLimit.scope, QueueLimit.key))
    return [Limit(row.scope, row.key, row.most) for row in rows]


def memory_bytes(session: Session) -> float | None:
    """How much memory all jobs together may take; None where that is not limited."""
    query = select(QueueLimit.most).where(QueueLimit.scope == "resource", QueueLimit.key == "memory_bytes")
    return session.scalar(query)


def allowed(session: Session, defaults: Mapping[str, Capacity]) -> list[ColumnElement[bool]] | None:
    """What is true of every job that may start now; None where there is no limit.

    Holds the limits until the transaction ends.
    """
    query = select(QueueLimit).order_by(QueueLimit.scope, QueueLimit.key)
    limits = list(session.scalars(query.with_for_update().execution_options(populate_existing=True)))
    if not limits:
        return None
    running = Job.state == "running"
    conditions: list[ColumnElement[bool]] = []
    own = {row.key: row.most for row in limits if row.scope == "submitter"}
    if own:
        count = select(Job.submitted_by, func.count()).where(running).group_by(Job.submitted_by)
        conditions += _room(Job.submitted_by, own, dict(session.execute(count).all()))
    own = {row.key: row.most for row in limits if row.scope == "backbone"}
    if own:
        names = {f"{name}@{version}": number for number, name, version in session.execute(_BACKBONES)}
        by_id = {key if key == EACH else names.get(key, key): most for key, most in own.items()}
        on = select(Job.backbone_id, func.count()).where(running).group_by(Job.backbone_id)
        conditions += _room(Job.backbone_id, by_id, dict(session.execute(on).all()))
    for row in limits:
        if row.scope == "resource":
            need = needed(row.key, defaults)
            used = session.scalars(select(func.coalesce(func.sum(need), 0)).where(running)).one()
            conditions.append(need <= row.most - float(used))  # a Decimal, where PostgreSQL adds up bytes
    return conditions


_BACKBONES = select(Backbone.node_id, Backbone.name, Backbone.version)


def needed(resource: str, defaults: Mapping[str, Capacity]) -> ColumnElement[Any]:
    """How much of a resource a job takes, in SQL."""
    own = {kind: getattr(capacity, resource) for kind, capacity in defaults.items()}
    column = getattr(Job, resource)
    usual = set(own.values())
    return func.coalesce(column, usual.pop() if len(usual) == 1 else case(own, value=Job.kind))


def _room(
    column: ColumnElement[Any] | Any, most: Mapping[Any, float], running: Mapping[Any, int]
) -> Sequence[ColumnElement[bool]]:
    """Not those that have as many running as they may."""
    counts = Counter({key: count for key, count in running.items() if key is not None})
    each = most.get(EACH)
    full = [key for key, limit in most.items() if key != EACH and counts[key] >= limit]
    if each is not None:
        full += [key for key, count in counts.items() if key not in most and count >= each]
    conditions: list[ColumnElement[bool]] = []
    if full:
        conditions.append(or_(column.is_(None), column.not_in(full)))
    if each is not None and each < 1:
        named = [key for key in most if key != EACH]
        conditions.append(or_(column.is_(None), and_(column.in_(named))))
    return conditions
