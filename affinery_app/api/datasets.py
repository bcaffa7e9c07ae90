"""/v1/datasets: what is learnt from, pinned by content."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from affinery_app.api.calls import After, Limit, Ref, Space, answer, page
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import pages, shape
from registry import datasets
from registry.records import DatasetRecord

router = nouns("/v1/datasets", "datasets")
Dataset = shape(DatasetRecord)


@router.get("", response_model=pages(Dataset))
def list_datasets(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every dataset version, oldest first."""
    return page(space, "dataset", datasets.by_id, after, limit)


@router.get("/{ref}", response_model=Dataset)
def get_dataset(space: Space, ref: Ref) -> JSONResponse:
    """One version: the latest of a name, or the one that is named."""
    with space.sessions.read() as session:
        return answer(datasets.get(session, ref).to_json())
