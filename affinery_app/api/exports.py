"""/v1/exports: bundles that were written."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from affinery_app.api.calls import After, Limit, Ref, Space, answer, page
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import pages, shape
from registry import exports
from registry.records import ExportRecord

router = nouns("/v1/exports", "exports")
Export = shape(ExportRecord)


@router.get("", response_model=pages(Export))
def list_exports(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every export, oldest first."""
    return page(space, "export", exports.by_id, after, limit)


@router.get("/{ref}", response_model=Export)
def get_export(space: Space, ref: Ref) -> JSONResponse:
    """One export: the latest of a composition's name, or the one that is named."""
    with space.sessions.read() as session:
        return answer(exports.get(session, ref).to_json())
