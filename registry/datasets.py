"""Datasets: pinned by content, versions never edited."""

from __future__ import annotations

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session, aliased

from registry import events, names, nodes, refs, seals
from registry.digests import checked_digest, plain
from registry.errors import RecordInvalid
from registry.models import Dataset, Node
from registry.records import DatasetRecord


def register(
    session: Session,
    *,
    name: str,
    digest: str,
    dvc_md5: str,
    dvc_path: str,
    size_bytes: int,
    image_count: int,
    classes: list[str],
    class_counts: list[int],
    licence: str,
    source: str,
) -> DatasetRecord:
    """Record a dataset version, made from the one before it of its name.

    The same name and digest again give the record that stands.
    """
    name = names.checked("dataset", name)
    checked_digest("The dataset's digest", digest)
    classes = _checked_classes(classes, class_counts, image_count)
    nodes.lock_series(session, "dataset", name)
    same = session.execute(
        _query().where(Dataset.name == name, Node.digest == digest).order_by(Dataset.version.desc())
    ).first()
    if same is not None:
        return _record(same)
    parent = nodes.latest(session, Dataset, name)
    version = nodes.next_version(session, "dataset", name)
    node = nodes.add(session, "dataset", digest, [] if parent is None else [(parent, "parent")])
    row = Dataset(
        node_id=node.id,
        name=name,
        version=version,
        dvc_md5=dvc_md5,
        dvc_path=dvc_path,
        size_bytes=size_bytes,
        image_count=image_count,
        classes=classes,
        class_counts=list(class_counts),
        licence=plain("The licence", licence),
        source=plain("The source", source),
        parent_id=parent,
    )
    session.add(row)
    session.flush()
    record = by_id(session, node.id)
    events.append(
        session,
        "dataset.registered",
        node.id,
        {"ref": record.ref, "digest": digest, **seals.of_row("dataset", row)},
    )
    return record


def _checked_classes(classes: list[str], counts: list[int], image_count: int) -> list[str]:
    kept = [names.checked_class(name) for name in classes]
    if not kept:
        raise RecordInvalid("The dataset", "it has no class; an unconditional dataset has exactly one")
    if len(set(kept)) != len(kept):
        twice = next(name for name in kept if kept.count(name) > 1)
        raise RecordInvalid("The dataset", f"the class {twice!r} stands in it twice")
    if len(counts) != len(kept) or any(count < 0 for count in counts) or sum(counts) != image_count:
        raise RecordInvalid(
            "The dataset", f"counts {counts!r} do not add up to {image_count} images of its classes"
        )
    return kept


def get(session: Session, ref: str) -> DatasetRecord:
    """The dataset that a reference means: a name (its latest version), name@version or a digest."""
    return by_id(session, refs.find(session, "dataset", ref))


def by_id(session: Session, node_id: int) -> DatasetRecord:
    """The dataset of a node."""
    return _record(session.execute(_query().where(Dataset.node_id == node_id)).one())


def list_all(session: Session) -> list[DatasetRecord]:
    """Every dataset version, by name and version."""
    return [_record(row) for row in session.execute(_query().order_by(Dataset.name, Dataset.version))]


_Parent = aliased(Dataset)


def _query() -> Select[Dataset, Node, str, int]:
    return (
        select(Dataset, Node, _Parent.name, _Parent.version)
        .join(Node, Node.id == Dataset.node_id)
        .outerjoin(_Parent, _Parent.node_id == Dataset.parent_id)
    )


def _record(row: Row[Dataset, Node, str, int]) -> DatasetRecord:
    dataset, node, parent_name, parent_version = row
    return DatasetRecord(
        node_id=node.id,
        digest=node.digest,
        created_at=node.created_at,
        name=dataset.name,
        version=dataset.version,
        dvc_md5=dataset.dvc_md5,
        dvc_path=dataset.dvc_path,
        size_bytes=dataset.size_bytes,
        image_count=dataset.image_count,
        classes=tuple(dataset.classes),
        class_counts=tuple(dataset.class_counts),
        licence=dataset.licence,
        source=dataset.source,
        parent=None if dataset.parent_id is None else f"{parent_name}@{parent_version}",
    )
