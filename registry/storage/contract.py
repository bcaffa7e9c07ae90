"""What a blob store must do. Blobs are known by the SHA-256 of their bytes, so a store never overwrites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol, Self


@dataclass(frozen=True, slots=True)
class Leftover:
    """The beginning of a blob: no reader sees it. since: when the last of it arrived."""

    name: str
    size_bytes: int
    since: datetime


class BlobStore(Protocol):
    """Bytes by digest (64 hexadecimal digits). What put returns is durable: a row may be written after it.

    A put that fails leaves nothing that anyone could read. Putting the same bytes again changes nothing.
    Raises BlobMissing, BlobDamaged, StorageFull and StorageReadOnly.
    """

    scheme: ClassVar[str]

    @classmethod
    def from_url(cls, url: str) -> Self:
        """The store at this address, made if it is not there yet."""
        ...

    def put_file(self, path: Path) -> str:
        """Keep a file's bytes; their digest."""
        ...

    def put_bytes(self, content: bytes) -> str:
        """Keep these bytes; their digest."""
        ...

    def path(self, digest: str) -> Path:
        """A local file that holds the blob, to read and not to write."""
        ...

    def open(self, digest: str) -> BinaryIO:
        """The blob as a stream to read."""
        ...

    def exists(self, digest: str) -> bool:
        """Whether the store has the blob (its bytes are not read)."""
        ...

    def size_bytes(self, digest: str) -> int:
        """The blob's length."""
        ...

    def verify(self, digest: str) -> None:
        """Read the blob and compare; BlobMissing or BlobDamaged."""
        ...

    def digests(self) -> Iterator[str]:
        """Every blob that the store has."""
        ...

    def arrived_at(self, digest: str) -> datetime:
        """When the blob was put last, whether or not it was there before."""
        ...

    def remove(self, digest: str) -> None:
        """Take the blob away; nothing where it is not there. Only garbage collection asks for this."""
        ...

    def leftovers(self) -> Iterator[Leftover]:
        """What puts that never ended left behind, or have not finished yet."""
        ...

    def remove_leftover(self, leftover: Leftover) -> None:
        """Take it away; nothing where it is not there."""
        ...
