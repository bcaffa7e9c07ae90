"""/v1/diff: what differs between two adapters, or two compositions; the service reads their tensors."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from affinery_app.api.calls import Space, answer
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Word, shape
from orchestration.differences import differences
from orchestration.tensor_differences import TensorDifference

router = nouns("/v1/diff", "diff")
Tensor = shape(TensorDifference)


class Change(BaseModel):
    """One thing that differs. A side that has no such thing is left out."""

    path: str
    left: Any = None
    right: Any = None


class Difference(BaseModel):
    """What differs, by section. members: of compositions; tensors: of adapters, where they are wanted."""

    kind: str
    left: str
    right: str
    config: list[Change]
    members: list[Change] = []
    data: list[Change]
    metrics: list[Change]
    evaluations: list[Change]
    provenance: list[Change]
    tensors: list[Tensor] | None  # type: ignore[valid-type]


@router.get("", response_model=Difference)
def get_diff(
    space: Space,
    left: Annotated[Word, Query(description="An adapter version or a composition.")],
    right: Annotated[Word, Query(description="Another of the same kind.")],
    tensors: Annotated[bool, Query(description="Read both adapters and compare their tensors.")] = True,
) -> JSONResponse:
    """What differs between two adapters or compositions: config, data, metrics, provenance, tensors."""
    return answer(differences(space.sessions, space.store, left, right, tensors=tensors))
