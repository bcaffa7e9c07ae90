"""Whether the record can still be believed: the database's guards, every row, every byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from registry import adapters, backbones, blobs, contents, errors, invariants, lineage, protection, renaming
from registry.contents import StoredBlob
from registry.findings import Finding, Report
from registry.models import Base, Blob, Certificate, Evaluation
from registry.records import AdapterRecord, BackboneRecord
from registry.session import sessions, speaking, where
from registry.storage.contract import BlobStore

Progress = Callable[[int, int], None]
PREFERRED = ("adapter", "composition", "backbone", "dataset", "task")


@dataclass(frozen=True, slots=True)
class _Record:
    """What one reading transaction saw."""

    findings: list[Finding]
    counts: dict[str, int]
    blobs: list[StoredBlob]
    backbones: list[BackboneRecord]
    adapters: list[AdapterRecord]
    names: dict[str, set[str]]  # of tasks that were renamed, by what they are called now


def verify(
    engine: Engine, store: BlobStore, ref: str | None = None, on_progress: Progress = lambda *_: None
) -> Report:
    """Looks at everything, or at ref and all that it was made from; the database's guards in either case.

    engine: of a registry that `check_schema` need not have passed. on_progress: blobs read, of how many.
    Raises NotFound and AmbiguousRef for ref, and RegistryMissing where there is no registry.
    """
    with speaking(where(engine)), engine.connect() as connection:
        if not engine.dialect.has_table(connection, "alembic_version"):
            raise errors.RegistryMissing(where(engine))
        if behind := list(protection.at_head(connection)):
            return Report({}, behind)  # of another schema, nothing else can be asked
    with speaking(where(engine)):
        guards = list(protection.protected(engine))
    with sessions(engine).read() as session:
        record = _read(session, ref)
    found = [*guards, *record.findings, *_stored(engine, store, record, on_progress)]
    return Report(record.counts, found)


def _read(session: Session, ref: str | None) -> _Record:
    scope = None if ref is None else _scope(session, ref)

    def within(nodes: Iterable[int]) -> bool:
        return scope is None or not scope.isdisjoint(nodes)

    findings = [finding for finding in invariants.broken(session) if within(finding.nodes)]
    stored = [blob for blob in _blobs(session) if within(blob.nodes)]
    frozen = [record for record in backbones.list_all(session) if within([record.node_id])]
    learnt = [record for record in adapters.list_all(session) if within([record.node_id])]
    names = {name: renaming.names_ever(session, "task", name) for name in renaming.origins(session, "task")}
    return _Record(findings, _counts(session, scope, stored), stored, frozen, learnt, names)


def _scope(session: Session, ref: str) -> set[int]:
    node = lineage.resolve(session, ref, prefer=PREFERRED)
    above = set(lineage.ancestors(session, node.node_id).nodes)
    proofs = select(Certificate.node_id).where(Certificate.adapter_id.in_(above))
    measured = select(Evaluation.node_id).where(Evaluation.adapter_id.in_(above))
    return above | set(session.scalars(proofs)) | set(session.scalars(measured))


def _counts(session: Session, scope: set[int] | None, stored: list[StoredBlob]) -> dict[str, int]:
    if scope is None:
        kinds = {
            f"{kind}s": session.scalar(select(func.count()).select_from(table)) or 0
            for kind, table in invariants.DETAILS.items()
        }
        kinds["edges"] = session.scalar(select(func.count()).select_from(Base.metadata.tables["edge"])) or 0
    else:
        kinds = {}
        for node in lineage.describe(session, scope).values():
            kinds[f"{node.kind}s"] = kinds.get(f"{node.kind}s", 0) + 1
    return kinds | {"blobs": len(stored), "bytes": sum(blob.size_bytes for blob in stored)}


def _blobs(session: Session) -> list[StoredBlob]:
    users = blobs.users(session)
    rows = session.execute(select(Blob.digest, Blob.size_bytes).order_by(Blob.created_at, Blob.digest))
    return [StoredBlob(digest, size, tuple(users.get(digest, ()))) for digest, size in rows]


def _stored(engine: Engine, store: BlobStore, record: _Record, on_progress: Progress) -> Iterator[Finding]:
    done = 0

    def count(_: StoredBlob) -> None:
        nonlocal done
        done += 1
        on_progress(done, len(record.blobs))

    bad: set[str] = set()
    for digest, finding in contents.altered(store, record.blobs, count):
        if finding.nodes or _still_known(engine, digest):
            bad.add(digest)
            yield finding
    whole = {blob.digest for blob in record.blobs} - bad
    by_id = {backbone.node_id: backbone for backbone in record.backbones}
    for backbone in record.backbones:
        if backbone.blob_digest in whole:
            yield from contents.backbone_file(store, backbone)
    for adapter in record.adapters:
        if adapter.blob_digest in whole and adapter.backbone_id in by_id:
            names = record.names.get(adapter.task, {adapter.task})
            yield from contents.adapter_file(store, adapter, by_id[adapter.backbone_id], names)


def _still_known(engine: Engine, digest: str) -> bool:
    """Garbage collection may have taken, meanwhile, a blob that nothing needs."""
    with sessions(engine).read() as session:
        return blobs.known(session, digest)
