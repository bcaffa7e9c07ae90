"""Blobs in memory, for tests and trials: gone when the process ends."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, ClassVar, Self

from registry.digests import checked_digest
from registry.errors import BlobDamaged, BlobMissing
from registry.storage.contract import Leftover


class MemoryStore:
    """See the contract. Stores of one name within a process are one store."""

    scheme: ClassVar[str] = "memory"
    _named: ClassVar[dict[str, MemoryStore]] = {}

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._blobs: dict[str, bytes] = {}
        self._arrived: dict[str, datetime] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """memory://name."""
        store = cls._named.setdefault(url.partition("://")[2], cls(url.partition("://")[2]))
        assert isinstance(store, cls)
        return store

    def put_file(self, path: Path) -> str:
        return self.put_bytes(path.read_bytes())

    def put_bytes(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self._blobs[digest] = bytes(content)
        self._arrived[digest] = datetime.now(UTC)
        return digest

    def path(self, digest: str) -> Path:
        content = self._content(digest)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="affinery-blobs-")
        place = Path(self._folder.name) / digest
        if not place.exists():
            place.write_bytes(content)
        return place

    def open(self, digest: str) -> BinaryIO:
        return io.BytesIO(self._content(digest))

    def exists(self, digest: str) -> bool:
        return checked_digest("A blob", digest) in self._blobs

    def size_bytes(self, digest: str) -> int:
        return len(self._content(digest))

    def verify(self, digest: str) -> None:
        found = hashlib.sha256(self._content(digest)).hexdigest()
        if found != digest:
            raise BlobDamaged(digest, found, f"memory://{self.name}")

    def digests(self) -> Iterator[str]:
        yield from sorted(self._blobs)

    def arrived_at(self, digest: str) -> datetime:
        self._content(digest)
        return self._arrived[digest]

    def remove(self, digest: str) -> None:
        self._blobs.pop(checked_digest("A blob", digest), None)
        if self._folder is not None:
            (Path(self._folder.name) / digest).unlink(missing_ok=True)

    def leftovers(self) -> Iterator[Leftover]:
        return iter(())  # a put is one assignment

    def remove_leftover(self, leftover: Leftover) -> None:
        pass

    def _content(self, digest: str) -> bytes:
        if not self.exists(digest):
            raise BlobMissing(digest, f"memory://{self.name}")
        return self._blobs[digest]


STORE = MemoryStore
