"""/v1/search and /v1/stats: what is called so, and how much there is."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from fastapi import Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from affinery.errors import UserError
from affinery_app.api.adapters import Adapter, told
from affinery_app.api.calls import Space, answer
from affinery_app.api.lineage import PREFERRED, LineageNode
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Word, shape
from orchestration import queue
from registry import pages, refs, search, tasks
from registry.graph import node_json
from registry.records import TaskRecord

router = nouns("/v1", "overview")
Task = shape(TaskRecord)
MOST = 20


class Found(BaseModel):
    """meant: what the text names; tasks: whose names hold it; adapters: for which it holds as a filter.

    things: backbones, datasets and compositions whose names hold it, the last version of each.
    """

    meant: LineageNode | None
    tasks: list[Task]  # type: ignore[valid-type]
    things: list[LineageNode]
    adapters: list[Adapter]  # type: ignore[valid-type]


class Stats(BaseModel):
    """How many things there are of each kind, and how many jobs in each state."""

    things: dict[str, int]
    jobs: dict[str, int]


@router.get("/search", response_model=Found)
def find(
    space: Space, q: Annotated[Word, Query(description="A reference, a name's part, or a filter.")]
) -> JSONResponse:
    """Whatever is called so or alike, and the adapters that a filter finds."""
    meant, versions = None, []
    with space.sessions.read() as session:
        named = tasks.page(session, limit=MOST, containing=q)
        things = [node_json(each) for each in pages.named(session, q, MOST)]
        with suppress(UserError):  # no reference: then it is a part of a name, or a filter
            meant = node_json(refs.resolve(session, q, prefer=PREFERRED))
        with suppress(UserError):
            versions = told(session, search.search(session, q, limit=MOST).adapters)
    found = [each.to_json() for each in named]
    return answer({"meant": meant, "tasks": found, "things": things, "adapters": versions})


@router.get("/stats", response_model=Stats)
def get_stats(space: Space) -> JSONResponse:
    """How much there is."""
    with space.sessions.read() as session:
        return answer({"things": pages.counts(session), "jobs": queue.counts(session)})
