"""Requests with an idempotency key: done once, and answered alike however often they are sent.

The key's row is written in the transaction that does the work, so that a request is either done and
remembered or neither. Two that carry one key at once take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from registry.columns import utc_now
from registry.digests import digest_of, plain
from registry.errors import KeyReused
from registry.models import Request
from registry.upsert import insert_if_new

KEPT = timedelta(hours=24)


def once(
    session: Session, caller: str, key: str, fingerprint: str, do: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """The answer to a caller's request of this key, and whether it was given before and nothing was done now.

    caller: who asks, "" for this machine; keys are theirs alone. fingerprint: the digest of what is asked.
    KeyReused where the key belongs to another request of theirs.
    """
    session.execute(delete(Request).where(Request.at < utc_now() - KEPT))
    kept = _kept_as(caller, key)
    held = session.get(Request, kept)
    row = {"key": kept, "fingerprint": fingerprint, "answer": None, "at": utc_now()}
    if held is None and not insert_if_new(session, Request, row):
        held = session.get_one(Request, kept)
    if held is not None:
        if held.fingerprint != fingerprint:
            raise KeyReused(key)
        return held.answer or {}, True
    answer: dict[str, Any] = plain("The answer", do())
    session.get_one(Request, kept).answer = answer
    return answer, False


def answered(session: Session, caller: str, key: str, fingerprint: str) -> dict[str, Any] | None:
    """The answer that was given to a caller's request of this key; None for a new key. Raises KeyReused."""
    held = session.get(Request, _kept_as(caller, key))
    if held is None or held.at < utc_now() - KEPT:
        return None
    if held.fingerprint != fingerprint:
        raise KeyReused(key)
    return held.answer or {}


def _kept_as(caller: str, key: str) -> str:
    return digest_of([caller, key])
