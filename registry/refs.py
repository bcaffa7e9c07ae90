"""References that people write, resolved: the one place where a name becomes a node, and a node its name.

    digits               a name: the latest version (of a task's name: its latest adapter that is not retired)
    digits@2             a version
    digits@champion      an alias of a task's adapters
    dataset:digits@1     any of these with its kind, which is never ambiguous
    3f9a2c               six digits or more of a digest; a name wins over it, also one that was changed
    node:17              the thing of this number in this registry, whatever it is called, now and later

Several answers are refused with the candidates; none, with the nearest known names; a name that was changed,
with what to write now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from registry import names, renaming
from registry.errors import AllRetired, AmbiguousRef, NotFound, RefInvalid, Renamed, article
from registry.models import (
    Adapter,
    AliasMove,
    Backbone,
    Composition,
    Dataset,
    Event,
    Export,
    Node,
    Run,
    Task,
)
from registry.records import NodeRecord

RETIRED, RESTORED = "adapter.retired", "adapter.restored"
CHUNK = 500  # ids in one statement: SQLite's older builds take 999 parameters
_MOST_CANDIDATES = 20
_MOST_KNOWN = 1000

_Table = type[Adapter] | type[Backbone] | type[Composition] | type[Dataset] | type[Export]
_VERSIONED: dict[str, tuple[_Table, InstrumentedAttribute[str]]] = {
    "adapter": (Adapter, Task.name),
    "backbone": (Backbone, Backbone.name),
    "composition": (Composition, Composition.name),
    "dataset": (Dataset, Dataset.name),
    "export": (Export, Export.name),
}
_Statement = Select[*tuple[Any, ...]]
# What has no name of its own bears that of another kind.
_NAMED_BY = {"adapter": "task", "export": "composition"}


def resolve(session: Session, ref: str, prefer: Sequence[str] = (), kind: str | None = None) -> NodeRecord:
    """The node that a reference means.

    kind: only things of this kind may answer. prefer: kinds that win where several answer, the first first.
    Raises NotFound, AmbiguousRef or RefInvalid.
    """
    wanted = names.parse(ref) if kind is None else names.parse_as(kind, ref)
    found = _answers(session, wanted, wanted.kind or kind)
    if not found:
        raise _nothing(session, wanted, kind)
    for each in prefer:
        chosen = [node for node in found if node.kind == each]
        if len(chosen) == 1:
            return chosen[0]
    if len(found) > 1:
        raise AmbiguousRef(ref, [_unambiguous(node, found) for node in found])
    return found[0]


def find(session: Session, kind: str, ref: str) -> int:
    """The node id of the thing of this kind that a reference means. Raises as resolve does."""
    return resolve(session, ref, kind=kind).node_id


def fixed(node_id: int) -> str:
    """The reference that means this node for ever, in this registry."""
    return f"{names.NODE}:{node_id}"


def _nothing(session: Session, wanted: names.Ref, kind: str | None) -> NotFound:
    """Why nothing answers: it is called otherwise now, all of it is retired, or there is no such thing."""
    if wanted.node_id is not None:
        last = session.scalar(select(func.max(Node.id))) or 0
        return NotFound("recorded thing", wanted.text, [f"numbers up to {last}"])
    kind = wanted.kind or kind
    said = "" if wanted.version is None and wanted.alias is None else f"@{wanted.version or wanted.alias}"
    named = renaming.KINDS if kind is None else (_NAMED_BY.get(kind, kind),)
    for each in named:
        now = renaming.called_now(session, each, wanted.name)
        if now is not None:
            noun = kind or each
            prefix = f"{wanted.kind}:" if wanted.kind is not None else ""
            return Renamed(noun, wanted.text, f"{prefix}{now}{said}")
    if kind == "adapter" and wanted.version is None and wanted.alias is None:
        retired = session.scalars(_named("adapter", wanted.name).order_by(Adapter.version.desc()).limit(12))
        if versions := [node.ref for node in describe(session, retired).values()]:
            return AllRetired("adapter", wanted.name, versions[::-1])
    return NotFound(kind or "recorded thing", wanted.text, _known(session, wanted, kind))


def in_use() -> ColumnElement[bool]:
    """Whether an adapter is not retired: its last word was not that."""
    event, adapter = Event.rows(), Adapter.rows()
    of_it = (event.c.subject == adapter.c.node_id, event.c.kind.in_((RETIRED, RESTORED)))
    last = select(event.c.kind).where(*of_it).order_by(event.c.id.desc()).limit(1).correlate(adapter)
    return func.coalesce(last.scalar_subquery(), RESTORED) != RETIRED


def _answers(session: Session, wanted: names.Ref, kind: str | None) -> list[NodeRecord]:
    if wanted.node_id is not None:
        found = list(describe(session, [wanted.node_id]).values())
        if found and kind not in (None, found[0].kind):
            reason = f"it is {found[0].full_ref}, and {article(kind or '')} {kind} is wanted."
            raise RefInvalid(wanted.text, reason)
        return found
    found = _by_name(session, wanted, kind)
    if not found and wanted.may_be_digest and not renaming.was_a_name(session, wanted.name):
        return list(describe(session, _by_digest(session, wanted.name.lower(), kind)).values())
    return found


def _by_name(session: Session, wanted: names.Ref, kind: str | None) -> list[NodeRecord]:
    if wanted.alias is not None:
        ids = _by_alias(session, wanted.name, wanted.alias) if kind in (None, "adapter") else []
        return list(describe(session, ids).values())
    found: list[NodeRecord] = []
    learnt = False
    for each, (latest, numbered) in _ANSWERS.items():
        if kind not in (None, each) or (kind is None and each == "export"):
            continue  # exports carry the names of their compositions: they answer only when asked for
        query = latest if wanted.version is None else numbered
        row = session.execute(query, {"called": wanted.name, "number": wanted.version}).first()
        if row is not None:
            found.append(_node(row, row.version))
            learnt = learnt or each == "adapter"
    if wanted.version is None and (kind == "task" or (kind is None and not learnt)):
        row = session.execute(_TASK, {"called": wanted.name}).first()
        if row is not None:
            found.append(_node(row, None))
    return found


def _answer(kind: str) -> tuple[_Statement, _Statement]:
    """The last version that a name means, and the one of a number: each made once."""
    table, name = _VERSIONED[kind]
    versions, nodes = table.rows(), Node.rows()
    source = versions.join(nodes, nodes.c.id == versions.c.node_id)
    if table is Adapter:
        source = source.join(Task.rows(), Task.rows().c.node_id == versions.c.task_id)
    said = (nodes.c.id, nodes.c.kind, nodes.c.digest, nodes.c.created_at, _column(name).label("name"))
    of_name = (
        select(*said, versions.c.version).select_from(source).where(_column(name) == bindparam("called"))
    )
    last = of_name.order_by(versions.c.version.desc()).limit(1)
    numbered = of_name.where(versions.c.version == bindparam("number"))
    return last.where(in_use()) if table is Adapter else last, numbered


def _column(of: InstrumentedAttribute[str]) -> ColumnElement[str]:
    column: ColumnElement[str] = of.class_.rows().c[of.key]
    return column


def _node(row: Row[*tuple[Any, ...]], version: int | None) -> NodeRecord:
    return NodeRecord(
        node_id=row.id,
        kind=row.kind,
        digest=row.digest,
        created_at=row.created_at,
        name=row.name,
        version=version,
    )


_ANSWERS = {kind: _answer(kind) for kind in _VERSIONED}
_TASK = (
    select(*Node.rows().c, Task.rows().c.name)
    .join_from(Node.rows(), Task.rows(), Task.rows().c.node_id == Node.rows().c.id)
    .where(Task.rows().c.name == bindparam("called"))
)


def _named(kind: str, name: str) -> Select[int]:
    table, column = _VERSIONED[kind]
    query = select(table.node_id).where(column == name)
    return query.join(Task, Task.node_id == Adapter.task_id) if table is Adapter else query


def _by_alias(session: Session, task: str, alias: str) -> list[int]:
    query = (
        select(AliasMove.adapter_id)
        .join(Task, Task.node_id == AliasMove.task_id)
        .where(Task.name == task, AliasMove.name == alias)
        .order_by(AliasMove.number.desc())
        .limit(1)
    )
    return [node_id for node_id in session.scalars(query) if node_id is not None]


def _by_digest(session: Session, prefix: str, kind: str | None) -> list[int]:
    # 'g' follows 'f': the digests that begin so lie between, and the index finds them.
    query = select(Node.id, Node.kind).where(Node.digest >= prefix, Node.digest < prefix + "g")
    # Kinds are told apart here: asked for the kind too, SQLite would walk every node of it instead.
    rows = session.execute(query.order_by(Node.digest).limit(_MOST_KNOWN))
    return sorted(row.id for row in rows if kind in (None, row.kind))[:_MOST_CANDIDATES]


def _unambiguous(node: NodeRecord, among: list[NodeRecord]) -> str:
    same = [other for other in among if other.full_ref == node.full_ref]
    return node.full_ref if len(same) == 1 else f"{node.full_ref} ({node.digest})"


def _known(session: Session, wanted: names.Ref, kind: str | None) -> list[str]:
    """What a person may have meant: of a name that is there its versions and aliases, else names like it."""
    kind = wanted.kind or kind
    kinds = [each for each in _VERSIONED if kind in (None, each)]
    there = {each: found for each in kinds if (found := _versions(session, each, wanted.name))}
    if there and (wanted.version is not None or wanted.alias is not None):
        said = (ref if len(there) == 1 else f"{each}:{ref}" for each, refs in there.items() for ref in refs)
        return [*said, *(_aliases(session, wanted.name) if kind in (None, "adapter") else ())]
    known: set[str] = set()
    for each in kinds:
        name = _VERSIONED[each][1]
        query = select(name).group_by(name)
        if each == "adapter":
            query = query.join(Adapter, Task.node_id == Adapter.task_id)
        known.update(session.scalars(query.order_by(*_likeness(name, wanted.name)).limit(_MOST_KNOWN)))
    if kind in (None, "task"):
        tasks = select(Task.name).order_by(*_likeness(Task.name, wanted.name)).limit(_MOST_KNOWN)
        known.update(session.scalars(tasks))
    # The closest first: an error message names only some.
    closest = get_close_matches(wanted.name, sorted(known), n=3)
    return [*closest, *sorted(known - set(closest))]


def _likeness(name: InstrumentedAttribute[str], given: str) -> tuple[ColumnElement[int], ColumnElement[str]]:
    """Names that begin alike come first, so that a bound on their number keeps the likely ones."""
    alike = func.lower(func.substr(name, 1, 2)) == given[:2].lower()
    return case((alike, 0), else_=1), name.expression


def _versions(session: Session, kind: str, name: str) -> list[str]:
    table, _ = _VERSIONED[kind]
    query = _named(kind, name).with_only_columns(table.version).order_by(table.version.desc()).limit(12)
    return [f"{name}@{version}" for version in session.scalars(query)]


def _aliases(session: Session, task: str) -> list[str]:
    query = (
        select(AliasMove.name)
        .join(Task, Task.node_id == AliasMove.task_id)
        .where(Task.name == task)
        .distinct()
        .order_by(AliasMove.name)
        .limit(12)
    )
    return [f"{task}@{alias}" for alias in session.scalars(query) if _by_alias(session, task, alias)]


# --- from nodes to what people call them -------------------------------------------------------------


def describe(session: Session, ids: Iterable[int]) -> dict[int, NodeRecord]:
    """The nodes of these ids by id, each with the name and version by which people know it."""
    described: dict[int, NodeRecord] = {}
    wanted = list(ids)
    for chunk in chunks(wanted):
        nodes = {node.id: node for node in session.scalars(select(Node).where(Node.id.in_(chunk)))}
        by_kind: dict[str, list[int]] = {}
        for node in nodes.values():
            by_kind.setdefault(node.kind, []).append(node.id)
        called = {
            node_id: (name, version)
            for kind, of_kind in by_kind.items()
            for node_id, name, version in _names(session, kind, of_kind)
        }
        for node_id, node in nodes.items():
            name, version = called.get(node_id, (node.digest[:12], None))
            described[node_id] = NodeRecord(
                node_id=node_id,
                kind=node.kind,
                digest=node.digest,
                created_at=node.created_at,
                name=name,
                version=version,
            )
    return {node_id: described[node_id] for node_id in wanted if node_id in described}


def _names(session: Session, kind: str, ids: list[int]) -> Iterator[tuple[int, str, int | None]]:
    if kind in _VERSIONED:
        table, name = _VERSIONED[kind]
        query = select(table.node_id, name, table.version)
        if table is Adapter:
            query = query.join(Task, Task.node_id == Adapter.task_id)
        for node_id, found, version in session.execute(query.where(table.node_id.in_(ids))):
            yield node_id, found, version
    elif kind == "task":
        for node_id, found in session.execute(select(Task.node_id, Task.name).where(Task.node_id.in_(ids))):
            yield node_id, found, None
    elif kind == "run":
        runs = select(Run.node_id, Run.mlflow_run_id).where(
            Run.node_id.in_(ids), Run.mlflow_run_id.is_not(None)
        )
        for node_id, mlflow_run_id in session.execute(runs):
            yield node_id, str(mlflow_run_id), None


def chunks(ids: Iterable[int]) -> Iterator[list[int]]:
    """The ids in pieces that one statement may hold."""
    source = iter(ids)
    while chunk := list(islice(source, CHUNK)):
        yield chunk
