"""/v1/uploads: files that come in parts, each where the one before it ended; broken off, they go on later."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import HTTPException, Query, Request, Response
from fastapi import Path as Place
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from affinery_app.api.bodies import OF_BYTES
from affinery_app.api.calls import Posting, Space, answer
from affinery_app.api.errors import NoRoom, UploadDiffers, UploadMoved, UploadOverlong, UploadUnfinished
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Sent
from affinery_app.wiring import Workspace
from registry.errors import NotFound

router = nouns("/v1/uploads", "uploads")
UploadId = Annotated[str, Place(pattern="^[0-9a-f]{32}$", description="As it was given.")]
KEPT_SECONDS = 24 * 3600
MOST = 100
SPARE_BYTES = 1 << 30  # what stays free on the disk
_AT_ONCE = 1 << 20


class NewUpload(Sent):
    """What is going to come. size_bytes: held to, and that there is room is seen at once; 0: not known."""

    size_bytes: int = Field(default=0, ge=0, lt=2**62)


class Part(BaseModel):
    """An upload, and how much of it is there: the next part begins at `offset`. Kept for a day."""

    upload: str
    offset: int


@router.post("", status_code=201, response_model=Part)
def create_upload(space: Space, new: NewUpload, posting: Posting) -> JSONResponse:
    """Begin an upload. What was not sent to its end within a day is forgotten."""
    folder = _folder(space)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)

    def begin(_: Session) -> dict[str, Any]:
        if len(list(folder.iterdir())) >= MOST:
            raise NoRoom(new.size_bytes, f"{MOST} uploads are under way; delete one, or wait for a day")
        _check_room(folder, new.size_bytes)
        upload = secrets.token_hex(16)
        (folder / f"{upload}-{new.size_bytes}").touch(exist_ok=False)
        return {"upload": upload, "offset": 0}

    return posting.do(space, new.model_dump(), "/v1/uploads/{upload}", begin)


@router.get("/{upload}", response_model=Part)
def get_upload(space: Space, upload: UploadId) -> JSONResponse:
    """How much of an upload is there."""
    path = path_of(space, upload)
    with _there(upload):
        return answer({"upload": upload, "offset": path.stat().st_size})


@router.put("/{upload}", response_model=Part, openapi_extra=OF_BYTES)
async def put_part(
    request: Request,
    space: Space,
    upload: UploadId,
    offset: Annotated[int, Query(ge=0, lt=2**62, description="Where this part begins: what is there.")],
) -> JSONResponse:
    """Send a part as it is. What came of one that broke off is kept: ask for the offset, and go on there."""
    path = await run_in_threadpool(path_of, space, upload)
    with _alone(path, upload) as file:
        size = file.seek(0, os.SEEK_END)
        if size != offset:
            raise UploadMoved(upload, size, offset)
        announced = _announced(path)
        said = request.headers.get("content-length", "")
        if said.isascii() and said.isdigit():
            _check_room(path.parent, int(said))
        waiting: list[bytes] = []

        def keep() -> None:
            if announced and file.tell() + sum(map(len, waiting)) > announced:
                file.truncate(offset)
                raise UploadOverlong(upload, announced, offset)
            write(file, waiting)
            waiting.clear()

        try:
            async for chunk in request.stream():
                waiting.append(chunk)
                if sum(map(len, waiting)) >= _AT_ONCE:
                    await run_in_threadpool(keep)
        except ClientDisconnect:
            await run_in_threadpool(keep)
            raise
        await run_in_threadpool(keep)
        if os.fstat(file.fileno()).st_nlink == 0:  # somebody had it forgotten, or used, meanwhile
            raise NotFound("upload", upload, [])
        return answer({"upload": upload, "offset": file.tell()})


@router.delete("/{upload}", status_code=204, response_class=Response)
def delete_upload(space: Space, upload: UploadId) -> Response:
    """Forget an upload."""
    path_of(space, upload).unlink(missing_ok=True)
    return Response(status_code=204)


def path_of(space: Workspace, upload: str) -> Path:
    """Where an upload's bytes lie. Raises NotFound."""
    for path in _folder(space).glob(f"{upload}-*"):
        return path
    raise NotFound("upload", upload, [])


def check_whole(path: Path, sha256: str) -> None:
    """Raises UploadUnfinished or UploadDiffers where these are not the bytes that were announced."""
    upload, announced = path.name.partition("-")[0], _announced(path)
    with _there(upload):
        size = path.stat().st_size
        if size < announced:
            raise UploadUnfinished(upload, size, announced)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UploadDiffers(sha256, found)


@contextmanager
def _there(upload: str) -> Iterator[None]:
    """Raises NotFound where somebody has an upload forgotten, or uses it, at this moment."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("upload", upload, []) from error


@contextmanager
def _alone(path: Path, upload: str) -> Iterator[BinaryIO]:
    """The file, for one who sends. Raises NotFound where it is gone since it was found."""
    with _there(upload):
        opened = path.open("r+b")
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HTTPException(409, f"Another part of the upload {upload} is coming in just now.") from error
        yield file


def write(file: BinaryIO, chunks: list[bytes]) -> None:
    """Raises NoRoom where they would not leave the disk what stays free on it."""
    size_bytes = sum(map(len, chunks))
    _check_room(Path(file.name).parent, size_bytes)
    try:
        file.writelines(chunks)
        file.flush()
    except OSError as error:
        raise NoRoom(size_bytes, error.strerror or str(error)) from error


def _announced(path: Path) -> int:
    """How many bytes an upload is to have, which its file's name says; 0 where nobody said."""
    return int(path.name.partition("-")[2])


def _check_room(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if size_bytes + SPARE_BYTES > free:
        raise NoRoom(size_bytes, f"{free:,} bytes are free where uploads lie")


def _folder(space: Workspace) -> Path:
    return space.folder / "cache" / "uploads"


def _sweep(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()
