"""/v1/events: what happened, in order."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Query, Response

from affinery_app.api.calls import LARGEST, After, Limit, Space, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Word, pages, shape
from affinery_app.api.streams import LAST_EVENT, MEDIA_TYPE, STREAM, Message, stream
from affinery_app.wiring import Workspace
from registry import events
from registry.records import EventRecord

router = nouns("/v1/events", "events")
Event = shape(EventRecord)


@router.get("", response_model=pages(Event), responses={200: STREAM})
def list_events(
    space: Space,
    after: After = 0,
    limit: Limit = 100,
    kind: Annotated[
        Word | None, Query(description="Only events of this kind.", examples=["adapter.published"])
    ] = None,
    subject: Annotated[int | None, Query(ge=0, le=LARGEST, description="A node_id.")] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[int | None, Header(description=LAST_EVENT, ge=0, le=LARGEST)] = None,
) -> Response:
    """The events after this one, oldest first. With `Accept: text/event-stream`, those to come too."""
    events.check_kind(kind)
    if MEDIA_TYPE in accept:
        return stream(
            _Happening(space, after if last_event_id is None else last_event_id, limit, kind, subject).look
        )
    found = events.follow(space.sessions, after, limit=limit + 1, kind=kind, subject=subject)
    return paged(found[:limit], found[limit - 1].id if len(found) > limit else None)


class _Happening:
    """The events after those that were looked at."""

    def __init__(
        self, space: Workspace, after: int, limit: int, kind: str | None, subject: int | None
    ) -> None:
        self.space = space
        self.after = after
        self.limit = limit
        self.asked: dict[str, Any] = {"kind": kind, "subject": subject}

    def look(self) -> tuple[list[Message], bool]:
        found = events.follow(self.space.sessions, self.after, limit=self.limit, **self.asked)
        if found:
            self.after = found[-1].id
        return [Message("happened", each.to_json(), str(each.id)) for each in found], False
