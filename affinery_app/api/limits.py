"""/v1/limits: how much may run at once, on all workers together."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.orm import Session

from affinery_app.api.calls import IfMatch, Space, answer, paged
from affinery_app.api.errors import PreconditionFailed
from affinery_app.api.etags import etag_of, held
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Sent, pages, shape
from orchestration.queue import limits
from orchestration.queue.limits import Limit

router = nouns("/v1/limits", "limits")
Told = shape(Limit)
LimitScope = Annotated[str, Path(max_length=200, description="backbone, submitter or resource.")]
Key = Annotated[
    str,
    Path(
        max_length=400,
        description="A backbone, a user's name, or cpus, gpus, memory_bytes; * is each that has no own.",
    ),
]


class Most(Sent):
    """How much is to be the most."""

    most: float = Field(description="Jobs at once; of a resource, how much of it.", examples=[2])


@router.get("", response_model=pages(Told))
def list_limits(space: Space) -> JSONResponse:
    """Every limit, by scope and key."""
    with space.sessions.read() as session:
        return paged(limits.list_all(session), None)


@router.get("/{scope}/{key:path}", response_model=Told)
def get_limit(space: Space, scope: LimitScope, key: Key) -> JSONResponse:
    """One limit. Its ETag is for If-Match."""
    with space.sessions.read() as session:
        return _told(limits.get(session, scope, key))


@router.put("/{scope}/{key:path}", response_model=Told)
def put_limit(space: Space, scope: LimitScope, key: Key, new: Most, if_match: IfMatch = None) -> JSONResponse:
    """Set a limit, in place of the one that stood there. What runs already runs on."""
    with space.sessions.begin() as session:
        if if_match is not None:
            _hold(session, scope, key, if_match)
        return _told(limits.put(session, scope, key, new.most))


@router.delete("/{scope}/{key:path}", response_model=Told)
def delete_limit(space: Space, scope: LimitScope, key: Key, if_match: IfMatch = None) -> JSONResponse:
    """Take a limit away."""
    with space.sessions.begin() as session:
        if if_match is not None:
            _hold(session, scope, key, if_match)
        return _told(limits.remove(session, scope, key))


def _hold(session: Session, scope: str, key: str, if_match: str) -> None:
    there = limits.find(session, scope, key, hold=True)
    what = f"the limit {scope} {key}"
    if there is None:
        raise PreconditionFailed(what, "none")
    held(what, etag_of(there.to_json()), if_match)


def _told(limit: Limit) -> JSONResponse:
    return answer(limit.to_json(), etag=etag_of(limit.to_json()))
