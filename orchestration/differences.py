"""What differs between two adapters or two compositions: what is recorded of them, and their tensors."""

from __future__ import annotations

from typing import Any

from affinery.tensor_files import NotSafetensors
from orchestration.tensor_differences import TensorDifference, tensor_differences
from registry.diff import diff
from registry.records import AdapterRecord
from registry.session import Sessions
from registry.storage.contract import BlobStore


def differences(
    sessions: Sessions, store: BlobStore, left: str, right: str, *, tensors: bool = True
) -> dict[str, Any]:
    """As `registry.diff` tells it, and `tensors` beside; None of compositions, and where none are wanted.

    Raises what `registry.diff` raises; where tensors are read, BlobMissing and BlobDamaged.
    """
    with sessions.read() as session:
        found = diff(session, left, right)
    apart: list[TensorDifference] | None = None
    if tensors and isinstance(found.left, AdapterRecord) and isinstance(found.right, AdapterRecord):
        apart = _apart(store, found.left.blob_digest, found.right.blob_digest)
    return found.to_json() | {"tensors": None if apart is None else [each.to_json() for each in apart]}


def _apart(store: BlobStore, left: str, right: str) -> list[TensorDifference]:
    try:
        return tensor_differences(store.path(left), store.path(right))
    except NotSafetensors:
        for digest in (left, right):  # adapters were whole when they were put there
            store.verify(digest)
        raise
