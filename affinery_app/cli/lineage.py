"""affinery lineage."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from affinery_app.cli import completion
from affinery_app.cli.output import JsonOption, WorkspaceOption, emit, say, table
from affinery_app.cli.place import UrlOption, place

if TYPE_CHECKING:
    from registry.graph import LineagePage

LARGEST = 2**63 - 1


class Format(StrEnum):
    """How a lineage is drawn."""

    tree = "tree"
    json = "json"
    dot = "dot"
    mermaid = "mermaid"


def lineage(
    ref: Annotated[
        str,
        typer.Argument(
            help="A name, name@version, name@alias, kind:name, or the beginning of a digest.",
            autocompletion=completion.adapters,
        ),
    ],
    down: Annotated[
        bool, typer.Option("--down/--up", help="What was made from it, or what it was made from.")
    ] = False,
    depth: Annotated[int | None, typer.Option(min=1, help="How many steps.", show_default="all")] = None,
    role: Annotated[
        list[str] | None, typer.Option(help="Only over edges of this role, such as dataset; repeat for more.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to draw it.")] = Format.tree,
    kind: Annotated[
        list[str] | None, typer.Option(help="List what is of this kind, such as export; repeat for more.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 1000,
    after: Annotated[
        int | None, typer.Option(min=0, max=LARGEST, help="List what comes after this id.")
    ] = None,
    url: UrlOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Where something came from, or what depends on it. With --kind or --after it is a list, page by page."""
    from affinery.errors import ConfigInvalid
    from registry import lineage as record
    from registry.graph import tree

    direction: Literal["up", "down"] = "down" if down else "up"
    listed = kind is not None or after is not None
    if listed and (depth is not None or form not in (Format.tree, Format.json)):
        raise ConfigInvalid("--kind, --after", "they list; --depth, dot and mermaid belong to a drawing.")
    record.check_words(kind, role)
    as_json = as_json or form is Format.json
    with place(url, workspace) as where:
        if listed:
            _list(where.lineage_page(ref, direction, kind, role, after or 0, limit), as_json)
            return
        graph = where.lineage(ref, direction, depth, role, limit)
    if as_json:
        emit(graph.to_json())
    elif form is Format.dot:
        print(graph.to_dot())
    elif form is Format.mermaid:
        print(graph.to_mermaid())
    else:
        print(tree(graph, graph.root, direction))


def _list(found: LineagePage, as_json: bool) -> None:
    if as_json:
        emit(found.to_json())
        return
    rows = [(n.node_id, n.full_ref, n.digest[:12], f"{n.created_at:%Y-%m-%d %H:%M}") for n in found.nodes]
    table(["id", "what", "digest", "recorded"], rows, "There is none.")
    if found.next is not None:
        say(f"There is more: --after {found.next}")
