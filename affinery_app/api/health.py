"""/healthz: whether the registry answers and is of this schema. Open to all; it tells nothing else."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from affinery_app.api.calls import Space, answer
from affinery_app.api.rights import nouns
from registry.session import check_schema

router = nouns("", "health")


class Health(BaseModel):
    """Always "ok": otherwise there is a problem, 503."""

    status: str


@router.get("/healthz", response_model=Health)
def get_health(space: Space) -> JSONResponse:
    """ok, while the registry answers."""
    check_schema(space.sessions.engine)
    return answer({"status": "ok"})
