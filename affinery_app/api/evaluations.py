"""/v1/evaluations: what was measured of adapters. Figures are set side by side under one protocol only."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from affinery_app.api.calls import Space, answer, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Word, pages, shape
from registry import comparison, evaluations
from registry.records import EvaluationRecord

router = nouns("/v1/evaluations", "evaluations")
Evaluation = shape(EvaluationRecord)


class Pair(BaseModel):
    """What was measured of both."""

    left: float
    right: float


class Comparison(BaseModel):
    """Two adapters under one protocol; figures: those that both have."""

    left: str
    right: str
    protocol_digest: str
    protocol: dict[str, Any]
    figures: dict[str, Pair]


@router.get("", response_model=pages(Evaluation))
def list_evaluations(
    space: Space, adapter: Annotated[Word, Query(description="Of this adapter; of a task, its latest.")]
) -> JSONResponse:
    """The evaluations of an adapter, oldest first."""
    with space.sessions.read() as session:
        return paged(evaluations.list_for(session, adapter), None)


@router.get("/compare", response_model=Comparison)
def compare_evaluations(
    space: Space,
    left: Annotated[Word, Query(description="An adapter.")],
    right: Annotated[Word, Query(description="Another, of any task or kind.")],
    protocol: Annotated[Word | None, Query(description="The first digits of a protocol's digest.")] = None,
) -> JSONResponse:
    """The figures of two adapters under one protocol: the newest that both have, where none is named."""
    with space.sessions.read() as session:
        return answer(comparison.compare(session, left, right, protocol).to_json())
