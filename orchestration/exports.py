"""Compositions shipped: what may be, the bundle or another format that is written, and its record."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from affinery import tensor_files
from affinery.counting import counted
from affinery.errors import BundleInvalid, PlaceInvalid, words_of
from affinery.merge_recipe import Weight, merges_of
from orchestration.errors import ExportRefused
from registry import adapters, backbones, certificates, compositions, names, refs, renaming, retirement, tasks
from registry import exports as written_exports
from registry.digests import digest_of
from registry.metrics import recognition
from registry.records import AdapterRecord, BackboneRecord, CompositionRecord, ExportRecord, TaskRecord
from registry.session import Sessions
from registry.storage.contract import BlobStore

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from affinery.composed import ComposedModel
    from affinery.formats.contract import Format
    from orchestration.tracking import Tracking

BUNDLE = "bundle"
MOST_BYTES = 240  # of a file's name: most systems end at 255


@dataclass(frozen=True)
class Asked:
    """What is to be shipped, and how. ref: the composition; out: None is the workspace's own folder.

    unverified: members of which nothing was proved may go too. task: the one that a format of one task takes.
    backbone: whether a bundle holds its backbone or names it by its fingerprint.
    """

    ref: str
    format: str = BUNDLE
    out: Path | None = None
    task: str | None = None
    unverified: bool = False
    backbone: bool = True


@dataclass(frozen=True)
class Written:
    """What was written, before it is recorded. difference: between it, loaded back, and the model."""

    composition: str
    composition_id: int
    format: str
    path: Path
    digest: str
    size_bytes: int
    difference: float | None = None
    notes: tuple[str, ...] = ()


def export(
    sessions: Sessions, store: BlobStore, asked: Asked, exports_folder: Path
) -> tuple[ExportRecord, Written]:
    """Writes a composition in a format and records it. The same export again changes nothing."""
    written = write(sessions, store, asked, exports_folder)
    with sessions.begin() as session:
        return record(session, written), written


def record(session: Session, written: Written) -> ExportRecord:
    return compositions.record_export(
        session,
        composition=refs.fixed(written.composition_id),  # it may have another name by now
        format=written.format,
        digest=written.digest,
        path=str(written.path),
        size_bytes=written.size_bytes,
    )


def write(sessions: Sessions, store: BlobStore, asked: Asked, exports_folder: Path) -> Written:
    """Writes what is asked for, unrecorded. Raises ExportRefused, ConfigInvalid and what formats raise."""
    with sessions.read() as session:
        found = compositions.get(session, asked.ref)
        refuse(session, found, asked.unverified)
        task = _called(session, asked.task)
    for place in _places(found, asked, task, exports_folder):
        folder = _made_ready(place)
        try:
            return _write_at(sessions, store, found, asked, task, folder)
        except PlaceInvalid:  # before a task had another name, perhaps; nobody chose this place
            if asked.out is not None or not os.path.lexists(folder):
                raise
    raise AssertionError("unreachable")


def _write_at(
    sessions: Sessions,
    store: BlobStore,
    record: CompositionRecord,
    asked: Asked,
    task: str | None,
    folder: Path,
) -> Written:
    """Raises PlaceInvalid where something else is there."""
    if asked.format == BUNDLE:
        digest, size_bytes = write_composition(sessions, store, record, folder, asked.backbone)
        return Written(record.ref, record.node_id, BUNDLE, folder, digest, size_bytes)
    with sessions.read() as session:
        there = _there(session, record, asked.format, folder)
    return there or _write_format(sessions, store, record, asked.format, task, folder)


def _there(session: Session, record: CompositionRecord, form: str, folder: Path) -> Written | None:
    """What was written there before and is whole, where it is the same that is asked for.

    Its files have the names that its tasks had then: one from before a renaming is not the same.
    """
    learners = [member.task for member in adapters.by_ids(session, record.member_ids)]
    changes = [change for name in learners for change in renaming.history(session, "task", name)]
    renamed = [change.at for change in changes if change.at is not None]
    for each in written_exports.list_all(session, composition_id=record.node_id):
        if renamed and each.created_at <= max(renamed):
            continue
        if (each.format, each.path) == (form, str(folder)) and folder.is_dir():
            digest, size_bytes = digest_of_folder(folder)
            if digest == each.digest:
                return Written(record.ref, record.node_id, form, folder, digest, size_bytes)
    return None


def tell(tracking: Tracking, sessions: Sessions, written: Written) -> None:
    """MLflow, of an export that it can serve."""
    from orchestration.mlflow_models import NAME
    from orchestration.tracking import exports as told

    if written.format == NAME:
        with sessions.read() as session:
            found = compositions.get(session, refs.fixed(written.composition_id))
        told.tell(tracking, found.ref, written.digest, _facts(sessions, found), written.path)


def refuse(session: Session, record: CompositionRecord, unverified: bool = False) -> None:
    """Raises ExportRefused where a member is retired, or nothing was proved of it and that matters."""
    for member in adapters.by_ids(session, record.member_ids):
        refuse_member(session, record.ref, member, unverified)


def refuse_member(session: Session, whole: str, member: AdapterRecord, unverified: bool = False) -> None:
    """The same of one adapter. whole: what it was to be part of."""
    retired = retirement.of(session, [member.node_id])
    if retired:
        reason = retired[member.node_id].reason
        how = f"compose it anew without it, or restore it: affinery adapter restore {quote(member.ref)}"
        raise ExportRefused(whole, f"{member.ref} is retired ({reason})", how)
    proofs = certificates.list_for(session, f"adapter:{member.ref}")
    if not unverified and (not proofs or not proofs[-1].proves):
        how = "ship it nevertheless with --unverified"
        raise ExportRefused(whole, f"nothing was proved of {member.ref} when it was added here", how)


def _write_format(
    sessions: Sessions,
    store: BlobStore,
    record: CompositionRecord,
    name: str,
    task: str | None,
    folder: Path,
) -> Written:
    """Writes a format of others beside its place, loads it back, compares, and gives it its name."""
    from affinery.formats.contract import Shipment, checked

    form = _format(sessions, store, record, name)
    if os.path.lexists(folder):
        raise PlaceInvalid("--out", str(folder), "is taken: something is there already; choose another", "")
    model = composed(sessions, store, record)
    shipment = Shipment(model, task, _facts(sessions, record))
    part = folder.with_name(f".{uuid.uuid4().hex}.part")
    part.mkdir()
    try:
        notes = form.write(shipment, part)
        difference = checked(form.compare(shipment, part), name)
        digest, size_bytes = digest_of_folder(part)
        for path in [*part.rglob("*"), part]:
            tensor_files.make_durable(path)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Written(record.ref, record.node_id, name, folder, digest, size_bytes, difference, notes)


def formats() -> list[str]:
    """The names of all formats that a composition can be written in, the bundle first; without torch."""
    from affinery.formats import formats as others
    from orchestration.mlflow_models import NAME

    return [BUNDLE, *sorted([*others(), NAME])]


def _format(sessions: Sessions, store: BlobStore, record: CompositionRecord, name: str) -> Format:
    """One of the formats of others. Raises UnknownName."""
    from affinery.formats import format_named
    from orchestration.mlflow_models import NAME, MlflowModel

    if name == NAME:
        return MlflowModel(lambda folder: write_composition(sessions, store, record, folder))
    return format_named(name, [NAME])


def _called(session: Session, task: str | None) -> str | None:
    """What the model calls a task: a job says its number, and it may have a new name since."""
    node_id = None if task is None else names.parse(task).node_id
    return task if node_id is None else tasks.by_id(session, node_id).name


def _facts(sessions: Sessions, record: CompositionRecord) -> dict[str, Any]:
    """Whence a model came, as its files and tags say it."""
    with sessions.read() as session:
        backbone = backbones.by_id(session, record.backbone_id)
        members = adapters.by_ids(session, record.member_ids)
    return {
        "affinery.ref": record.ref,
        "affinery.digest": record.digest,
        "affinery.backbone": backbone.ref,
        "affinery.backbone_fingerprint": backbone.digest,
        "affinery.members": {member.ref: member.digest for member in members},
    }


def digest_of_folder(folder: Path) -> tuple[str, int]:
    """The SHA-256 over every file's name and digest, by name; and their size in bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = {path.relative_to(folder).as_posix(): tensor_files.sha256_file(path) for path in paths}
    return digest_of(listing), sum(path.stat().st_size for path in paths)


def _sums(record: CompositionRecord, members: Sequence[AdapterRecord]) -> dict[str, dict[str, Weight]]:
    """The weights of members of each merged task, by what the tasks are called now."""
    if record.mode != "merged":
        return {}
    return {
        merge.name: {members[at].task: weight for at, weight in merge.weights}
        for merge in merges_of(record.recipe, len(members))
    }


def write_composition(
    sessions: Sessions, store: BlobStore, record: CompositionRecord, folder: Path, with_backbone: bool = True
) -> tuple[str, int]:
    """Writes a composition as a bundle, by copying files. → its digest and its size in bytes"""
    from affinery.bundle_writing import BundleTask, write_bundle

    with sessions.read() as session:
        backbone = backbones.by_id(session, record.backbone_id)
        members = adapters.by_ids(session, record.member_ids)
        learners = [tasks.by_id(session, member.task_id) for member in members]
    parts = [
        BundleTask(
            task.name,
            member.ref,
            member.kind,
            task.classes,
            member.block,
            store.path(member.blob_digest),
            None if member.golden_blob is None else store.path(member.golden_blob),
            member.dataset,
        )
        for member, task in zip(members, learners, strict=True)
    ]
    facts = {
        "ref": backbone.ref,
        "fingerprint": backbone.digest,
        "null_index": backbone.null_index,
        "class_names": backbone.spec.get("class_names", []),
    }
    stored = [member.blob_digest for member in members]
    stored += [member.golden_blob for member in members if member.golden_blob is not None]
    stored += [backbone.blob_digest] if with_backbone else []
    try:
        manifest = write_bundle(
            folder,
            record.ref,
            store.path(backbone.blob_digest) if with_backbone else None,
            facts,
            parts,
            _card(record, backbone, members, learners),
            _sums(record, members),
            {store.path(digest): digest for digest in stored},
        )
    except BundleInvalid:
        for digest in stored:  # the store knows better what became of its bytes
            store.verify(digest)
        raise
    return manifest.digest, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _card(
    record: CompositionRecord,
    backbone: BackboneRecord,
    members: Sequence[AdapterRecord],
    learners: Sequence[TaskRecord],
) -> str:
    """The model card of a bundle."""
    named = f"{backbone.ref}, fingerprint `{backbone.digest}`"
    lines = [
        f"# {record.ref}",
        "",
        f"{counted(len(members), 'task')} on one frozen backbone: {named}.",
        "",
        "| task | classes | class rows | parameters | dataset | recognised samples |",
        "|---|---|---|---|---|---|",
    ]
    for member, task in zip(members, learners, strict=True):
        seen = recognition(member.metrics)
        share = "–" if seen.share is None else f"{seen.share:.1%} of {seen.samples or 'its samples'}"
        names = ", ".join(task.classes).replace("|", "\\|")
        lines.append(
            f"| {member.ref} | {names} | [{member.block[0]}, {member.block[1]}) | {member.parameters:,} "
            f"| {member.dataset} | {share} |"
        )
    for name, weights in _sums(record, members).items():
        shares = " + ".join(f"{weight.whole:g} · {task}" for task, weight in weights.items())
        own = " (some layers have weights of their own)" if any(w.layers for w in weights.values()) else ""
        lines += ["", f"`{name}` is the weighted sum {shares}{own}. Its classes are called `task/class`."]
    told = ", condition=picture" if learners[0].condition else ""
    lines += [
        "",
        "```python",
        "import affinery",
        "",
        'model = affinery.load("this folder")',
        f"images = affinery.draw(model, {learners[0].name!r}, {learners[0].classes[0]!r}, n=4{told})",
        "# (4, C, H, W) in [-1, 1]",
        "```",
        "",
    ]
    return "\n".join(lines)


def _made_ready(place: Path) -> Path:
    """A place below a folder that is there. Raises ConfigInvalid where nothing can be written there."""
    folder = place.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlaceInvalid("--out", str(folder), "cannot be made; choose another", words_of(error)) from error
    if not os.access(folder.parent, os.W_OK):
        raise PlaceInvalid("--out", str(folder), "lies where nothing can be written; choose another", "")
    return folder


def _places(
    record: CompositionRecord, asked: Asked, task: str | None, exports_folder: Path
) -> Iterator[Path]:
    """Where what is asked for may go: where somebody said, or the workspace's own places, one by one."""
    if asked.out is not None:
        yield asked.out
        return
    usual = exports_folder / _usual(record, asked, task)
    yield usual
    for further in count(2):
        yield usual.with_name(f"{usual.name}.{further}")


def _usual(record: CompositionRecord, asked: Asked, task: str | None) -> str:
    """What a folder is called that holds just this: another of the same composition lies beside it."""
    if asked.format == BUNDLE:
        told = [] if asked.backbone else ["no-backbone"]
    else:
        told = [asked.format] if task is None else [asked.format, task]
    name = ".".join([f"{record.name}-{record.version}", *told])
    return name if len(name.encode()) <= MOST_BYTES else digest_of([record.digest, *told])


def composed(sessions: Sessions, store: BlobStore, record: CompositionRecord) -> ComposedModel:
    """A composition's model, of its published bytes."""
    from affinery.bundle import load_bundle

    with TemporaryDirectory() as scratch:
        target = Path(scratch) / "bundle"
        write_composition(sessions, store, record, target)
        return load_bundle(target)
