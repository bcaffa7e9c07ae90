"""/lineage/{ref}: what something was made from and what it went into, drawn by a script or listed without."""

from __future__ import annotations

from typing import Literal

from starlette.responses import Response

from affinery_app.dashboard.visit import Visit
from registry import lineage, refs
from registry.graph import LineageGraph
from registry.records import NodeRecord

PREFERRED = ("adapter", "composition", "backbone", "dataset", "task")
HOPS, LISTED = 2, 200


def page(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        root = refs.resolve(session, visit.named(), prefer=PREFERRED)
        above = lineage.ancestors(session, root.node_id, HOPS, None, LISTED)
        below = lineage.descendants(session, root.node_id, HOPS, None, LISTED)
    return visit.answer(
        "lineage.html",
        root=root,
        above=_listed(above, "up"),
        below=_listed(below, "down"),
        truncated=above.truncated or below.truncated,
        roles=lineage.ROLES,
    )


def _listed(graph: LineageGraph, direction: Literal["up", "down"]) -> list[tuple[str, NodeRecord]]:
    """(role, node) by the edge over which each was first reached."""
    found: dict[int, str] = {}
    for edge in graph.edges:
        found.setdefault(edge.parent if direction == "up" else edge.child, edge.role)
    return [(role, graph.nodes[key]) for key, role in found.items() if key != graph.root]
