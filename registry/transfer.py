"""A selection moves between registries: out into an archive, and in from one. In is one transaction."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from registry import adapters, archive, arrival, backbones, blobs, contents, renaming
from registry.errors import ArchiveInvalid
from registry.findings import Finding
from registry.selection import select_refs
from registry.session import Sessions
from registry.storage.contract import BlobStore

OWNER = "import"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Moved:
    """An archive's digest, how many things it holds, which of them were new, and its blobs' bytes.

    hung: tags, notes, aliases, retirements and names that were new too; kept: those that stay as they are
    here.
    """

    digest: str
    things: int
    new: tuple[str, ...]
    blobs: int
    size_bytes: int
    hung: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for programs."""
        return {
            "digest": self.digest,
            "things": self.things,
            "new": list(self.new),
            "hung": list(self.hung),
            "kept": list(self.kept),
            "blobs": self.blobs,
            "bytes": self.size_bytes,
        }


def export(
    sessions: Sessions, store: BlobStore, path: Path, refs: Sequence[str], on_blob: Progress = lambda *_: None
) -> Moved:
    """Writes what refs mean, and all that it needs, into an archive; everything where there is no ref."""
    with sessions.read() as session:
        chosen = select_refs(session, refs)
    digest = archive.write(path, chosen.record, chosen.blobs, store, on_blob)
    things = len(chosen.record["nodes"])
    return Moved(digest, things, (), len(chosen.blobs), sum(chosen.blobs.values()))


def bring_in(
    sessions: Sessions,
    store: BlobStore,
    path: Path,
    *,
    dry_run: bool = False,
    on_blob: Progress = lambda *_: None,
) -> Moved:
    """Brings an archive's record and blobs in, whole or not at all; what is there already stays as it is.

    Raises ArchiveInvalid for an archive that is not what it should be, and ArchiveConflict where something
    here stands against it: in both cases nothing was written.
    """
    held = archive.read(path, on_blob)
    coming = arrival.read(held)
    with sessions.read() as session:
        made = arrival.plan(session, coming)
        labels = arrival.hang(session, coming, made.there, write=False)
        known = {digest for digest in held.blobs if blobs.known(session, digest)}
    moved = Moved(
        held.digest,
        len(coming.entries),
        tuple(coming.called(entry) for entry in made.new),
        len(held.blobs),
        sum(held.blobs.values()),
        tuple(labels.new),
        tuple(labels.kept),
    )
    if (made.new or labels.new) and not dry_run:
        _bring(sessions, store, held, coming, known)
    return moved


def _bring(
    sessions: Sessions, store: BlobStore, held: archive.Archive, coming: arrival.Arrival, known: set[str]
) -> None:
    with sessions.begin() as session:
        upload = blobs.begin_upload(session, OWNER)
    try:
        # Bytes first, then rows: what is refused after this leaves bytes that garbage collection takes.
        wanted = {digest for digest in held.blobs if digest not in known or not store.exists(digest)}
        with tempfile.TemporaryDirectory(prefix="affinery-import-") as scratch:
            for _, file in archive.blob_files(held, wanted, Path(scratch)):
                store.put_file(file)
        with sessions.begin() as session:
            # Planned anew: somebody may have recorded something meanwhile.
            written = arrival.write(session, held, coming, arrival.plan(session, coming))
            for finding in _files(session, store, set(written)):
                raise ArchiveInvalid(str(held.path), f"{finding.where}: {finding.what}; nothing was written")
    finally:
        with sessions.begin() as session:
            blobs.end_upload(session, upload.id)


def _files(session: Session, store: BlobStore, written: set[int]) -> Iterator[Finding]:
    """What the files that came say of themselves otherwise than their rows."""
    for backbone in backbones.list_all(session):
        if backbone.node_id in written:
            yield from contents.backbone_file(store, backbone)
    for adapter in adapters.list_all(session):
        if adapter.node_id in written:
            base = backbones.by_id(session, adapter.backbone_id)
            names = renaming.names_ever(session, "task", adapter.task)
            yield from contents.adapter_file(store, adapter, base, names)
