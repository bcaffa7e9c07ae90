"""/v1/lineage: what was made from what, as a bounded graph or page by page."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session

from affinery_app.api.calls import After, Limit, Ref, Space, answer, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Kind, Word, pages
from registry import lineage
from registry.graph import node_json

router = nouns("/v1/lineage", "lineage")
PREFERRED = ("adapter", "composition", "backbone", "dataset", "task")


class LineageNode(BaseModel):
    """Anything recorded. made_with, of a run: its code, lock, seed, environment and hardware."""

    id: int
    kind: str
    ref: str
    name: str
    version: int | None
    digest: str
    created_at: str
    made_with: dict[str, Any] | None = None


class LineageEdge(BaseModel):
    """child was made from parent, in this role."""

    parent: int
    child: int
    role: str
    pos: int


class Lineage(BaseModel):
    """A piece of the graph. truncated: a bound was reached, and more is recorded."""

    root: int
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    truncated: bool


Direction = Annotated[
    Literal["up", "down"], Query(description="up: what it was made from; down: what it went into.")
]
Roles = Annotated[list[Word], Query(max_length=20, description="Only over edges of these roles.")]


@router.get("/{ref}", response_model=Lineage)
def get_lineage(
    space: Space,
    ref: Ref,
    direction: Direction = "up",
    depth: Annotated[int, Query(ge=0, le=100, description="How many hops, at most.")] = 3,
    roles: Roles = [],  # noqa: B006 - FastAPI copies it
    limit: Annotated[int, Query(ge=1, le=5000, description="How many nodes, at most.")] = 500,
) -> JSONResponse:
    """The graph above or below something, so many hops far."""
    walk = lineage.ancestors if direction == "up" else lineage.descendants
    lineage.check_words(None, roles)
    with space.sessions.read() as session:
        return answer(walk(session, _root(session, ref), depth, roles or None, limit).to_json())


@router.get("/{ref}/nodes", response_model=pages(LineageNode))
def list_lineage(
    space: Space,
    ref: Ref,
    direction: Direction = "up",
    kinds: Annotated[list[Kind], Query(max_length=20, description="Only nodes of these kinds.")] = [],  # noqa: B006
    roles: Roles = [],  # noqa: B006
    after: After = 0,
    limit: Limit = 100,
) -> JSONResponse:
    """Everything above or below something, in the order in which it was recorded."""
    lineage.check_words(kinds, roles)
    with space.sessions.read() as session:
        root = _root(session, ref)
        page = lineage.page(
            session, root, direction, kinds=kinds or None, roles=roles or None, after=after, limit=limit
        )
    return paged([node_json(node) for node in page.nodes], page.next)


def _root(session: Session, ref: str) -> int:
    return lineage.resolve(session, ref, prefer=PREFERRED).node_id
