"""/v1/blobs: bytes on their way into the store, before the record that needs them."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import Path as Place
from fastapi import Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from affinery_app.api.bodies import OF_BYTES
from affinery_app.api.calls import Once, Posting, Space, answer
from affinery_app.api.errors import UploadDiffers
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Digest
from affinery_app.api.uploads import write
from affinery_app.wiring import Workspace
from registry import blobs

router = nouns("/v1/blobs", "blobs")
OWNER = "the HTTP API"
_AT_ONCE = 1 << 20


class Blob(BaseModel):
    """Bytes that are in the store."""

    digest: Digest
    size_bytes: int


class Upload(Blob):
    """Bytes that came, kept until expires_at unless a record needs them before."""

    upload: str
    expires_at: str


@router.post("", status_code=201, response_model=Upload, openapi_extra=OF_BYTES)
async def create_blob(
    request: Request,
    space: Space,
    posting: Posting,
    digest: Annotated[Digest, Query(description="The SHA-256 of the bytes, in hexadecimal.")],
) -> JSONResponse:
    """Send a file. It is kept for an hour, and for good once something is recorded that needs it."""
    folder = space.folder / "cache"
    await run_in_threadpool(folder.mkdir, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="upload-") as file:
        found = await _received(request, file.file)
        if found != digest:
            raise UploadDiffers(digest, found)
        return await run_in_threadpool(_keep, space, posting, digest, Path(file.name))


async def _received(request: Request, file: Any) -> str:
    """Write what comes as it comes; its digest."""
    found = hashlib.sha256()
    waiting: list[bytes] = []
    held = 0
    async for chunk in request.stream():
        found.update(chunk)
        waiting.append(chunk)
        held += len(chunk)
        if held >= _AT_ONCE:
            await run_in_threadpool(write, file, waiting)
            waiting, held = [], 0
    await run_in_threadpool(write, file, waiting)
    return found.hexdigest()


def _keep(space: Workspace, posting: Once, digest: str, path: Path) -> JSONResponse:
    size_bytes = path.stat().st_size
    with space.sessions.begin() as session:
        lease = blobs.begin_upload(session, OWNER)
    try:
        space.store.put_file(path)

        def write(session: Session) -> dict[str, Any]:
            blobs.commit(session, digest, size_bytes)
            expires_at = lease.expires_at.isoformat()
            return {"digest": digest, "size_bytes": size_bytes, "upload": lease.id, "expires_at": expires_at}

        done = posting.do(space, digest, "/v1/blobs/{digest}", write)
    except BaseException:
        _release(space, lease.id)
        raise
    if "Idempotency-Replayed" in done.headers:
        _release(space, lease.id)  # the answer speaks of the lease of the first time
    return done


def _release(space: Workspace, lease: str) -> None:
    with space.sessions.begin() as session:
        blobs.end_upload(session, lease)


@router.get("/{digest}", response_model=Blob)
def get_blob(
    space: Space, digest: Annotated[Digest, Place(description="Their SHA-256, in hexadecimal.")]
) -> JSONResponse:
    """How long these bytes are, where the registry knows them."""
    with space.sessions.read() as session:
        return answer({"digest": digest, "size_bytes": blobs.size_bytes(session, digest)})
