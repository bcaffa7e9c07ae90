"""Who is told of what happens, and what each is still to be told."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import Id, Json, utc_now
from registry.models.base import Base


class Webhook(Base):
    """An address that is told of events. secret: what signs; it is kept as it is, for it has to sign.

    kinds: those that it is told of; NULL for all. since: the last event before it; seen: the last one
    that was looked at for it. failures: in a row; due_at: when it is tried again. lease: who tells it now.
    """

    __tablename__ = "webhook"
    __table_args__ = (
        CheckConstraint("length(name) BETWEEN 1 AND 64", name="name"),
        CheckConstraint("length(secret) > 20", name="secret"),
        CheckConstraint("failures >= 0", name="failures"),
        CheckConstraint("seen >= since", name="seen"),
        Unique("name"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    url: Mapped[str]
    kinds: Mapped[list[str] | None] = mapped_column(Json)
    secret: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    since: Mapped[int] = mapped_column(Id)
    seen: Mapped[int] = mapped_column(Id)
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    due_at: Mapped[datetime] = mapped_column(default=utc_now)
    lease_owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]


class WebhookDelivery(Base):
    """An event that a webhook is told of. status: what the last try was answered; reason: why that failed."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'delivered', 'given-up')", name="state"),
        CheckConstraint("tries >= 0", name="tries"),
        Index(None, "webhook_id", "state", "event_id"),
    )

    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhook.id", ondelete="CASCADE"), primary_key=True)
    event_id: Mapped[int] = mapped_column(Id, ForeignKey("event.id"), primary_key=True)
    state: Mapped[str]
    tries: Mapped[int] = mapped_column(default=0, server_default="0")
    status: Mapped[int | None]
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    tried_at: Mapped[datetime | None]
