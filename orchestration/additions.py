"""Backbones and datasets added: their bytes where they belong, then their record, in one transaction."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from affinery.errors import ConfigInvalid
from orchestration.errors import DatasetInvalid
from orchestration.uploads import uploading
from registry import backbones, blobs, datasets
from registry import names as naming
from registry.records import BackboneRecord, DatasetRecord
from registry.session import Sessions
from registry.storage.contract import BlobStore

OWNER = "affinery"


def add_backbone(
    sessions: Sessions,
    store: BlobStore,
    path: Path,
    name: str,
    on_note: Callable[[str], None] = lambda _: None,
    parent: str | None = None,
) -> tuple[BackboneRecord, int]:
    """Checks a backbone, stores its bytes, registers it. → its record and its count of parameters

    path: a backbone file, or what is converted to one: a diffusers folder, an official DiT checkpoint.
    on_note: told what a conversion assumed. parent: what it was made from, the version before it where none
    is given. Raises BackboneFileInvalid, and the registry's NameInvalid; then nothing is stored.
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
                    parent=parent,
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


def adopt_dataset(
    sessions: Sessions, data: Path, md5: str, remote: str | None, *, name: str, **options: Any
) -> tuple[DatasetRecord, list[str]]:
    """As add_dataset, of what a DVC remote has under this MD5. remote: one that this workspace knows."""
    from orchestration.datasets import repository

    name = naming.checked("dataset", name)
    if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
        raise ConfigInvalid("md5", f"{md5[:100]!r} is none: write the MD5 that a .dvc file pins.")
    with repository.fetched(data, md5, remote) as origin:
        try:
            record, notes = add_dataset(sessions, data, origin, name=name, **options)
            return record, [note.replace(str(origin), md5) for note in notes]
        except DatasetInvalid as error:  # the folder is gone by the time anybody reads of it
            raise error.called(str(origin), md5) from error
