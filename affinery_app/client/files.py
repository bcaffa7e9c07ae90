"""Files on their way: sent in parts, and fetched; both go on where they broke off."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from affinery.errors import PlaceInvalid, words_of
from affinery_app.client.errors import DownloadUnsafe, ServiceRefused, ServiceUnreachable
from affinery_app.client.transport import PIECE_BYTES

if TYPE_CHECKING:
    from affinery_app.client.client import Client

OnSent = Callable[[int, int], None]
PART_BYTES = 64 << 20
TRIES = 5
MOVED = "urn:affinery:upload-moved"


def upload(client: Client, file: Path, on_sent: OnSent | None = None) -> dict[str, str]:
    """Send a file. → the upload and the SHA-256 of its bytes, as what is made of it wants them

    on_sent: is told how many bytes were sent, and of how many.
    Raises PlaceInvalid for one that cannot be read, before anything is asked of the service.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise PlaceInvalid("the file", str(file), f"cannot be read: {words_of(error)}", "") from error
    name: str = client.ask("POST", "/v1/uploads", {"size_bytes": size})["upload"]
    place, offset, failures = f"/v1/uploads/{name}", 0, 0
    while offset < size:
        length = min(PART_BYTES, size - offset)
        head = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        pieces = _told(_part(file, offset, length), offset, size, on_sent)
        try:
            sent = client.send("PUT", f"{place}?offset={offset}", head, pieces, tries=1)
            offset = sent.json()["offset"]
        except (ServiceUnreachable, ServiceRefused) as error:
            failures += 1
            if failures >= TRIES or (isinstance(error, ServiceRefused) and error.type != MOVED):
                raise
            offset = client.ask("GET", place)["offset"]
    return {"upload": name, "sha256": digest}


@contextmanager
def as_file(source: Path) -> Iterator[Path]:
    """The source itself, or an archive of a folder, which is gone again after the `with`.

    Raises DatasetInvalid for a folder that no workspace would take either, by its links and the like, and
    PlaceInvalid for a file that cannot be read.
    """
    if not source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="affinery-") as folder:
        packed = Path(folder) / "folder.zip"
        _pack(source, packed)
        yield packed


def _pack(source: Path, packed: Path) -> None:
    from orchestration.datasets.folders import files

    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path in files(source):
            try:
                entry = zipfile.ZipInfo(path.relative_to(source).as_posix())
                entry.filename.encode()
                content = path.open("rb")
            except (OSError, UnicodeEncodeError) as error:
                told = "its name is not UTF-8" if isinstance(error, UnicodeError) else words_of(error)
                raise PlaceInvalid("the file", str(path), f"cannot be read: {told}", "") from error
            with content, archive.open(entry, "w", force_zip64=True) as sent:
                shutil.copyfileobj(content, sent, PIECE_BYTES)


def download(client: Client, place: str, to: Path) -> None:
    """Fetch into a file, which is there in whole or not at all."""
    part = to.with_name(to.name + ".part")
    part.unlink(missing_ok=True)
    etag, failures = "", 0
    while True:
        begun = part.stat().st_size if part.exists() else 0
        head = {"Range": f"bytes={begun}-", "If-Range": etag} if begun and etag else {}
        try:
            reply = client.send("GET", place, head)
            etag = reply.headers.get("etag", "")
            with part.open("ab" if reply.status == 206 else "wb") as file:
                for piece in reply.pieces:
                    file.write(piece)
            reply.close()
            break
        except ServiceUnreachable:
            failures += 1
            if failures >= TRIES:
                raise
    part.replace(to)


def unpack(archive: Path, to: Path) -> None:
    """A tar archive's one folder, as `to`. Nothing is written where a member leads elsewhere."""
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".affinery-") as folder:
        with tarfile.open(archive) as tar:
            try:
                tar.extractall(folder, filter="data")
            except tarfile.FilterError as error:
                raise DownloadUnsafe(archive.name, str(error)) from error
        (inner,) = Path(folder).iterdir()
        shutil.move(inner, to)


def _told(pieces: Iterator[bytes], sent: int, size: int, on_sent: OnSent | None) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        sent += len(piece)
        if on_sent is not None:
            on_sent(sent, size)


def _part(file: Path, offset: int, length: int) -> Iterator[bytes]:
    with file.open("rb") as content:
        content.seek(offset)
        while length > 0 and (piece := content.read(min(PIECE_BYTES, length))):
            length -= len(piece)
            yield piece
