"""The blob store: every byte that the registry speaks of is there and whole; what nothing needs goes."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select

from orchestration.reconcile.findings import Finding, Progress
from orchestration.services import Services
from registry import blobs, collection, contents
from registry.contents import StoredBlob
from registry.models import Blob

NAME = "blobs"


def reconcile(services: Services, dry_run: bool, on_progress: Progress) -> Iterator[Finding]:
    with services.sessions.read() as session:
        users = blobs.users(session)
        rows = session.execute(select(Blob.digest, Blob.size_bytes).order_by(Blob.digest)).all()
    stored = [StoredBlob(digest, size_bytes, tuple(users.get(digest, ()))) for digest, size_bytes in rows]
    read = 0

    def count(_: StoredBlob) -> None:
        nonlocal read
        read += 1
        on_progress(read, len(stored))

    for _, found in contents.altered(services.store, stored, count):
        yield Finding(NAME, found.where, found.what, mend=found.mend)
    collected = collection.collect(services.sessions, services.store, dry_run=dry_run)
    for holding in collected.gone:
        what = f"nothing needs its {holding.size_bytes:,} bytes"
        yield Finding(NAME, f"blob {holding.digest[:12]}", what, "it was taken away")
    for leftover in collected.leftovers:
        what = f"an upload that never ended left {leftover.size_bytes:,} bytes"
        yield Finding(NAME, f"leftover {leftover.name[:12]}", what, "it was taken away")
