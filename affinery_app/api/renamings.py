"""/v1/renamings: names change, identity does not."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.orm import Session

from affinery_app.api.calls import Posting, Ref, Space, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Sent, Word, pages, shape
from registry import renaming
from registry.records import RenamingRecord

router = nouns("/v1/renamings", "renamings")
Renaming = shape(RenamingRecord)


class NewName(Sent):
    """What is to be called otherwise, and how."""

    of: Word = Field(description="A backbone, dataset, task or composition, without a version: task:digits.")
    name: Word = Field(description="What it is called from now on, in all its versions.")


@router.get("/{ref}", response_model=pages(Renaming))
def list_renamings(space: Space, ref: Ref) -> JSONResponse:
    """How what is called so (task:digits) came by its name, the first change first."""
    with space.sessions.read() as session:
        kind, name = renaming.bearer(session, ref)
        return paged(renaming.history(session, kind, name), None)


@router.post("", status_code=201, response_model=Renaming)
def rename(space: Space, new: NewName, posting: Posting) -> JSONResponse:
    """Change a name, of all versions together; digests and lineage stay. The old name stays its own."""

    def write(session: Session) -> dict[str, Any]:
        return renaming.rename(session, new.of, new.name).to_json()

    return posting.do(space, new.model_dump(), "/v1/renamings/{ref}", write)
