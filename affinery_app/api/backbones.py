"""/v1/backbones: frozen denoisers, version by version."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from affinery_app.api.calls import After, Limit, Ref, Space, answer, page
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import pages, shape
from registry import backbones
from registry.records import BackboneRecord

router = nouns("/v1/backbones", "backbones")
Backbone = shape(BackboneRecord)


@router.get("", response_model=pages(Backbone))
def list_backbones(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every backbone version, oldest first."""
    return page(space, "backbone", backbones.by_id, after, limit)


@router.get("/{ref}", response_model=Backbone)
def get_backbone(space: Space, ref: Ref) -> JSONResponse:
    """One version: the latest of a name, or the one that is named."""
    with space.sessions.read() as session:
        return answer(backbones.get(session, ref).to_json())
