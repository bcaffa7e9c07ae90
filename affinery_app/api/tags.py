"""/v1/tags: keys and values on what people name."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body
from fastapi.responses import JSONResponse

from affinery_app.api.calls import IfMatch, Ref, Space, answer
from affinery_app.api.etags import etag_of, held
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import TagKey, TagValue
from registry import nodes, tags

router = nouns("/v1/tags", "tags")
Changes = dict[TagKey, TagValue | None]


@router.get("/{ref}", response_model=dict[str, str])
def get_tags(space: Space, ref: Ref) -> JSONResponse:
    """All tags of something."""
    with space.sessions.read() as session:
        found = tags.of(session, tags.subject(session, ref, "tag").node_id)
    return answer(found, etag=etag_of(found))


@router.patch("/{ref}", response_model=dict[str, str])
def patch_tags(
    space: Space, ref: Ref, changes: Annotated[Changes, Body(max_length=100)], if_match: IfMatch = None
) -> JSONResponse:
    """Set the tags that are given, take those away that are null (RFC 7396). If-Match where it matters."""
    away = [key for key, value in changes.items() if value is None]
    with space.sessions.begin() as session:
        node = tags.subject(session, ref, "tag")
        nodes.hold(session, node.node_id)
        there = tags.of(session, node.node_id)
        held(f"the tags of {node.full_ref}", etag_of(there), if_match)
        tags.put(session, node.full_ref, {key: value for key, value in changes.items() if value is not None})
        found = tags.remove(session, node.full_ref, [key for key in away if key in there])
    return answer(found, etag=etag_of(found))
