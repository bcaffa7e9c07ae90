"""Archives: one tar of a manifest, a record and blobs, that verifies itself.

    manifest.json        what is here: the record's SHA-256, every blob's and its size; its own digest
    record.json          nodes, edges and rows, as selection.py writes them
    blobs/<sha-256>      bytes, in the order of their digests

Read is exactly this: plain files of these names, in this order, of these sizes, and nothing behind them.
There is no compression, no link and no extended header to be fooled by, and no name becomes a path.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from affinery import tensor_files
from registry.digests import canonical, digest_of, is_digest
from registry.errors import ArchiveInvalid, BlobDamaged
from registry.storage.contract import BlobStore

FORMAT = "affinery-archive-1"
_BLOCK_BYTES = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
_MANIFEST_LIMIT_BYTES = 64 << 20
_RECORD_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that was found whole: its digest, its record, and its blobs' sizes by digest."""

    path: Path
    digest: str
    record: dict[str, Any]
    blobs: Mapping[str, int]


# --- writing ---------------------------------------------------------------------------------------


def write(
    path: Path,
    record: dict[str, Any],
    blobs: Mapping[str, int],
    store: BlobStore,
    on_blob: Callable[[int, int], None] = lambda *_: None,
) -> str:
    """Writes an archive, whole or not at all. → its digest. Raises BlobMissing and BlobDamaged."""
    text = canonical(record)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "record": {"sha256": hashlib.sha256(text).hexdigest(), "size_bytes": len(text)},
        "blobs": dict(sorted(blobs.items())),
    }
    manifest["digest"] = digest_of(manifest)
    with tensor_files.written_whole(path) as part, tarfile.open(part, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in (("manifest.json", canonical(manifest)), ("record.json", text)):
            tar.addfile(_entry(name, len(content)), io.BytesIO(content))
        for done, (digest, size_bytes) in enumerate(sorted(blobs.items()), start=1):
            with store.open(digest) as source:
                hashed = _Hashed(source)
                tar.addfile(_entry(f"blobs/{digest}", size_bytes), hashed)  # type: ignore[arg-type]
            if hashed.found.hexdigest() != digest:
                raise BlobDamaged(digest, hashed.found.hexdigest(), "the store")
            on_blob(done, len(blobs))
    return str(manifest["digest"])


def _entry(name: str, size_bytes: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size_bytes, 0o644
    return entry


class _Hashed:
    """A stream that is hashed while it is read."""

    def __init__(self, source: IO[bytes]) -> None:
        self.found = hashlib.sha256()
        self._source = source

    def read(self, size: int) -> bytes:
        """The next bytes."""
        chunk = self._source.read(size)
        self.found.update(chunk)
        return chunk


# --- reading ---------------------------------------------------------------------------------------


def read(path: Path, on_blob: Callable[[int, int], None] = lambda *_: None) -> Archive:
    """Reads every byte of an archive and finds it whole, or raises ArchiveInvalid. Nothing is written."""
    with _speaking(path), path.open("rb") as file:
        manifest = _manifest(file)
        record = tensor_files.read_json(_small(file, "record.json", _RECORD_LIMIT_BYTES, manifest["record"]))
        if not isinstance(record, dict):
            raise ValueError("its record is no JSON object")
        blobs: dict[str, int] = manifest["blobs"]
        for done, (digest, size_bytes) in enumerate(sorted(blobs.items()), start=1):
            found = hashlib.sha256()
            for chunk in _content(file, f"blobs/{digest}", size_bytes):
                found.update(chunk)
            if found.hexdigest() != digest:
                raise ValueError(f"blob {digest[:12]} was changed")
            on_blob(done, len(blobs))
        _end(file)
    return Archive(path, manifest["digest"], record, blobs)


def blob_files(archive: Archive, wanted: set[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    """Each wanted blob as a file that is there until the next is asked for. Raises ArchiveInvalid."""
    with _speaking(archive.path), archive.path.open("rb") as file:
        _manifest(file)
        for _ in _content(file, "record.json", None):
            pass
        for digest, size_bytes in sorted(archive.blobs.items()):
            if digest not in wanted:
                file.seek(_member(file, f"blobs/{digest}", size_bytes)[1], io.SEEK_CUR)
                continue
            target, found = scratch / digest, hashlib.sha256()
            with target.open("wb") as sink:
                for chunk in _content(file, f"blobs/{digest}", size_bytes):
                    found.update(chunk)
                    sink.write(chunk)
            if found.hexdigest() != digest:
                raise ValueError(f"blob {digest[:12]} was changed while it was read")
            yield digest, target
            target.unlink()


@contextmanager
def _speaking(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, tarfile.TarError, EOFError) as error:
        raise ArchiveInvalid(str(path), str(error) or type(error).__name__) from error


def _manifest(file: IO[bytes]) -> dict[str, Any]:
    manifest = tensor_files.read_json(_small(file, "manifest.json", _MANIFEST_LIMIT_BYTES))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"its manifest is not of the format {FORMAT}")
    if manifest.keys() != {"format", "record", "blobs", "digest"}:
        raise ValueError("its manifest holds other things than those of its format")
    said = manifest["digest"]
    if said != digest_of({key: value for key, value in manifest.items() if key != "digest"}):
        raise ValueError("its manifest was changed")
    blobs = manifest["blobs"]
    sound = isinstance(blobs, dict) and all(
        is_digest(digest) and type(size) is int and size >= 0 for digest, size in blobs.items()
    )
    if not sound:
        raise ValueError("its manifest names blobs that are none")
    return manifest


def _small(file: IO[bytes], name: str, limit_bytes: int, wanted: Mapping[str, Any] | None = None) -> bytes:
    content = b"".join(_content(file, name, None, limit_bytes))
    if wanted is not None and hashlib.sha256(content).hexdigest() != wanted["sha256"]:
        raise ValueError(f"{name} was changed")
    return content


def _content(
    file: IO[bytes], name: str, size_bytes: int | None, limit_bytes: int | None = None
) -> Iterator[bytes]:
    left, padded = _member(file, name, size_bytes)
    if limit_bytes is not None and left > limit_bytes:
        raise ValueError(f"{name} is larger than {limit_bytes:,} bytes")
    padding = padded - left
    while left:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise ValueError(f"it is cut off in {name}")
        left -= len(chunk)
        yield chunk
    if file.read(padding) != bytes(padding):
        raise ValueError(f"it is cut off, or was changed, behind {name}")


def _member(file: IO[bytes], name: str, size_bytes: int | None) -> tuple[int, int]:
    """Reads one header. → the size of the member, and with its padding"""
    header = file.read(_BLOCK_BYTES)
    if len(header) < _BLOCK_BYTES:
        raise ValueError(f"it is cut off before {name}")
    entry = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    if entry.name != name or entry.type != tarfile.REGTYPE or entry.linkname:
        raise ValueError(f"it holds {entry.name[:80]!r} where the plain file {name} should be")
    if entry.size < 0 or size_bytes not in (None, entry.size):
        raise ValueError(f"{name} has {entry.size:,} bytes, and its manifest says {size_bytes:,}")
    return entry.size, -(-entry.size // _BLOCK_BYTES) * _BLOCK_BYTES


def _end(file: IO[bytes]) -> None:
    """Behind the last member are zeros, as many as tar writes."""
    rest = file.read(tarfile.RECORDSIZE + 2 * _BLOCK_BYTES + 1)
    if len(rest) > tarfile.RECORDSIZE + 2 * _BLOCK_BYTES or rest.strip(b"\0"):
        raise ValueError("there is more behind its last blob")
