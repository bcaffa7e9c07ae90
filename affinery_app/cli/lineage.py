"""affinery lineage."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import typer

from affinery_app.cli.output import JsonOption, WorkspaceOption, emit


class Format(StrEnum):
    """How a lineage is drawn."""

    tree = "tree"
    dot = "dot"
    mermaid = "mermaid"


def lineage(
    ref: Annotated[
        str, typer.Argument(help="A name, name@version, kind:name, or the beginning of a digest.")
    ],
    down: Annotated[
        bool, typer.Option("--down/--up", help="What was made from it, or what it was made from.")
    ] = False,
    depth: Annotated[int | None, typer.Option(min=1, help="How many steps.", show_default="all")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to draw it.")] = Format.tree,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where something came from, or what depends on it."""
    from affinery_app.wiring import open_workspace
    from registry import lineage as record
    from registry.graph import tree

    with open_workspace(workspace).sessions.read() as session:
        node = record.resolve(session, ref, prefer=("adapter", "composition", "backbone", "dataset", "task"))
        walk = record.descendants if down else record.ancestors
        graph = walk(session, node.node_id, depth=depth)
    direction: Literal["up", "down"] = "down" if down else "up"
    if as_json:
        emit(graph.to_json())
    elif form is Format.dot:
        print(graph.to_dot())
    elif form is Format.mermaid:
        print(graph.to_mermaid())
    else:
        print(tree(graph, node.node_id, direction))
