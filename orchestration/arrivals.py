"""Adapters that were trained elsewhere: their files are held against the task that they say they are of.

No torch: what a file says, that its numbers are numbers, and that it is of this task's backbone and rows can
be seen without. Whether its tensors fit the backbone's layers is seen when a model is composed of it.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from affinery.adapters import meta as adapter_files
from affinery.adapters.meta import AdapterMeta
from affinery.errors import AdapterBackboneMismatch, AdapterFileInvalid
from affinery.tensor_files import Header
from registry import adapters, backbones, blobs, certificates, renaming, tasks
from registry.records import AdapterRecord, BackboneRecord, TaskRecord
from registry.session import Sessions
from registry.storage.contract import BlobStore

# Where the exponent lies in each kind of number: all of its bits are set in what is not finite.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Arrival:
    """A file that fits its task."""

    task: TaskRecord
    blob: str
    parameters: int


def checked(sessions: Sessions, store: BlobStore, task: str, blob: str) -> Arrival:
    """The file of this digest as an adapter of this task.

    Raises NotFound, BlobUnknown, AdapterFileInvalid, AdapterBackboneMismatch, and what the store raises.
    """
    with sessions.read() as session:
        learner = tasks.get(session, task)
        backbone = backbones.by_id(session, learner.backbone_id)
        names = renaming.names_ever(session, "task", learner.name)
        blobs.size_bytes(session, blob)
    path = store.path(blob)
    try:
        said, header = adapter_files.read_meta(path)
        _agree(said, learner, backbone, names)
        _finite(path, header)
    except AdapterFileInvalid as error:
        _, reason = error.args  # where the store keeps it is nothing to its sender
        raise AdapterFileInvalid(f"Blob {blob[:12]}", reason) from error
    return Arrival(learner, blob, adapter_files.parameters(header))


def record(
    session: Session,
    arrival: Arrival,
    *,
    provenance: dict[str, Any],
    metrics: dict[str, Any],
    mlflow_run_id: str | None = None,
    warm_start: str | None = None,
) -> AdapterRecord:
    """Record it as its task's next version; its certificate says that nothing was proved here."""
    brought = adapters.bring_in(
        session,
        task=f"task:{arrival.task.name}",
        blob_digest=arrival.blob,
        parameters=arrival.parameters,
        provenance=provenance | {"imported": True},
        metrics=metrics,
        mlflow_run_id=mlflow_run_id,
        warm_start=warm_start,
    )
    certificates.record(session, stage_adapter=brought, results={"imported": True}, level="unverified")
    return brought


def _agree(said: AdapterMeta, task: TaskRecord, backbone: BackboneRecord, names: Collection[str]) -> None:
    """names: all that the task ever had; it may have been renamed since the file was written."""
    if said.backbone != backbone.digest:
        raise AdapterBackboneMismatch(task.name, backbone.digest, said.backbone)
    wanted = {
        "task": said.task if said.task in names else task.name,
        "kind": task.kind,
        "config": task.config,
        "null_index": backbone.null_index,
        "block": task.block,
        "class_names": task.classes,
        "condition": task.condition,
        "image_size": task.image_size,
    }
    for name, value in wanted.items():
        if getattr(said, name) != value:
            shown = str(getattr(said, name))[:200]
            raise AdapterFileInvalid("", f"it says {name} {shown}, and its task has {str(value)[:200]}.")


def _finite(path: Path, header: Header) -> None:
    """Whether every number is one, by its bits: BF16 has no name in NumPy."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for name, entry in header.tensors.items():
            kind, exponent = _EXPONENTS[entry.dtype]
            for start in range(entry.start, entry.stop, _AT_ONCE):
                bits = np.frombuffer(view[start : min(start + _AT_ONCE, entry.stop)], kind)
                if bool(((bits & bits.dtype.type(exponent)) == exponent).any()):
                    raise AdapterFileInvalid("", f"tensor {name!r} holds values that are not finite.")
