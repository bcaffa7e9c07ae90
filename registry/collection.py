"""Garbage collection: what no published row needs, and no upload in progress may be about to need, goes.

Rows first, then bytes: whoever is killed in between leaves bytes without a row, which the next collection
takes. Both steps hold the table of leases, so that an upload begins before, and is seen, or after, and puts
its bytes anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from registry import blobs, events
from registry.columns import utc_now
from registry.errors import BlobMissing
from registry.models import Blob, Upload
from registry.records import UploadRecord
from registry.session import Sessions
from registry.storage.contract import BlobStore, Leftover

GRACE_SECONDS = blobs.LEASE_SECONDS
# Clocks of the store and of those who lease differ by less than this, it is hoped.
SKEW = timedelta(minutes=5)
_AT_ONCE = 200  # blobs in one transaction, while which no upload can begin


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes in the store, or a row that speaks of them, and what keeps them: nothing where they go."""

    digest: str
    size_bytes: int
    kept_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Collection:
    """What was kept and why, what went, and the beginnings of blobs that nobody finished."""

    kept: tuple[Holding, ...]
    gone: tuple[Holding, ...]
    leftovers: tuple[Leftover, ...]
    dry_run: bool

    @property
    def freed_bytes(self) -> int:
        """What went, in bytes."""
        return sum(each.size_bytes for each in self.gone) + sum(each.size_bytes for each in self.leftovers)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for programs."""
        return {
            "dry_run": self.dry_run,
            "freed_bytes": self.freed_bytes,
            "kept": [asdict(each) for each in self.kept],
            "gone": [asdict(each) for each in self.gone],
            "leftovers": [asdict(each) | {"since": each.since.isoformat()} for each in self.leftovers],
        }


@dataclass(frozen=True, slots=True)
class _Leases:
    """Who may be about to publish what arrived when."""

    live: Sequence[UploadRecord]
    now: datetime
    grace: timedelta

    def protecting(self, arrived: datetime) -> tuple[str, ...]:
        """What keeps bytes, a row or a beginning that arrived then and that nothing needs."""
        owners = [lease.owner for lease in self.live if arrived >= lease.started_at - SKEW]
        if owners:
            return tuple(f"an upload of {owner} in progress" for owner in owners)
        age = self.now - arrived
        minutes = max(int(age.total_seconds()), 0) // 60  # what is dated into the future has just arrived
        return (f"it arrived {minutes} minutes ago",) if age < self.grace else ()


def collect(
    sessions: Sessions, store: BlobStore, *, dry_run: bool = False, grace_seconds: int = GRACE_SECONDS
) -> Collection:
    """Takes away what nothing needs and what arrived more than grace_seconds ago.

    dry_run: only says what would go, and what keeps the rest.
    """
    grace = timedelta(seconds=grace_seconds)
    with sessions.read() as session:
        leases = _leases(session, grace)
        # Rows before bytes: bytes are put before their row, so a row that is seen here has its bytes listed.
        holdings = list(_holdings(session, store, leases))
    kept = tuple(each for each in holdings if each.kept_by)
    going = tuple(each for each in holdings if not each.kept_by)
    left = tuple(each for each in store.leftovers() if not leases.protecting(each.since))
    if dry_run:
        return Collection(kept, going, left, dry_run=True)
    gone: list[Holding] = []
    for start in range(0, len(going), _AT_ONCE):
        batch = going[start : start + _AT_ONCE]
        _forget(sessions, store, batch, grace)
        gone += _remove(sessions, store, batch, grace)
    for leftover in left:
        store.remove_leftover(leftover)
    with sessions.begin() as session:
        session.execute(delete(Upload).where(Upload.expires_at < utc_now() - grace))
    return Collection(kept, tuple(gone), left, dry_run=False)


def _leases(session: Session, grace: timedelta) -> _Leases:
    return _Leases(blobs.live_uploads(session), utc_now(), grace)


def _holdings(session: Session, store: BlobStore, leases: _Leases) -> Iterator[Holding]:
    users = blobs.users(session)
    rows = {row.digest: row for row in session.scalars(select(Blob))}
    for digest in sorted(rows.keys() | set(store.digests())):
        row = rows.get(digest)
        size_bytes = 0 if row is None else row.size_bytes
        if digest in users:
            yield Holding(digest, size_bytes, tuple(f"{what} of {ref}" for _, ref, what in users[digest]))
            continue
        arrived = _arrived(store, digest)
        dates = [each for each in (arrived, None if row is None else row.created_at) if each is not None]
        if arrived is not None and row is None:
            size_bytes = store.size_bytes(digest)
        protection = [words for date in dates for words in leases.protecting(date)]
        yield Holding(digest, size_bytes, tuple(dict.fromkeys(protection)))


def _arrived(store: BlobStore, digest: str) -> datetime | None:
    try:
        return store.arrived_at(digest)
    except BlobMissing:
        return None


def _forget(sessions: Sessions, store: BlobStore, batch: Sequence[Holding], grace: timedelta) -> None:
    """Deletes the rows that are still nobody's."""
    with sessions.begin() as session:
        leases = _held_leases(session, grace)
        digests = [each.digest for each in batch if not _fresh(store, each.digest, leases)]
        # A publication that has just found its blob here holds the row: such rows are passed over.
        free = select(Blob.digest, Blob.size_bytes).where(
            Blob.digest.in_(digests), Blob.digest.not_in(select(blobs.needed().subquery().c.digest))
        )
        for digest, size_bytes in session.execute(free.with_for_update(skip_locked=True)).all():
            session.execute(delete(Blob).where(Blob.digest == digest))
            events.append(session, "blob.collected", None, {"digest": digest, "size_bytes": size_bytes})


def _remove(
    sessions: Sessions, store: BlobStore, batch: Sequence[Holding], grace: timedelta
) -> Iterator[Holding]:
    """Takes the bytes away that have no row any more. Nothing can begin to arrive meanwhile."""
    with sessions.begin() as session:
        leases = _held_leases(session, grace)
        known = set(session.scalars(select(Blob.digest).where(Blob.digest.in_([b.digest for b in batch]))))
        for each in batch:
            if each.digest not in known and not _fresh(store, each.digest, leases):
                store.remove(each.digest)
                yield each


def _fresh(store: BlobStore, digest: str, leases: _Leases) -> bool:
    arrived = _arrived(store, digest)
    return arrived is not None and bool(leases.protecting(arrived))


def _held_leases(session: Session, grace: timedelta) -> _Leases:
    """The leases, of which no other can begin or end until this transaction does."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE upload IN SHARE ROW EXCLUSIVE MODE"))
    return _leases(session, grace)
