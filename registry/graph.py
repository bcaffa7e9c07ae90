"""A piece of the lineage, and its drawings: tree, JSON, DOT, Mermaid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from registry.records import NodeRecord

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class EdgeRecord:
    """child was made from parent, in this role; pos is its place among the child's parents."""

    parent: int
    child: int
    role: str
    pos: int = 0


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """Nodes by id, and the edges between them. truncated: a bound was reached, and more is recorded.

    facts: by run, with what it was made: code, lock, seed, environment, hardware, MLflow run.
    """

    root: int
    nodes: dict[int, NodeRecord]
    edges: tuple[EdgeRecord, ...]
    truncated: bool = False
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; nodes in the order in which they were recorded."""
        return {
            "root": self.root,
            "nodes": [
                node_json(node) | ({"made_with": self.facts[key]} if key in self.facts else {})
                for key, node in sorted(self.nodes.items())
            ],
            "edges": [
                {"parent": e.parent, "child": e.child, "role": e.role, "pos": e.pos} for e in self.edges
            ],
            "truncated": self.truncated,
        }

    def to_dot(self) -> str:
        """Graphviz."""
        lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
        lines += [f"  n{key} [label={_quoted(node.full_ref)}];" for key, node in sorted(self.nodes.items())]
        lines += [f"  n{e.parent} -> n{e.child} [label={_quoted(e.role)}];" for e in self.edges]
        return "\n".join([*lines, "}"])

    def to_mermaid(self) -> str:
        """Mermaid, as Markdown pages draw it."""
        lines = ["graph LR"]
        lines += [f'  n{key}["{_entities(node.full_ref)}"]' for key, node in sorted(self.nodes.items())]
        lines += [f"  n{e.parent} -->|{_entities(e.role)}| n{e.child}" for e in self.edges]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class LineagePage:
    """Nodes in the order in which they were recorded; next asks for those after them, None at the end."""

    nodes: tuple[NodeRecord, ...]
    next: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"nodes": [node_json(node) for node in self.nodes], "next": self.next}


def node_json(node: NodeRecord) -> dict[str, Any]:
    """A node as the lineage prints it."""
    return {
        "id": node.node_id,
        "kind": node.kind,
        "ref": node.full_ref,
        "name": node.name,
        "version": node.version,
        "digest": node.digest,
        "created_at": node.created_at.isoformat(),
    }


def tree(graph: LineageGraph, root: int, direction: Direction = "up") -> str:
    """The graph as an indented tree: what root was made from (up), or what was made from it (down).

    A node that several paths reach is drawn out once and named thereafter: the text grows with the graph, not
    with the number of paths.
    """
    lines = [_label(graph.nodes[root]) + _made_with(graph.facts.get(root, {}))]
    drawn = {root}
    steps = _steps(graph, direction)
    # One frame an open branch: what is left of it, and the rails that stand before it.
    stack: list[tuple[Iterator[tuple[int, str, bool]], str]] = [(_with_last(steps.get(root, [])), "")]
    while stack:
        branch, rails = stack[-1]
        following = next(branch, None)
        if following is None:
            stack.pop()
            continue
        node, role, last = following
        again = " (see above)" if node in drawn and steps.get(node) else ""
        made = _made_with(graph.facts.get(node, {})) if node not in drawn else ""
        lines.append(f"{rails}{'└── ' if last else '├── '}{role}: {_label(graph.nodes[node])}{again}{made}")
        if node not in drawn:
            drawn.add(node)
            stack.append((_with_last(steps.get(node, [])), rails + ("    " if last else "│   ")))
    if graph.truncated:
        lines.append("… more is recorded than is shown here")
    return "\n".join(lines)


def _steps(graph: LineageGraph, direction: Direction) -> dict[int, list[tuple[int, str]]]:
    steps: dict[int, list[tuple[int, str]]] = {}
    key = (
        (lambda e: (e.child, e.pos, e.parent))
        if direction == "up"
        else (lambda e: (e.parent, e.child, e.role))
    )
    for edge in sorted(graph.edges, key=key):
        source, target = (edge.child, edge.parent) if direction == "up" else (edge.parent, edge.child)
        steps.setdefault(source, []).append((target, edge.role))
    return steps


def _with_last(branch: list[tuple[int, str]]) -> Iterator[tuple[int, str, bool]]:
    for place, (node, role) in enumerate(branch, start=1):
        yield node, role, place == len(branch)


def _label(node: NodeRecord) -> str:
    return f"{node.kind} {node.ref}  [{node.digest[:12]}]"


def _made_with(facts: dict[str, Any]) -> str:
    named = [(name, facts.get(name)) for name in ("code", "lock", "seed", "environment")]
    shown = [f"{name} {str(value)[:12]}" for name, value in named if value is not None]
    return f"  ({', '.join(shown)})" if shown else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _entities(text: str) -> str:
    return "".join(f"#{ord(c)};" if c in '"#<>&|;`[]{}' else c for c in text)
