"""Whether the stored bytes are those that the record speaks of: their digests, and what files say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affinery import tensor_files
from affinery.errors import words_of
from registry.digests import canonical
from registry.errors import BlobDamaged, BlobMissing, StorageError
from registry.findings import Finding
from registry.records import AdapterRecord, BackboneRecord
from registry.storage.contract import BlobStore

# As adapters/files.py and backbones/files.py of the core write them; to import those would import torch.
ADAPTER_KEY = "affinery.adapter"
BACKBONE_KEY = "affinery.backbone"
_PUT_BACK = "Put its bytes back into the store, from a backup or from another store that has them."
_OTHER_BYTES = "The bytes are whole, so the record is wrong: restore the registry's database from a backup."


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as the registry knows it, and who needs it."""

    digest: str
    size_bytes: int
    users: tuple[tuple[int, str, str], ...]  # node, its reference, what the blob is to it

    @property
    def where(self) -> str:
        """How a finding names it."""
        needed = ", ".join(f"{what} of {ref}" for _, ref, what in self.users) or "no published row needs it"
        return f"blob {self.digest[:12]} ({needed})"

    @property
    def nodes(self) -> tuple[int, ...]:
        """The nodes that need it."""
        return tuple(node for node, _, _ in self.users)


def altered(
    store: BlobStore, blobs: Iterable[StoredBlob], on_blob: Callable[[StoredBlob], None]
) -> Iterator[tuple[str, Finding]]:
    """Reads every blob. → the digest of each that is not what the registry knows, and the finding"""
    for blob in blobs:
        what = _fault(store, blob)
        if what is not None:
            yield blob.digest, Finding("blobs", blob.where, what, _PUT_BACK, blob.nodes)
        on_blob(blob)


def _fault(store: BlobStore, blob: StoredBlob) -> str | None:
    try:
        store.verify(blob.digest)
        size_bytes = store.size_bytes(blob.digest)
    except BlobMissing:
        return "its bytes are not in the store"
    except BlobDamaged as error:
        return f"its bytes were changed: they hash to {error.args[1][:12]}"
    except (StorageError, OSError) as error:
        return f"it cannot be read: {words_of(error)}"
    if size_bytes != blob.size_bytes:
        return f"it has {size_bytes:,} bytes, and the registry knows {blob.size_bytes:,}"
    return None


def backbone_file(store: BlobStore, record: BackboneRecord) -> Iterator[Finding]:
    """The file's spec is the row's, and its tensors have the fingerprint of the registration."""

    def found(what: str) -> Finding:
        return Finding("backbone files", f"backbone:{record.ref}", what, _OTHER_BYTES, (record.node_id,))

    path = store.path(record.blob_digest)
    try:
        spec, written = _said(path, BACKBONE_KEY)
        fingerprint = tensor_files.fingerprint(path, written)
    except ValueError as error:
        yield found(f"its file cannot be read: {error}")
        return
    if canonical(spec) != canonical(record.spec):
        yield found(f"its file's spec differs from its row in {_difference(spec, record.spec)}")
    if fingerprint != record.digest:
        yield found(f"its file has the fingerprint {fingerprint[:12]}, not {record.digest[:12]}")
    for name, value in (("num_classes", record.num_classes), ("null_index", record.null_index)):
        if name in spec and spec[name] != value:
            yield found(f"its file says {name} {spec[name]!r}, and its row {value}")


def adapter_file(
    store: BlobStore, record: AdapterRecord, backbone: BackboneRecord, names: Collection[str]
) -> Iterator[Finding]:
    """What the file says of itself is what its row says. names: all that its task ever had."""

    def found(what: str) -> Finding:
        return Finding("adapter files", f"adapter:{record.ref}", what, _OTHER_BYTES, (record.node_id,))

    try:
        said, _ = _said(store.path(record.blob_digest), ADAPTER_KEY)
    except ValueError as error:
        yield found(f"its file cannot be read: {error}")
        return
    if said.get("task") not in names:
        yield found(f"its file says task {said.get('task')!r}, and its row {record.task!r}")
    recorded = {
        "kind": record.kind,
        "config": record.config,
        "block": list(record.block),
        "backbone": backbone.digest,
        "null_index": backbone.null_index,
    }
    for name, value in recorded.items():
        if said.get(name) != value:
            yield found(f"its file says {name} {said.get(name)!r}, and its row {value!r}")


def _said(path: Path, key: str) -> tuple[dict[str, Any], str]:
    """What a file says of itself, read and as written. Raises ValueError."""
    metadata = tensor_files.read_header(path).metadata
    if key not in metadata:
        raise ValueError(f"its metadata has no {key!r} entry")
    said = tensor_files.read_json(metadata[key])
    if not isinstance(said, dict):
        raise ValueError(f"its {key!r} entry is no JSON object")
    return said, metadata[key]


def _difference(file: dict[str, Any], row: dict[str, Any]) -> str:
    names = sorted(name for name in file.keys() | row.keys() if file.get(name) != row.get(name))
    return ", ".join(repr(name) for name in names) or "the way its numbers are written"
