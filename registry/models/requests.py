"""Requests that carried an idempotency key, and what was answered."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import Json, utc_now
from registry.models.base import Base


class Request(Base):
    """A request by the key that its sender chose. answer is written in the transaction that does the work."""

    __tablename__ = "request"
    __table_args__ = (
        CheckConstraint("length(key) BETWEEN 1 AND 255", name="key"),
        CheckConstraint("length(fingerprint) = 64", name="fingerprint"),
        Index(None, "at"),
    )

    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    answer: Mapped[dict[str, Any] | None] = mapped_column(Json)
    at: Mapped[datetime] = mapped_column(default=utc_now)
