"""The graph of what was made from what: walks up and down, many hops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from affinery.errors import ConfigInvalid, near
from registry import names
from registry.graph import Direction, EdgeRecord, LineageGraph, LineagePage, tree
from registry.models import Edge, Node, Run
from registry.refs import CHUNK, chunks, describe, resolve

__all__ = [
    "LineageGraph",
    "LineagePage",
    "ancestors",
    "check_words",
    "descendants",
    "describe",
    "page",
    "resolve",
    "tree",
]

MAX_NODES = 10_000
# What a parent was to what was made of it (registry/invariants.py: EDGES, and members).
ROLES = (
    *("adapter", "backbone", "composition", "dataset", "member", "parent", "predecessor", "reference"),
    *("run", "task", "warm-start"),
)
_FEW = 1000


def check_words(kinds: Iterable[str] | None, roles: Iterable[str] | None) -> None:
    """Raises ConfigInvalid where nothing can ever be of this kind, or made in this role."""
    for what, given, known in (("kind", kinds, names.KINDS), ("role", roles, ROLES)):
        for word in given or ():
            if word not in known:
                hint = f"{near(word, known)} Known: {', '.join(known)}."
                raise ConfigInvalid(what, f"there is no {what} {word!r}.{hint}")


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
        ids = list(session.scalars(reach(root, here is Edge.parent, roles).limit(max_nodes + 1)))
    else:
        ids = _reach_within(session, root, here, there, allowed, depth, max_nodes + 1)
    truncated = len(ids) > max_nodes
    ids = ids[:max_nodes]
    kept = set(ids)
    edges = [
        EdgeRecord(edge.parent, edge.child, edge.role, edge.pos)
        for chunk in chunks(ids)
        for edge in session.execute(
            select(Edge.parent, Edge.child, Edge.role, Edge.pos).where(here.in_(chunk), *allowed)
        )
        if edge.parent in kept and edge.child in kept
    ]
    edges.sort(key=lambda edge: (edge.child, edge.pos, edge.parent, edge.role))
    nodes = describe(session, ids)
    runs = [node_id for node_id, node in nodes.items() if node.kind == "run"]
    return LineageGraph(root, nodes, tuple(edges), truncated, made_with(session, runs))


def made_with(session: Session, run_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """By run: the code, the installed packages, the seed, the environment, the hardware, the MLflow run."""
    return {
        run.node_id: {
            "code": run.code_version,
            "lock": run.environment.get("packages"),
            "seed": run.seed,
            "environment": run.environment.get("digest"),
            "python": run.environment.get("python"),
            "processor": run.environment.get("processor"),
            "gpus": run.environment.get("gpus"),
            "mlflow_run_id": run.mlflow_run_id,
            "started_at": run.started_at.isoformat(),
            "ended_at": run.ended_at.isoformat(),
        }
        for chunk in chunks(run_ids)
        for run in session.scalars(select(Run).where(Run.node_id.in_(chunk)))
    }


def page(
    session: Session,
    node_id: int,
    direction: Direction,
    *,
    kinds: Iterable[str] | None = None,
    roles: Iterable[str] | None = None,
    after: int = 0,
    limit: int = 100,
) -> LineagePage:
    """The nodes above (up) or below (down) a node, without it: of these kinds, over edges of these roles.

    They come in the order in which they were recorded; after is the id of the last one that was seen, so that
    what is recorded meanwhile neither shifts nor hides anything.
    """
    wanted = None if kinds is None else sorted(set(kinds))
    if direction == "down":
        ids = _below(session, node_id, roles, wanted, after, limit + 1)
    else:
        query = _nodes(after, wanted).where(Node.id.in_(reach(node_id, down=False, roles=roles)))
        ids = list(session.scalars(query.where(Node.id != node_id).limit(limit + 1)))
    shown = ids[:limit]
    return LineagePage(
        tuple(describe(session, shown).values()), shown[-1] if len(ids) > limit and shown else None
    )


def _nodes(after: int, kinds: Sequence[str] | None) -> Select[int]:
    query = select(Node.id).where(Node.id > after).order_by(Node.id)
    return query if kinds is None else query.where(Node.kind.in_(kinds))


def _below(
    session: Session,
    root: int,
    roles: Iterable[str] | None,
    kinds: Sequence[str] | None,
    after: int,
    limit: int,
) -> list[int]:
    """The first descendants after an id.

    Few descendants are gathered and sorted. Of many (a backbone has all that was ever learnt on it), the
    nodes after the id are walked instead, and each piece is asked for its ancestors, which are few.
    """
    allowed = [Edge.role.in_(sorted(set(roles)))] if roles is not None else []
    gathered = _reach_within(session, root, Edge.parent, Edge.child, allowed, _FEW, _FEW + 1)
    found: list[int] = []
    if len(gathered) <= _FEW:
        rest = sorted(node for node in gathered if node > max(after, root))
        for chunk in chunks(rest):
            found += session.scalars(_nodes(after, kinds).where(Node.id.in_(chunk)))
        return found[:limit]
    after = max(after, root)
    while len(found) < limit:
        piece = list(session.scalars(_nodes(after, kinds).limit(CHUNK)))
        if not piece:
            break
        found += descending(session, root, piece, allowed)
        after = piece[-1]
    return found[:limit]


def descending(
    session: Session, root: int, ids: Sequence[int], allowed: Sequence[ColumnElement[bool]] = ()
) -> list[int]:
    """Those of these nodes that were made from root. What is older than root cannot have been."""
    parents: dict[int, list[int]] = {}
    ring = list(ids)
    while ring:
        for node in ring:
            parents[node] = []
        for chunk in chunks(ring):
            query = select(Edge.child, Edge.parent).where(
                Edge.child.in_(chunk), Edge.parent >= root, *allowed
            )
            for child, parent in session.execute(query):
                parents[child].append(parent)
        ring = sorted({each for node in ring for each in parents[node]} - parents.keys() - {root})
    made = {root}
    for node in sorted(parents):  # parents are older than their children
        if not made.isdisjoint(parents[node]):
            made.add(node)
    return [node for node in ids if node in made]


def reach(root: int, down: bool, roles: Iterable[str] | None = None) -> Select[int]:
    """A query of the ids that are reached from root in any number of hops, root among them.

    UNION on bare ids visits each once, whatever the number of paths.
    """
    here, there = (Edge.parent, Edge.child) if down else (Edge.child, Edge.parent)
    allowed = [Edge.role.in_(sorted(set(roles)))] if roles is not None else []
    reached = select(literal(root, BigInteger).label("id")).cte(recursive=True)
    reached = reached.union(select(there).join(reached, here == reached.c.id).where(*allowed))
    return select(reached.c.id)


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
            for chunk in chunks(ring)
            for node in session.scalars(
                select(there).where(here.in_(chunk), *allowed).distinct().limit(limit)
            )
        ]
        ring = sorted(set(found) - seen.keys())
        seen |= dict.fromkeys(ring)
    return list(seen)[:limit]
