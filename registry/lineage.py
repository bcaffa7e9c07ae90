"""The graph of what was made from what: references resolved, and walks up and down, many hops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy import BigInteger, ColumnElement, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from registry import names
from registry.errors import AmbiguousRef, NotFound
from registry.graph import EdgeRecord, LineageGraph, tree
from registry.models import Adapter, Backbone, Composition, Dataset, Edge, Export, Node, Run, Task
from registry.records import NodeRecord

__all__ = ["LineageGraph", "ancestors", "descendants", "describe", "resolve", "tree"]

MAX_NODES = 10_000
_CHUNK = 500  # ids in one statement: SQLite's older builds take 999 parameters
_MOST_CANDIDATES = 20


def resolve(session: Session, ref: str, prefer: Sequence[str] = ()) -> NodeRecord:
    """The node that a reference means.

    A name (its latest version; of a task, its latest adapter if it has one), name@version,
    kind:name[@version], or six and more digits of a digest, which a name wins over. prefer names kinds that
    win where several answer.
    Raises NotFound or AmbiguousRef.
    """
    wanted = names.parse(ref)
    found = _by_name(session, wanted) or _by_digest(session, wanted)
    if not found:
        raise NotFound(wanted.kind or "recorded thing", ref, _known(session, wanted.kind))
    for kind in prefer:
        chosen = [node for node in found if node.kind == kind]
        if len(chosen) == 1:
            return chosen[0]
    if len(found) > 1:
        raise AmbiguousRef(ref, [_unambiguous(node, found) for node in found])
    return found[0]


def _unambiguous(node: NodeRecord, among: list[NodeRecord]) -> str:
    same = [other for other in among if other.full_ref == node.full_ref]
    return node.full_ref if len(same) == 1 else f"{node.full_ref} ({node.digest})"


def _by_name(session: Session, wanted: names.Ref) -> list[NodeRecord]:
    ids: list[int] = []
    for kind, (table, name) in _VERSIONED.items():
        if wanted.kind not in (None, kind) or (wanted.kind is None and kind == "export"):
            continue  # exports carry the names of their compositions: they answer only when asked for
        query = select(table.node_id).where(name == wanted.name).order_by(table.version.desc()).limit(1)
        if table is Adapter:
            query = query.join(Task, Task.node_id == Adapter.task_id)
        if wanted.version is not None:
            query = query.where(table.version == wanted.version)
        ids.extend(session.scalars(query))
    has_adapter = any(session.get_one(Node, node_id).kind == "adapter" for node_id in ids)
    if wanted.version is None and (wanted.kind == "task" or (wanted.kind is None and not has_adapter)):
        ids.extend(session.scalars(select(Task.node_id).where(Task.name == wanted.name)))
    return list(describe(session, ids).values())


def _by_digest(session: Session, wanted: names.Ref) -> list[NodeRecord]:
    if not wanted.may_be_digest:
        return []
    prefix = wanted.name.lower()
    # 'g' follows 'f': the digests that begin so lie between, and the index finds them.
    query = select(Node.id).where(Node.digest >= prefix, Node.digest < prefix + "g").order_by(Node.id)
    if wanted.kind is not None:
        query = query.where(Node.kind == wanted.kind)
    return list(describe(session, session.scalars(query.limit(_MOST_CANDIDATES)).all()).values())


def _known(session: Session, kind: str | None) -> list[str]:
    known: list[str] = []
    for each, (table, name) in _VERSIONED.items():
        if kind not in (None, each):
            continue
        query = select(name).distinct().order_by(name).limit(1000)
        if table is Adapter:
            query = query.join(Adapter, Task.node_id == Adapter.task_id)
        known.extend(session.scalars(query))
    if kind in (None, "task"):
        known.extend(session.scalars(select(Task.name).order_by(Task.name).limit(1000)))
    return sorted(set(known))


_Table = type[Adapter] | type[Backbone] | type[Composition] | type[Dataset] | type[Export]
_VERSIONED: dict[str, tuple[_Table, InstrumentedAttribute[str]]] = {
    "adapter": (Adapter, Task.name),
    "backbone": (Backbone, Backbone.name),
    "composition": (Composition, Composition.name),
    "dataset": (Dataset, Dataset.name),
    "export": (Export, Export.name),
}


def ancestors(
    session: Session,
    node_id: int,
    depth: int | None = None,
    roles: Iterable[str] | None = None,
    max_nodes: int = MAX_NODES,
) -> LineageGraph:
    """What a node was made from: up to depth hops (None: all), over edges of these roles (None: all)."""
    return _walk(session, node_id, Edge.child, Edge.parent, depth, roles, max_nodes)


def descendants(
    session: Session,
    node_id: int,
    depth: int | None = None,
    roles: Iterable[str] | None = None,
    max_nodes: int = MAX_NODES,
) -> LineageGraph:
    """What was made from a node: up to depth hops (None: all), over edges of these roles (None: all)."""
    return _walk(session, node_id, Edge.parent, Edge.child, depth, roles, max_nodes)


def _walk(
    session: Session,
    root: int,
    here: InstrumentedAttribute[int],
    there: InstrumentedAttribute[int],
    depth: int | None,
    roles: Iterable[str] | None,
    max_nodes: int,
) -> LineageGraph:
    allowed = [Edge.role.in_(sorted(set(roles)))] if roles is not None else []
    if depth is None:
        ids = _reach(session, root, here, there, allowed, max_nodes + 1)
    else:
        ids = _reach_within(session, root, here, there, allowed, depth, max_nodes + 1)
    truncated = len(ids) > max_nodes
    ids = ids[:max_nodes]
    kept = set(ids)
    edges = [
        EdgeRecord(edge.parent, edge.child, edge.role, edge.pos)
        for chunk in _chunks(ids)
        for edge in session.execute(
            select(Edge.parent, Edge.child, Edge.role, Edge.pos).where(here.in_(chunk), *allowed)
        )
        if edge.parent in kept and edge.child in kept
    ]
    edges.sort(key=lambda edge: (edge.child, edge.pos, edge.parent, edge.role))
    return LineageGraph(root, describe(session, ids), tuple(edges), truncated)


def _reach(
    session: Session,
    root: int,
    here: InstrumentedAttribute[int],
    there: InstrumentedAttribute[int],
    allowed: Sequence[ColumnElement[bool]],
    limit: int,
) -> list[int]:
    """Ids within any number of hops. UNION on bare ids visits each once, whatever the number of paths."""
    reached = select(literal(root, BigInteger).label("id")).cte("reached", recursive=True)
    reached = reached.union(select(there).join(reached, here == reached.c.id).where(*allowed))
    return list(session.scalars(select(reached.c.id).limit(limit)))


def _reach_within(
    session: Session,
    root: int,
    here: InstrumentedAttribute[int],
    there: InstrumentedAttribute[int],
    allowed: Sequence[ColumnElement[bool]],
    depth: int,
    limit: int,
) -> list[int]:
    """Ids within depth hops, ring by ring."""
    seen = {root: None}  # a dict keeps the order of arrival
    ring = [root]
    while depth > 0 and ring and len(seen) < limit:
        depth -= 1
        found = [
            node
            for chunk in _chunks(ring)
            for node in session.scalars(select(there).where(here.in_(chunk), *allowed).distinct())
        ]
        ring = sorted(set(found) - seen.keys())
        seen |= dict.fromkeys(ring)
    return list(seen)[:limit]


def describe(session: Session, ids: Iterable[int]) -> dict[int, NodeRecord]:
    """The nodes of these ids by id, each with the name and version by which people know it."""
    described: dict[int, NodeRecord] = {}
    wanted = list(ids)
    for chunk in _chunks(wanted):
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


def _chunks(ids: Iterable[int]) -> Iterator[list[int]]:
    source = iter(ids)
    while chunk := list(islice(source, _CHUNK)):
        yield chunk
