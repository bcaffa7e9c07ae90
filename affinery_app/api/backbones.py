"""/v1/backbones: frozen denoisers, version by version."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import Field

from affinery.errors import BackboneFileInvalid
from affinery_app.api import uploads
from affinery_app.api.calls import After, Limit, Posting, Ref, Space, answer, page
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Digest, Sent, Word, pages, shape
from registry import backbones
from registry.records import BackboneRecord

router = nouns("/v1/backbones", "backbones")
Backbone = shape(BackboneRecord)


@router.get("", response_model=pages(Backbone))
def list_backbones(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every backbone version, oldest first."""
    return page(space, "backbone", backbones.by_id, after, limit)


class NewBackbone(Sent):
    """An upload that is a backbone file, or an official DiT checkpoint as safetensors.

    parent: what it was made from; the version before it, where there is one and none is named.
    """

    name: Word
    upload: str = Field(pattern="^[0-9a-f]{32}$")
    sha256: Digest
    parent: Word | None = None


@router.post("", status_code=201, response_model=Backbone)
def create_backbone(space: Space, new: NewBackbone, posting: Posting) -> JSONResponse:
    """Check a backbone, keep its bytes, register it as its name's next version. Nothing of it is run."""
    from orchestration.additions import add_backbone

    asked = new.model_dump()
    if (again := posting.answered(space, asked, "/v1/backbones/{ref}")) is not None:
        return again
    path = uploads.path_of(space, new.upload)
    uploads.check_whole(path, new.sha256)
    try:
        record, _ = add_backbone(space.sessions, space.store, path, new.name, parent=new.parent)
    except BackboneFileInvalid as error:  # who sent it knows nothing of where it lies here
        raise error.called(str(path), "the upload") from error
    made: dict[str, Any] = record.to_json()
    done = posting.do(space, asked, "/v1/backbones/{ref}", lambda _: made)
    path.unlink(missing_ok=True)
    return done


@router.get("/{ref}", response_model=Backbone)
def get_backbone(space: Space, ref: Ref) -> JSONResponse:
    """One version: the latest of a name, or the one that is named."""
    with space.sessions.read() as session:
        return answer(backbones.get(session, ref).to_json())
