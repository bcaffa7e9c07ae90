"""Bytes on their way into the store, held by a lease until their rows are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from registry import blobs
from registry.session import Sessions


@contextmanager
def uploading(sessions: Sessions, owner: str) -> Iterator[None]:
    """What is put into the store in this block is nobody's garbage; the lease ends with the block."""
    with sessions.begin() as session:
        upload = blobs.begin_upload(session, owner)
    try:
        yield
    finally:
        with sessions.begin() as session:
            blobs.end_upload(session, upload.id)
