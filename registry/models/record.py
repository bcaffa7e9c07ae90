"""What every recorded thing is: a node, its edges, its name, its bytes, its events."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import Id, utc_now
from registry.models.base import Base


class Node(Base):
    """Anything that was recorded: its kind, its digest and when. The other tables say the rest."""

    __tablename__ = "node"
    __table_args__ = (
        CheckConstraint("length(digest) = 64", name="digest"),
        Index(None, "digest"),
        Index(None, "kind", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[str]
    digest: Mapped[str] = mapped_column(String().with_variant(String(collation="C"), "postgresql"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Edge(Base):
    """child was made from parent, in this role. Parents are older, so no cycle can be written."""

    __tablename__ = "edge"
    __table_args__ = (CheckConstraint("parent < child", name="no_cycle"), Index(None, "parent", "child"))

    child: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True)
    parent: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    pos: Mapped[int] = mapped_column(default=0)


class Series(Base):
    """A name under which versions are given out, each number once."""

    __tablename__ = "series"
    __table_args__ = (CheckConstraint("next_version >= 1", name="counts_up"),)

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    next_version: Mapped[int] = mapped_column(default=1)


class Blob(Base):
    """Bytes that are in the store, by the SHA-256 of the bytes."""

    __tablename__ = "blob"
    __table_args__ = (
        CheckConstraint("length(digest) = 64", name="digest"),
        CheckConstraint("size_bytes >= 0", name="size"),
        Unique("digest", "size_bytes"),
    )

    digest: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Upload(Base):
    """A lease: bytes that arrive after started_at may belong to this upload, until it ends or expires."""

    __tablename__ = "upload"
    __table_args__ = (Index(None, "expires_at"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    started_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Event(Base):
    """What happened, in the transaction in which it happened: audit log and outbox in one."""

    __tablename__ = "event"
    __table_args__ = (Index(None, "subject", "id"), Index(None, "kind", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    kind: Mapped[str]
    subject: Mapped[int | None] = mapped_column(Id, ForeignKey("node.id"))
    payload: Mapped[dict[str, Any]]


class RegistryInfo(Base):
    """Facts about the registry itself: the version of Affinery that last migrated it."""

    __tablename__ = "registry_info"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
