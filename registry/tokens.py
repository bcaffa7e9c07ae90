"""Tokens: who may call the service, and what they may do. Only digests of secrets are kept.

A token is read as `aff_<id>_<secret>`. The id finds its row; the whole of it is compared by digest, in a time
that does not depend on where they differ.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, or_, select
from sqlalchemy.orm import Session

from registry import events, names
from registry.columns import utc_now
from registry.errors import NotFound, RecordInvalid, TokenExists
from registry.models import BrowserSession, Token

SCOPES = ("read", "schedule", "promote", "admin")
"""Each allows what those before it allow."""
PREFIX = "aff"
SESSION = timedelta(hours=12)
USED = timedelta(minutes=1)  # how closely a token's last use is remembered
LONGEST_DAYS = 3650
MOST_TASKS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A token, without its secret. tasks: those that it may change; None for all."""

    id: str
    name: str
    digest: str
    scope: str
    tasks: tuple[str, ...] | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None

    @property
    def state(self) -> str:
        """active, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= utc_now() else "active"

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON, with its state and without its digest, which is nobody's business."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "digest"}
        told = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in values.items()
        }
        return told | {"tasks": None if self.tasks is None else list(self.tasks), "state": self.state}


def create(
    session: Session,
    name: str,
    scope: str,
    *,
    tasks: Sequence[str] | None = None,
    days: float | None = None,
    by: str,
) -> tuple[TokenRecord, str]:
    """A new token and, this once, its text. tasks: None for all. days: until it expires."""
    name = names.checked_alias(name)
    if tasks is not None and not tasks:
        told = "its list of tasks is empty; name some, or leave it out for all"
        raise RecordInvalid(f"The token {name}", told)
    if scope not in SCOPES:
        raise RecordInvalid(f"The token {name}", f"{scope!r} is no scope; there are {', '.join(SCOPES)}")
    if days is not None and not 0 < days <= LONGEST_DAYS:
        raise RecordInvalid(f"The token {name}", f"it cannot expire in {days:g} days")
    if tasks is not None and len(tasks) > MOST_TASKS:
        raise RecordInvalid(f"The token {name}", f"it names more than {MOST_TASKS} tasks")
    if session.scalar(select(exists().where(Token.name == name))):
        raise TokenExists(name)
    token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    text = f"{PREFIX}_{token_id}_{secret}"
    row = Token(
        id=token_id,
        name=name,
        digest=digest(text),
        scope=scope,
        tasks=None if tasks is None else sorted({names.checked("task", task) for task in tasks}),
        created_by=by,
        expires_at=None if days is None else utc_now() + timedelta(days=days),
    )
    session.add(row)
    events.append(
        session, "token.created", None, {"token": name, "scope": scope, "tasks": row.tasks, "by": by}
    )
    return _record(row), text


def revoke(session: Session, name: str, *, by: str) -> TokenRecord:
    """End a token, and the sessions that were opened with it. One that is revoked already stays so."""
    row = session.scalar(select(Token).where(Token.name == name))
    if row is None:
        raise NotFound("token", name, list(session.scalars(select(Token.name).order_by(Token.name))))
    if row.revoked_at is None:
        row.revoked_at = utc_now()
        session.execute(delete(BrowserSession).where(BrowserSession.token_digest == row.digest))
        events.append(session, "token.revoked", None, {"token": name, "by": by})
    return _record(row)


def list_all(session: Session) -> list[TokenRecord]:
    """Every token, the oldest first; those that are revoked too."""
    return [_record(row) for row in session.scalars(select(Token).order_by(Token.created_at, Token.name))]


def any_live(session: Session) -> bool:
    """Whether a token was made and not revoked; one that expired counts, so that nothing opens by time."""
    return bool(session.scalar(select(exists().where(Token.revoked_at.is_(None)))))


def shown(session: Session, text: str) -> TokenRecord | None:
    """The token of this text, if it may be used now."""
    parts = text.split("_", 2)
    row = session.get(Token, parts[1]) if len(parts) == 3 and len(parts[1]) < 64 else None
    known = row.digest if row is not None else "0" * 64
    fits = hmac.compare_digest(digest(text), known)
    found = _record(row) if row is not None and fits else None
    return found if found is not None and found.state == "active" else None


def used(session: Session, token_id: str) -> None:
    """Remember that it was used, to the minute."""
    now = utc_now()
    row = session.scalar(
        select(Token).where(Token.id == token_id, or_(Token.used_at.is_(None), Token.used_at < now - USED))
    )
    if row is not None:
        row.used_at = now


def digest(text: str) -> str:
    """Of a secret: the SHA-256 of its characters. They are random, so nothing slower is needed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def open_session(session: Session, token_digest: str, until: datetime | None) -> tuple[str, datetime]:
    """A browser showed a token: its cookie, and when that ends. until: when the token itself does."""
    now = utc_now()
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= now))
    cookie = secrets.token_urlsafe(32)
    ends = min(now + SESSION, until) if until is not None else now + SESSION
    session.add(BrowserSession(digest=digest(cookie), token_digest=token_digest, expires_at=ends))
    return cookie, ends


def of_session(session: Session, cookie: str) -> tuple[str, TokenRecord | None] | None:
    """The digest of the token that a browser showed, and that token where it is the registry's and active."""
    row = session.get(BrowserSession, digest(cookie))
    if row is None or row.expires_at <= utc_now():
        return None
    token = session.scalar(select(Token).where(Token.digest == row.token_digest))
    found = _record(token) if token is not None else None
    return row.token_digest, found if found is not None and found.state == "active" else None


def close_session(session: Session, cookie: str) -> None:
    """Forget a browser."""
    session.execute(delete(BrowserSession).where(BrowserSession.digest == digest(cookie)))


def _record(row: Token) -> TokenRecord:
    return TokenRecord(
        id=row.id,
        name=row.name,
        digest=row.digest,
        scope=row.scope,
        tasks=None if row.tasks is None else tuple(row.tasks),
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        used_at=row.used_at,
    )
