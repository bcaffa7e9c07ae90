"""Webhooks: addresses that are told of what happens. A secret is told once, and kept so that it can sign.

Which events each is still to be told stands in rows of its own, which orchestration/webhooks.py works off.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from registry import events, names
from registry.errors import NotFound, RecordInvalid, WebhookExists
from registry.models import Event, Webhook, WebhookDelivery

STATES = ("waiting", "delivered", "given-up")
TESTED = "webhook.tested"
PREFIX = "whsec_"
MOST, MOST_KINDS, LONGEST_URL = 50, 50, 2000
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRecord:
    """A webhook, without its secret. kinds: of the events that it is told; None for all.

    failures: how many tries in a row failed; due_at: not before this is it tried again. waiting: how many
    events it is still to be told.
    """

    id: str
    name: str
    url: str
    kinds: tuple[str, ...] | None
    created_by: str
    created_at: datetime
    failures: int
    due_at: datetime
    waiting: int

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON."""
        return _json(self) | {"kinds": None if self.kinds is None else list(self.kinds)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """An event on its way to a webhook. status: what the last try was answered; reason: why it failed."""

    webhook: str
    event: int
    kind: str
    state: str
    tries: int
    status: int | None
    reason: str | None
    created_at: datetime
    tried_at: datetime | None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON."""
        return _json(self)


def create(
    session: Session, name: str, url: str, *, kinds: Sequence[str] = (), by: str
) -> tuple[WebhookRecord, str]:
    """A new webhook and, this once, its secret. It is told what happens from now on. kinds: none for all."""
    what = f"The webhook {name}"
    name, url = names.checked_alias(name), checked_url(url)
    if len(kinds) > MOST_KINDS:
        raise RecordInvalid(what, f"it names more than {MOST_KINDS} kinds of events")
    for kind in kinds:
        noun, _, verb = kind.partition(".")
        if not (verb == "*" and noun in events.NOUNS) and not events.is_kind(kind):
            known = ", ".join(events.NOUNS)
            reason = f"{kind!r} is no kind of event: write job.done, or job.* for all of jobs; of {known}"
            raise RecordInvalid(what, reason)
    if session.scalar(select(exists().where(Webhook.name == name))):
        raise WebhookExists(name)
    if (session.scalar(select(func.count()).select_from(Webhook)) or 0) >= MOST:
        raise RecordInvalid(what, f"there are {MOST} already; remove one")
    secret = PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    wanted = sorted(set(kinds)) or None
    newest = session.scalar(select(func.max(Event.id))) or 0
    row = Webhook(
        id=secrets.token_hex(8),
        name=name,
        url=url,
        kinds=wanted,
        secret=secret,
        created_by=by,
        since=newest,
        seen=newest,
        failures=0,
    )
    session.add(row)
    events.append(session, "webhook.added", None, {"webhook": name, "url": url, "kinds": wanted, "by": by})
    return _record(row, 0), secret


def remove(session: Session, name: str, *, by: str) -> WebhookRecord:
    """Forget a webhook, and what it was still to be told."""
    row = _row(session, name)
    record = _record(row, _waiting(session, row.id))
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.webhook_id == row.id))
    session.execute(delete(Webhook).where(Webhook.id == row.id))
    events.append(session, "webhook.removed", None, {"webhook": name, "by": by})
    return record


def test(session: Session, name: str, *, by: str) -> DeliveryRecord:
    """Have a webhook told an event that says only this; it waits its turn behind what else it is told."""
    row = _row(session, name)
    events.append(session, TESTED, None, {"webhook": name, "by": by})
    event = session.scalars(select(func.max(Event.id)).where(Event.kind == TESTED)).one()
    session.add(WebhookDelivery(webhook_id=row.id, event_id=event, state="waiting", tries=0))
    session.flush()
    return deliveries(session, name, limit=1)[0]


def get(session: Session, name: str) -> WebhookRecord:
    """Raises NotFound."""
    row = _row(session, name)
    return _record(row, _waiting(session, row.id))


def list_all(session: Session) -> list[WebhookRecord]:
    """Every webhook, by name."""
    return [
        _record(row, _waiting(session, row.id))
        for row in session.scalars(select(Webhook).order_by(Webhook.name))
    ]


def deliveries(
    session: Session, name: str, *, before: int | None = None, limit: int = 50, state: str | None = None
) -> list[DeliveryRecord]:
    """What a webhook was and is to be told, the newest first, from below this event. Raises NotFound."""
    row = _row(session, name)
    query = (
        select(WebhookDelivery, Event.kind)
        .join(Event, Event.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.webhook_id == row.id)
        .order_by(WebhookDelivery.event_id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(WebhookDelivery.event_id < before)
    if state is not None:
        query = query.where(WebhookDelivery.state == state)
    return [
        DeliveryRecord(
            webhook=row.name,
            event=found.event_id,
            kind=kind,
            state=found.state,
            tries=found.tries,
            status=found.status,
            reason=found.reason,
            created_at=found.created_at,
            tried_at=found.tried_at,
        )
        for found, kind in session.execute(query)
    ]


def checked_url(url: str) -> str:
    """RecordInvalid where this is no address of a receiver; where it leads is seen when it is told."""
    what = "The webhook's address"
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise RecordInvalid(what, "it is too long, or holds characters that an address does not have")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RecordInvalid(what, str(error)) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise RecordInvalid(what, "it is no address: write https://host/path")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise RecordInvalid(what, "it holds a user, a password or a fragment; leave them out")
    return url


def _row(session: Session, name: str) -> Webhook:
    row = session.scalar(select(Webhook).where(Webhook.name == name))
    if row is None:
        raise NotFound("webhook", name, list(session.scalars(select(Webhook.name).order_by(Webhook.name))))
    return row


def _waiting(session: Session, webhook_id: str) -> int:
    query = select(func.count()).select_from(WebhookDelivery)
    wanted = WebhookDelivery.webhook_id == webhook_id, WebhookDelivery.state == "waiting"
    return session.scalar(query.where(*wanted)) or 0


def _record(row: Webhook, waiting: int) -> WebhookRecord:
    return WebhookRecord(
        id=row.id,
        name=row.name,
        url=row.url,
        kinds=None if row.kinds is None else tuple(row.kinds),
        created_by=row.created_by,
        created_at=row.created_at,
        failures=row.failures,
        due_at=row.due_at,
        waiting=waiting,
    )


def _json(record: WebhookRecord | DeliveryRecord) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()
    }
