"""The use cases between the registry and the rest: add, schedule, compose, export. One transaction each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affinery.errors import ConfigInvalid
from orchestration import queue
from orchestration.conditions import check_architecture, check_dataset, facts, one_each
from orchestration.jobs import JobRecord
from orchestration.uploads import uploading
from registry import adapters, backbones, blobs, compositions, datasets, tasks
from registry import names as naming
from registry.records import (
    AdapterRecord,
    BackboneRecord,
    CompositionRecord,
    DatasetRecord,
    ExportRecord,
    TaskRecord,
)
from registry.session import Sessions
from registry.storage.contract import BlobStore

OWNER = "affinery"


def add_backbone(
    sessions: Sessions,
    store: BlobStore,
    path: Path,
    name: str,
    on_note: Callable[[str], None] = lambda _: None,
) -> tuple[BackboneRecord, int]:
    """Checks a backbone, stores its bytes, registers it. → its record and its count of parameters

    path: a backbone file, or what is converted to one: a diffusers folder, an official DiT checkpoint.
    on_note: told what a conversion assumed. Raises BackboneFileInvalid, and the registry's NameInvalid; then
    nothing is stored.
    """
    from affinery.backbones.files import inspect_backbone
    from affinery.backbones.imports import as_backbone_file

    name = naming.checked("backbone", name)
    with as_backbone_file(path, on_note) as file:
        found = inspect_backbone(file)
        with uploading(sessions, OWNER):
            digest = store.put_file(file)
            size_bytes = store.size_bytes(digest)
            with sessions.begin() as session:
                blobs.commit(session, digest, size_bytes)
                record = backbones.register(
                    session,
                    name=name,
                    fingerprint=found.fingerprint,
                    blob_digest=digest,
                    size_bytes=size_bytes,
                    num_classes=found.spec.num_classes,
                    null_index=found.spec.null_index,
                    spec=json.loads(found.spec.to_json()),
                )
    return record, found.parameters


def add_dataset(
    sessions: Sessions, data: Path, origin: Path, *, name: str, **options: Any
) -> tuple[DatasetRecord, list[str]]:
    """Checks a source of images, puts it under DVC, records its version. → its record and notes about it

    options: those of `import_dataset`.
    """
    from orchestration.datasets import import_dataset

    name = naming.checked("dataset", name)
    found = import_dataset(data, origin, name=name, **options)
    with sessions.begin() as session:
        record = datasets.register(
            session,
            name=found.name,
            digest=found.digest,
            dvc_md5=found.dvc_md5,
            dvc_path=found.dvc_path,
            size_bytes=found.size_bytes,
            image_count=found.image_count,
            classes=list(found.classes),
            class_counts=list(found.class_counts),
            licence=found.licence,
            source=found.source,
        )
    return record, list(found.notes)


def schedule(
    sessions: Sessions,
    names: Sequence[str],
    sources: Sequence[str],
    *,
    backbone: str,
    kind: str | Sequence[str],
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
    after: Sequence[str] = (),
    key: str | None = None,
    conditions: Sequence[Mapping[str, Any] | None] = (),
    image_size: int | None = None,
    data: Path | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> JobRecord:
    """Registers new tasks, each with its class block, and queues their training, in one transaction.

    kind: of all tasks, or one a task; config: their settings, each for the kinds that have it.
    conditions: the spatial condition of all tasks, or one a task; image_size: of all tasks, in pixels.
    data: where datasets lie, to check beforehand what they hold; on_note: told what is worth knowing of it.
    key: an idempotency key; a second call with it returns the first's job and registers nothing.
    What the backbone's spec advises fills in what is not given. Raises TaskExists, ConfigInvalid, NotFound …;
    then nothing is there that was not before.
    """
    if len(names) != len(sources):
        raise ConfigInvalid("--dataset", f"{len(sources)} datasets were named for {len(names)} tasks.")
    kinds = [kind] * len(names) if isinstance(kind, str) else list(kind)
    if len(kinds) != len(names):
        raise ConfigInvalid("--kind", f"{len(kinds)} kinds were named for {len(names)} tasks.")
    with sessions.read() as session:
        if key is not None and (known := queue.by_key(session, key)) is not None:
            return known
        chosen = backbones.get(session, backbone)
    full = full_recipe(chosen, recipe)
    configs = _kind_configs(chosen, kinds, config)
    told = one_each(names, conditions)
    own_size = check_architecture(chosen, told, image_size)
    with sessions.begin() as session:
        if key is not None and (known := queue.by_key(session, key)) is not None:
            return known
        for i, name in enumerate(names):
            dataset = datasets.get(session, sources[i])
            if data is not None:
                check_dataset(data, dataset, chosen, told[i], on_note)
            tasks.register(
                session,
                name=name,
                backbone=chosen.ref,
                dataset=dataset.ref,
                kind=kinds[i],
                config=configs[i],
                facts=facts(told[i], own_size),
            )
        return queue.enqueue(session, names, full, after=after, key=key)


def schedule_again(sessions: Sessions, names: Sequence[str], recipe: Mapping[str, Any]) -> JobRecord:
    """Queues tasks that are registered already: after a failure, or for a next version of their adapters."""
    with sessions.begin() as session:
        found = [tasks.get(session, name) for name in names]
        full = full_recipe(backbones.by_id(session, found[0].backbone_id), recipe) if found else {}
        return queue.enqueue(session, names, full)


def full_recipe(backbone: BackboneRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    from affinery.kind_settings import advised_recipe, check_mask_ratio
    from trainers.recipe import Recipe

    arch = backbone.spec["arch"]
    advised = advised_recipe(arch, backbone.spec.get("defaults", {}))
    recipe = Recipe.from_dict({**advised, **given})
    check_mask_ratio(arch, recipe.mask_ratio)
    return recipe.to_dict()


def _kind_configs(
    backbone: BackboneRecord, kinds: Sequence[str], given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Each task's settings, found to fit the backbone. Raises UnknownName or ConfigInvalid."""
    from affinery.adapters import kind as kind_named
    from affinery.backbones.contract import BackboneSpec
    from affinery.kind_settings import advised_settings, check_fits, shared_out

    spec = BackboneSpec.from_json(json.dumps(backbone.spec))
    configs = []
    for kind, own in zip(kinds, shared_out(kinds, given), strict=True):
        advised = advised_settings(kind, spec.arch, spec.defaults)
        configs.append(kind_named(kind).config({**advised, **own}).to_dict())
    check_fits(spec, list(zip(kinds, configs, strict=True)))
    return configs


def compose_tasks(sessions: Sessions, name: str, members: Sequence[str]) -> CompositionRecord:
    """Records a routed composition: each sample names its task. The same members give the same version."""
    with sessions.begin() as session:
        found = [adapters.get(session, ref) for ref in members]
        if not found:
            raise ConfigInvalid("members", "there is none; name one adapter or more.")
        return compositions.register(
            session,
            name=name,
            backbone=found[0].backbone,
            mode="routed",
            recipe={},
            members=[record.ref for record in found],
        )


def write_composition(
    sessions: Sessions, store: BlobStore, record: CompositionRecord, folder: Path
) -> tuple[str, int]:
    """Writes a composition as a bundle. → its digest and its size in bytes"""
    from affinery.bundle import BundleTask, write_bundle

    with sessions.read() as session:
        backbone = backbones.by_id(session, record.backbone_id)
        members = [adapters.by_id(session, node_id) for node_id in record.member_ids]
        learners = [tasks.by_id(session, member.task_id) for member in members]
    for digest in [backbone.blob_digest, *(m.blob_digest for m in members)]:
        store.verify(digest)
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
    manifest = write_bundle(
        folder,
        record.ref,
        store.path(backbone.blob_digest),
        facts,
        parts,
        _card(record, backbone, members, learners),
    )
    return manifest.digest, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _card(
    record: CompositionRecord,
    backbone: BackboneRecord,
    members: Sequence[AdapterRecord],
    learners: Sequence[TaskRecord],
) -> str:
    """The model card of a bundle."""
    lines = [
        f"# {record.ref}",
        "",
        f"{len(members)} tasks on one frozen backbone: {backbone.ref}, fingerprint `{backbone.digest}`.",
        "",
        "| task | classes | class rows | parameters | dataset | recognised samples |",
        "|---|---|---|---|---|---|",
    ]
    for member, task in zip(members, learners, strict=True):
        seen = member.metrics.get("recognition")
        share = f"{seen['share']:.1%} of {seen['samples']}" if seen else "–"
        names = ", ".join(task.classes).replace("|", "\\|")
        lines.append(
            f"| {member.ref} | {names} | [{member.block[0]}, {member.block[1]}) | {member.parameters:,} "
            f"| {member.dataset} | {share} |"
        )
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


def export_bundle(
    sessions: Sessions, store: BlobStore, ref: str, out: Path | None, exports_folder: Path
) -> ExportRecord:
    """Writes a composition as a bundle and records the export. The same export again changes nothing."""
    with sessions.read() as session:
        record = compositions.get(session, ref)
    folder = (out or exports_folder / f"{record.name}-{record.version}").absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(folder.parent, os.W_OK):
        raise ConfigInvalid(str(folder), "its parent folder cannot be written; choose another with --out.")
    digest, size_bytes = write_composition(sessions, store, record, folder)
    with sessions.begin() as session:
        return compositions.record_export(
            session,
            composition=record.ref,
            format="bundle",
            digest=digest,
            path=str(folder),
            size_bytes=size_bytes,
        )
