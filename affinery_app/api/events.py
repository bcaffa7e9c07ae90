"""/v1/events: what happened, in order."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from fastapi.responses import JSONResponse

from affinery_app.api.calls import LARGEST, After, Limit, Space, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Word, pages, shape
from registry import events
from registry.records import EventRecord

router = nouns("/v1/events", "events")
Event = shape(EventRecord)


@router.get("", response_model=pages(Event))
def list_events(
    space: Space,
    after: After = 0,
    limit: Limit = 100,
    kind: Annotated[Word | None, Query(examples=["adapter.published"])] = None,
    subject: Annotated[int | None, Query(ge=0, le=LARGEST, description="A node_id.")] = None,
) -> JSONResponse:
    """The events after this one, oldest first."""
    with space.sessions.read() as session:
        found = events.list_after(session, after, limit=limit + 1, kind=kind, subject=subject)
    return paged(found[:limit], found[limit - 1].id if len(found) > limit else None)
