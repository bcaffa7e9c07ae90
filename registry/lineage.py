"""The graph of what was made from what: walks up and down, many hops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import BigInteger, ColumnElement, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from registry.graph import EdgeRecord, LineageGraph, tree
from registry.models import Edge
from registry.refs import chunks, describe, resolve

__all__ = ["LineageGraph", "ancestors", "descendants", "describe", "resolve", "tree"]

MAX_NODES = 10_000


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
        for chunk in chunks(ids)
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
            for chunk in chunks(ring)
            for node in session.scalars(select(there).where(here.in_(chunk), *allowed).distinct())
        ]
        ring = sorted(set(found) - seen.keys())
        seen |= dict.fromkeys(ring)
    return list(seen)[:limit]
