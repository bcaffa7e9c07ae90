"""Which blobs the registry knows. Bytes first, then the row; an upload in progress holds a lease."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Column, Select, String, bindparam, delete, literal, select, union_all
from sqlalchemy.orm import Session

from registry import events, lineage
from registry.columns import utc_now
from registry.digests import checked_digest
from registry.errors import BlobUnknown, RecordInvalid
from registry.models import Base, Blob, Upload
from registry.records import UploadRecord
from registry.upsert import insert_if_new

LEASE_SECONDS = 3600
_blob = Blob.__table__.c
_HOLD = (
    select(_blob.size_bytes)
    .where(_blob.digest == bindparam("digest"))
    .with_for_update(read=True, key_share=True)
)


def begin_upload(session: Session, owner: str, lease_seconds: int = LEASE_SECONDS) -> UploadRecord:
    """Announce bytes on their way: what arrives from now on is nobody's garbage until the lease ends."""
    now = utc_now()
    row = Upload(
        id=str(uuid4()), owner=owner, started_at=now, expires_at=now + timedelta(seconds=lease_seconds)
    )
    session.add(row)
    session.flush()
    return _record(row)


def end_upload(session: Session, upload_id: str) -> None:
    """Give the lease back: the bytes have their row now, or will never have one."""
    session.execute(delete(Upload).where(Upload.id == upload_id))


def live_uploads(session: Session) -> list[UploadRecord]:
    """The leases that have not expired, oldest first."""
    query = select(Upload).where(Upload.expires_at > utc_now()).order_by(Upload.started_at)
    return [_record(row) for row in session.scalars(query)]


def commit(session: Session, digest: str, size_bytes: int, upload_id: str | None = None) -> None:
    """Tell the registry of bytes that are durably in the store. Committing them again changes nothing."""
    checked_digest("A blob", digest)
    row = {"digest": digest, "size_bytes": size_bytes, "created_at": utc_now()}
    there_bytes = None
    while there_bytes is None:
        if insert_if_new(session, Blob, row):
            events.append(session, "blob.committed", None, {"digest": digest, "size_bytes": size_bytes})
            there_bytes = size_bytes
        else:  # it is there; but may have been collected again since
            there_bytes = _held(session, digest)
    if there_bytes != size_bytes:
        raise RecordInvalid(
            f"Blob {digest[:12]}", f"it is known to have {there_bytes:,} bytes, not {size_bytes:,}"
        )
    if upload_id is not None:
        end_upload(session, upload_id)


def _held(session: Session, digest: str) -> int | None:
    """The size of a blob, which then stays until this transaction ends; None where there is none.

    On PostgreSQL garbage collection passes over what is locked; on SQLite writers take turns.
    """
    return session.scalar(_HOLD, {"digest": digest})


def known(session: Session, digest: str) -> bool:
    """Whether these bytes have been committed."""
    return session.get(Blob, digest) is not None


def size_bytes(session: Session, digest: str) -> int:
    """The size of committed bytes; BlobUnknown otherwise."""
    row = session.get(Blob, digest)
    if row is None:
        raise BlobUnknown(digest)
    return row.size_bytes


def require(session: Session, digest: str) -> int:
    """The size of committed bytes, which then stay until this transaction ends; BlobUnknown otherwise."""
    held = _held(session, digest)
    if held is None:
        raise BlobUnknown(digest)
    return held


def in_use(session: Session, digest: str) -> bool:
    """Whether a published row names these bytes."""
    return session.execute(needed().where(Blob.digest == digest).limit(1)).first() is not None


def newest(session: Session, count: int) -> list[str]:
    """The digests of those in use that were committed last, the newest first."""
    wanted = needed().subquery()
    rows = select(Blob.digest).where(Blob.digest.in_(select(wanted.c.digest)))
    return list(session.scalars(rows.order_by(Blob.created_at.desc(), Blob.digest).limit(count)))


def needed() -> Select[str, int, str]:
    """The one definition of "in use": (digest, node, column) of every published row that names a blob.

    The schema says it: whatever references the table of blobs. Every deletion asks this query, and a table
    that comes to reference blobs is in it without another word.
    """
    rows = [
        select(
            column.label("digest"),
            column.table.c.node_id.label("node_id"),
            literal(column.name, String()).label("name"),
        ).where(column.is_not(None))
        for column in _references()
    ]
    users = union_all(*rows).subquery("users")
    return select(Blob.digest, users.c.node_id, users.c.name).join(users, users.c.digest == Blob.digest)


def users(session: Session, digest: str | None = None) -> dict[str, list[tuple[int, str, str]]]:
    """By digest, who needs it: (node, its reference, what the blob is to it)."""
    query = needed().order_by("node_id", "name")
    rows = list(session.execute(query if digest is None else query.where(Blob.digest == digest)))
    refs = lineage.describe(session, sorted({node_id for _, node_id, _ in rows}))
    found: dict[str, list[tuple[int, str, str]]] = {}
    for each, node_id, column in rows:
        ref = refs[node_id].full_ref if node_id in refs else f"node {node_id}"
        found.setdefault(each, []).append((node_id, ref, _ROLES.get(column, column)))
    return found


_ROLES = {"blob_digest": "file", "golden_blob": "golden images"}


def _references() -> list[Column[Any]]:
    return [
        element.parent
        for table in Base.metadata.sorted_tables
        for key in sorted(table.foreign_key_constraints, key=lambda each: str(each.name))
        for element in key.elements
        if element.column is Blob.__table__.c.digest
    ]


def _record(row: Upload) -> UploadRecord:
    return UploadRecord(id=row.id, owner=row.owner, started_at=row.started_at, expires_at=row.expires_at)
