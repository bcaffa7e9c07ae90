"""Who may call the service: tokens, and the browsers that showed one."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Index
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import Json, utc_now
from registry.models.base import Base


class Token(Base):
    """A token by the SHA-256 of its secret. id is in the token itself: it finds the row, and opens nothing.

    tasks: those that it may change; NULL for all. A name is never given to another token.
    """

    __tablename__ = "token"
    __table_args__ = (
        CheckConstraint("length(name) BETWEEN 1 AND 64", name="name"),
        CheckConstraint("length(digest) = 64", name="digest"),
        CheckConstraint("scope IN ('read', 'schedule', 'promote', 'admin')", name="scope"),
        Unique("name"),
        Unique("digest"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str]
    scope: Mapped[str]
    tasks: Mapped[list[str] | None] = mapped_column(Json)
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]


class BrowserSession(Base):
    """A browser that showed a token, by the SHA-256 of its cookie. It may what that token may, while it may.

    token_digest: of the token that was shown.
    """

    __tablename__ = "browser_session"
    __table_args__ = (
        CheckConstraint("length(digest) = 64", name="digest"),
        CheckConstraint("length(token_digest) = 64", name="token"),
        Index(None, "expires_at"),
        Index(None, "token_digest"),
    )

    digest: Mapped[str] = mapped_column(primary_key=True)
    token_digest: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]
