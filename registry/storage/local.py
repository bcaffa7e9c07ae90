"""Blobs in a local folder: aa/bbcc…, written beside their place, made durable, then renamed into it."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol, Self
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from affinery.tensor_files import make_durable
from registry.digests import checked_digest
from registry.errors import (
    BlobDamaged,
    BlobMissing,
    StorageBroken,
    StorageError,
    StorageFull,
    StorageReadOnly,
)
from registry.storage.contract import Leftover

_CHUNK_BYTES = 1 << 20
_INCOMING = ".incoming"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_NAME = re.compile(r"[0-9a-f]{62}")


class Source(Protocol):
    """Whatever gives bytes when asked for some."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most so many; none at the end."""
        ...


class LocalStore:
    """See the contract. Incoming bytes lie in .incoming/ until they are whole."""

    scheme: ClassVar[str] = "file"

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def from_url(cls, url: str) -> Self:
        """file:///folder, or a plain path."""
        return cls(Path(unquote(urlsplit(url).path) if "://" in url else url))

    def put_file(self, path: Path) -> str:
        with path.open("rb") as source:
            return self.put_stream(source, path.stat().st_size)

    def put_bytes(self, content: bytes) -> str:
        return self.put_stream(io.BytesIO(content), len(content))

    def put_stream(self, source: Source, size_bytes: int) -> str:
        """Keep what a stream gives; size_bytes is only said where there is no room for it."""
        incoming = self.root / _INCOMING / uuid4().hex
        try:
            _make_folder(incoming.parent)
            try:
                digest = _write_durably(source, incoming)
                self._into_place(incoming, digest)
            finally:
                # Renamed away on success; on any failure what was written must not stay.
                with suppress(FileNotFoundError):
                    incoming.unlink()
        except OSError as error:
            raise self._explained(error, size_bytes) from error
        return digest

    def _into_place(self, incoming: Path, digest: str) -> None:
        place = self.path_of(digest)
        _make_folder(place.parent)
        # An equal blob may stand there already; if its bytes were damaged, this mends them.
        incoming.replace(place)
        make_durable(place.parent)

    def _explained(self, error: OSError, size_bytes: int) -> StorageError:
        if error.errno in _FULL:
            return StorageFull(str(self.root), size_bytes)
        if error.errno in _READ_ONLY:
            return StorageReadOnly(str(self.root))
        return StorageBroken(str(self.root), str(error))

    def path_of(self, digest: str) -> Path:
        """Where a blob lies, or would lie."""
        checked_digest("A blob", digest)
        return self.root / digest[:2] / digest[2:]

    def path(self, digest: str) -> Path:
        place = self.path_of(digest)
        if not place.is_file():
            raise BlobMissing(digest, str(self.root))
        return place

    def open(self, digest: str) -> BinaryIO:
        return self.path(digest).open("rb")

    def exists(self, digest: str) -> bool:
        return self.path_of(digest).is_file()

    def size_bytes(self, digest: str) -> int:
        return self.path(digest).stat().st_size

    def verify(self, digest: str) -> None:
        with self.path(digest).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != digest:
            raise BlobDamaged(digest, found, str(self.root))

    def digests(self) -> Iterator[str]:
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            for file in sorted(folder.iterdir()):
                if _NAME.fullmatch(file.name):
                    yield folder.name + file.name

    def arrived_at(self, digest: str) -> datetime:
        return _when(self.path(digest))

    def remove(self, digest: str) -> None:
        self.path_of(digest).unlink(missing_ok=True)

    def leftovers(self) -> Iterator[Leftover]:
        for file in sorted((self.root / _INCOMING).glob("*")):
            with suppress(FileNotFoundError):  # it was whole meanwhile, and is in its place
                yield Leftover(file.name, file.stat().st_size, _when(file))

    def remove_leftover(self, leftover: Leftover) -> None:
        (self.root / _INCOMING / Path(leftover.name).name).unlink(missing_ok=True)


def _when(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _write_durably(source: Source, target: Path) -> str:
    digest = hashlib.sha256()
    # Blobs are never edited: nobody gets write permission.
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    with os.fdopen(descriptor, "wb") as sink:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            sink.write(chunk)
        sink.flush()
        os.fsync(sink.fileno())
    return digest.hexdigest()


def _make_folder(folder: Path) -> None:
    """Make a folder and the way to it, each entry durable in its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    make_durable(folder.parent)


STORE = LocalStore
