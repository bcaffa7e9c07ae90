"""/v1/compositions: adapter versions on one backbone, one a task."""

from __future__ import annotations

from typing import Any, Literal

from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.orm import Session

from affinery_app.api.calls import After, Limit, Posting, Ref, Space, answer, page
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Facts, Sent, Word, pages, shape
from orchestration.tracking import compositions as tracked
from registry import compositions
from registry.records import CompositionRecord

router = nouns("/v1/compositions", "compositions")
Composition = shape(CompositionRecord)


class NewComposition(Sent):
    """Which adapters, on which backbone, and how."""

    name: Word
    backbone: Word
    members: list[Word] = Field(min_length=1, max_length=1000, description="Adapters, in this order.")
    mode: Literal["routed", "merged"] = "routed"
    recipe: Facts = Field(default={})


@router.get("", response_model=pages(Composition))
def list_compositions(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every composition version, oldest first."""
    return page(space, "composition", compositions.by_id, after, limit)


@router.get("/{ref}", response_model=Composition)
def get_composition(space: Space, ref: Ref) -> JSONResponse:
    """One version: the latest of a name, or the one that is named."""
    with space.sessions.read() as session:
        return answer(compositions.get(session, ref).to_json())


@router.post("", status_code=201, response_model=Composition)
def create_composition(space: Space, new: NewComposition, posting: Posting) -> JSONResponse:
    """Record a composition. The same members under the same name give the record that stands."""
    asked = new.model_dump()
    made: list[CompositionRecord] = []

    def write(session: Session) -> dict[str, Any]:
        made[:] = [compositions.register(session, **asked)]
        return made[0].to_json()

    reply = posting.do(space, asked, "/v1/compositions/{ref}", write)
    for record in made:
        tracked.tell(space.tracking, space.sessions, record)
    return reply
