"""Drawings of a piece of lineage."""

from __future__ import annotations

from datetime import UTC, datetime

from registry.graph import EdgeRecord, LineageGraph, tree
from registry.records import NodeRecord

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def node(node_id: int, kind: str, name: str, version: int | None = 1) -> NodeRecord:
    return NodeRecord(
        node_id=node_id, kind=kind, name=name, version=version, digest=f"{node_id:064x}", created_at=NOON
    )


GRAPH = LineageGraph(
    3,
    {1: node(1, "backbone", "dit"), 2: node(2, "task", "digits", None), 3: node(3, "adapter", 'di"gits|')},
    (EdgeRecord(1, 2, "backbone"), EdgeRecord(1, 3, "backbone", 0), EdgeRecord(2, 3, "task", 1)),
)


def test_a_tree_goes_up_and_down_and_draws_what_was_drawn_only_by_name() -> None:
    assert tree(GRAPH, 3) == (
        'adapter di"gits|@1  [000000000000]\n'
        "├── backbone: backbone dit@1  [000000000000]\n"
        "└── task: task digits  [000000000000]\n"
        "    └── backbone: backbone dit@1  [000000000000]"
    )
    assert tree(GRAPH, 1, "down") == (
        "backbone dit@1  [000000000000]\n"
        "├── backbone: task digits  [000000000000]\n"
        '│   └── task: adapter di"gits|@1  [000000000000]\n'
        '└── backbone: adapter di"gits|@1  [000000000000]'
    )


def test_a_chain_deeper_than_python_s_stack_is_drawn() -> None:
    deep = 5000
    graph = LineageGraph(
        deep,
        {number: node(number, "run", str(number)) for number in range(deep + 1)},
        tuple(EdgeRecord(number, number + 1, "next") for number in range(deep)),
    )
    assert len(tree(graph, deep).splitlines()) == deep + 1


def test_json_dot_and_mermaid_name_every_node_and_edge() -> None:
    plain = GRAPH.to_json()
    assert [each["ref"] for each in plain["nodes"]] == ["backbone:dit@1", "task:digits", 'adapter:di"gits|@1']
    assert plain["edges"][2] == {"parent": 2, "child": 3, "role": "task", "pos": 1}
    assert 'n3 [label="adapter:di\\"gits|@1"];' in GRAPH.to_dot()
    assert 'n2 -> n3 [label="task"];' in GRAPH.to_dot()
    assert 'n3["adapter:di#34;gits#124;@1"]' in GRAPH.to_mermaid()
    assert "n2 -->|task| n3" in GRAPH.to_mermaid()
