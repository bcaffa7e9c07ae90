"""/v1/exports: what was written of compositions, and its files. Downloads go on where they broke off."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import HTTPException, Request
from fastapi import Path as Place
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders

from affinery_app.api.bodies import BYTES
from affinery_app.api.calls import After, Limit, Ref, Space, attached, page, paged
from affinery_app.api.calls import answer as answered
from affinery_app.api.errors import FileGone
from affinery_app.api.etags import is_had
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import pages, shape
from affinery_app.wiring import Workspace
from registry import exports
from registry.records import ExportRecord

router = nouns("/v1/exports", "exports")
Export = shape(ExportRecord)
KEPT_SECONDS = 24 * 3600
_RANGE = re.compile("([0-9]{1,1000})-([0-9]{1,1000})?|-([0-9]{1,1000})")
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}


class ExportFile(BaseModel):
    """A file of an export, by its path in it."""

    path: str
    size_bytes: int


@router.get("", response_model=pages(Export))
def list_exports(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every export, oldest first."""
    return page(space, "export", exports.by_id, after, limit)


@router.get("/{ref}", response_model=Export)
def get_export(space: Space, ref: Ref) -> JSONResponse:
    """One export: the latest of a composition's name, or the one that is named."""
    with space.sessions.read() as session:
        return answered(exports.get(session, ref).to_json())


@router.get("/{ref}/files", response_model=pages(ExportFile))
def list_files(space: Space, ref: Ref) -> JSONResponse:
    """The files of an export, by name."""
    found = _files(_there(_record(space, ref)))
    return paged([{"path": name, "size_bytes": path.stat().st_size} for name, path in found.items()], None)


@router.head("/{ref}/files/{path:path}", include_in_schema=False)
@router.get("/{ref}/files/{path:path}", response_class=FileResponse, responses=_FILE)
def get_file(
    request: Request,
    space: Space,
    ref: Ref,
    path: Annotated[str, Place(description="Its path in the export.")],
) -> Response:
    """A file of an export. Range and If-Range (with its ETag) go on with what is missing."""
    record = _record(space, ref)
    found = _files(_there(record)).get(path)
    if found is None:
        raise FileGone(record.ref, f"The file {path[:200]!r}")
    return _sent(request, found, found.name)


@router.head("/{ref}/download", include_in_schema=False)
@router.get("/{ref}/download", response_class=FileResponse, responses=_FILE)
def download_export(request: Request, space: Space, ref: Ref) -> Response:
    """The whole export: a file as it is, a folder as a tar archive. Range and If-Range as with its files."""
    record = _record(space, ref)
    place = _there(record)
    name = record.ref.replace("@", "-")
    if place.is_file():
        return _sent(request, place, f"{name}{place.suffix}")
    return _sent(request, _packed(space, record, place), f"{name}.tar")


def _record(space: Workspace, ref: str) -> ExportRecord:
    with space.sessions.read() as session:
        return exports.get(session, ref)


def _there(record: ExportRecord) -> Path:
    place = Path(record.path)
    if not place.exists():
        raise FileGone(record.ref, "What was written")
    return place


def _files(place: Path) -> dict[str, Path]:
    """By their path in the export. Links lead elsewhere, and are none of it."""
    if place.is_file():
        return {place.name: place}
    return {
        each.relative_to(place).as_posix(): each
        for each in sorted(place.rglob("*"))
        if each.is_file() and not any(_linked(place, each))
    }


def _linked(place: Path, path: Path) -> Iterator[bool]:
    """Of a path below a place, and of each folder between them: whether it is a link."""
    while path != place:
        yield path.is_symlink()
        path = path.parent


def _packed(space: Workspace, record: ExportRecord, place: Path) -> Path:
    """The archive of a folder, alike whenever it is made; kept for a day, so that a download can go on."""
    folder = space.folder / "cache" / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        with suppress(OSError):
            if time.time() - old.stat().st_atime > KEPT_SECONDS:
                old.unlink()
    packed = folder / f"{record.node_id}-{record.digest}.tar"
    if not packed.exists():
        top = record.ref.replace("@", "-")
        descriptor, name = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
                for inside, path in _files(place).items():
                    entry = tarfile.TarInfo(f"{top}/{inside}")
                    entry.size, entry.mode = path.stat().st_size, 0o644
                    with path.open("rb") as content:
                        tar.addfile(entry, content)
            Path(name).rename(packed)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    os.utime(packed, (time.time(), 0))  # its age says nothing of what is in it: the ETag stays
    return packed


def _sent(request: Request, path: Path, name: str) -> Response:
    """A file, or the bytes of it that Range asks for. 304 to who has it, 416 where it has none of them."""
    whole = FileResponse(path, media_type=BYTES, headers=attached(name), stat_result=path.stat())
    if is_had(request.headers, whole.headers["etag"]):
        return Response(status_code=304, headers={"ETag": whole.headers["etag"]})
    asked = MutableHeaders(scope=request.scope)
    unchanged = asked.get("if-range") in (None, whole.headers["etag"], whole.headers["last-modified"])
    size = int(whole.headers["content-length"])
    spans = _spans(asked.get("range", ""), size) if unchanged else None
    if spans is None:
        del asked["range"]
    elif not spans:
        detail = (
            f"It has {size:,} bytes, and none where Range begins. What is there already may be all of it."
        )
        raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"})
    else:
        asked["range"] = "bytes=" + ",".join(f"{first}-{last}" for first, last in spans)
    return whole


def _spans(asked: str, size: int) -> list[tuple[int, int]] | None:
    """The first and last byte of each range that a file of this size has something of.

    None where what is asked is no range of bytes: that is to be ignored (RFC 9110, 14.2).
    """
    unit, _, listed = asked.partition("=")
    ranges = [_RANGE.fullmatch(each.strip(" \t")) for each in listed.split(",") if each.strip(" \t")]
    if unit.lower() != "bytes" or not ranges:
        return None
    spans = []
    for found in ranges:
        if found is None:
            return None
        first, last, suffix = (None if digits is None else int(digits) for digits in found.groups())
        if suffix is not None:
            first, last = max(size - suffix, 0) if suffix else size, None
        assert first is not None
        if last is not None and last < first:
            return None
        if first < size:
            spans.append((first, size - 1 if last is None else min(last, size - 1)))
    return spans
