"""What is learnt on and from: backbones, datasets, tasks and their class blocks."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import Mapped, mapped_column

from registry.columns import Id
from registry.models.base import Base


class Backbone(Base):
    """A version of a frozen denoiser; its node's digest is its fingerprint."""

    __tablename__ = "backbone"
    __table_args__ = (
        Unique("name", "version"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("num_classes >= 0 AND null_index >= 0", name="classes"),
        ForeignKeyConstraint(["blob_digest", "size_bytes"], ["blob.digest", "blob.size_bytes"]),
        Index(None, "blob_digest"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    name: Mapped[str]
    version: Mapped[int]
    blob_digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    num_classes: Mapped[int]
    null_index: Mapped[int]
    spec: Mapped[dict[str, Any]]
    parent_id: Mapped[int | None] = mapped_column(Id, ForeignKey("backbone.node_id"))


class ClassBlock(Base):
    """The rows [lo, hi) of a backbone's class table: its own first, then each task's, end to end."""

    __tablename__ = "class_block"
    __table_args__ = (
        # 2^31 rows a backbone: PostgreSQL's exclusion constraint folds (backbone, row) into one 64-bit range.
        CheckConstraint("0 <= lo AND lo < hi AND hi <= 2147483647", name="half_open"),
        CheckConstraint("(owner_id = backbone_id) = (lo = 0)", name="own_rows_first"),
        Unique("owner_id", "backbone_id", "lo", "hi"),
        Unique("backbone_id", "lo"),
    )

    owner_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    backbone_id: Mapped[int] = mapped_column(Id, ForeignKey("backbone.node_id"))
    lo: Mapped[int]
    hi: Mapped[int]


class Dataset(Base):
    """A version of a dataset; its node's digest is that of its manifest, which holds every image's."""

    __tablename__ = "dataset"
    __table_args__ = (
        Unique("name", "version"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("size_bytes >= 0 AND image_count >= 1", name="size"),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    name: Mapped[str]
    version: Mapped[int]
    dvc_md5: Mapped[str]
    dvc_path: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    image_count: Mapped[int]
    classes: Mapped[list[str]]
    class_counts: Mapped[list[int]]
    licence: Mapped[str]
    source: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(Id, ForeignKey("dataset.node_id"))


class Task(Base):
    """Something to learn on one backbone, with the class rows that are its own for ever.

    predecessor_id: the task on an older backbone whose classes it learns anew, in rows of its own.
    """

    __tablename__ = "task"
    __table_args__ = (
        Unique("name"),
        Unique("node_id", "backbone_id"),
        ForeignKeyConstraint(
            ["node_id", "backbone_id", "lo", "hi"],
            ["class_block.owner_id", "class_block.backbone_id", "class_block.lo", "class_block.hi"],
        ),
        CheckConstraint("next_version >= 1", name="counts_up"),
        Index(None, "backbone_id"),
        Index(None, "dataset_id"),
        Index("uq_task_successor", "predecessor_id", "backbone_id", unique=True),
    )

    node_id: Mapped[int] = mapped_column(Id, ForeignKey("node.id"), primary_key=True, autoincrement=False)
    name: Mapped[str]
    backbone_id: Mapped[int] = mapped_column(Id, ForeignKey("backbone.node_id"))
    dataset_id: Mapped[int] = mapped_column(Id, ForeignKey("dataset.node_id"))
    kind: Mapped[str]
    config: Mapped[dict[str, Any]]
    classes: Mapped[list[str]]
    lo: Mapped[int]
    hi: Mapped[int]
    next_version: Mapped[int] = mapped_column(default=1)
    predecessor_id: Mapped[int | None] = mapped_column(Id, ForeignKey("task.node_id"))
