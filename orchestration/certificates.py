"""The proof that an addition changed nothing older: structure first, then pictures drawn again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from affinery import tensor_files
from orchestration.errors import OlderTaskDisturbed
from registry.records import AdapterRecord, BackboneRecord
from registry.storage.contract import BlobStore

if TYPE_CHECKING:
    from affinery.composed import ComposedModel


@dataclass(frozen=True)
class Certificate:
    """level: 'bit-exact', or 'tolerance' where this environment did not draw the golden images."""

    level: Literal["bit-exact", "tolerance"]
    results: dict[str, Any]


def prove(
    model: ComposedModel,
    backbone: BackboneRecord,
    older: Sequence[AdapterRecord],
    store: BlobStore,
    environment_digest: str,
) -> Certificate:
    """Checks the backbone, the null row and every older adapter in a model that holds the new ones too.

    Raises OlderTaskDisturbed at the first thing that is not what it was.
    """
    results: dict[str, Any] = {
        "backbone": _backbone(model, backbone, store),
        "null_row": _null_row(model, backbone, store),
        "adapters": [_adapter(model, record, store) for record in older],
        "replay": [_replay(model, record, store, environment_digest) for record in older],
    }
    levels = {entry["level"] for entry in results["replay"]}
    return Certificate("tolerance" if "tolerance" in levels else "bit-exact", results)


def _backbone(model: ComposedModel, backbone: BackboneRecord, store: BlobStore) -> dict[str, Any]:
    """The stored file has the fingerprint of its registration, and the model holds exactly its tensors."""
    import torch

    from affinery.backbones.files import inspect_backbone, load_backbone

    path = store.path(backbone.blob_digest)
    found = inspect_backbone(path).fingerprint
    if found != backbone.digest:
        raise OlderTaskDisturbed(backbone.ref, f"its fingerprint is {found[:12]}, not {backbone.digest[:12]}")
    frozen, stored = model.frozen_state(), load_backbone(path).state_dict()
    for name, tensor in stored.items():
        if not torch.equal(frozen[name].cpu(), tensor):
            raise OlderTaskDisturbed(backbone.ref, f"tensor {name!r} was changed in training")
    return {"ref": backbone.ref, "fingerprint": found, "tensors": len(stored), "unchanged": True}


def _null_row(model: ComposedModel, backbone: BackboneRecord, store: BlobStore) -> dict[str, Any]:
    from affinery.backbones.files import load_backbone

    stored = load_backbone(store.path(backbone.blob_digest)).class_table[backbone.null_index]
    now = model.class_table()[backbone.null_index].detach().cpu()
    then_digest, now_digest = (hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in (stored, now))
    if then_digest != now_digest:
        raise OlderTaskDisturbed("the null row", "its bytes are not those of the backbone")
    return {"index": backbone.null_index, "sha256": now_digest, "unchanged": True}


def _adapter(model: ComposedModel, record: AdapterRecord, store: BlobStore) -> dict[str, Any]:
    """Read back out of the composed model, an adapter and its class rows are the published bytes."""
    from affinery.adapters.files import adapter_bytes
    from affinery.adapters.meta import read_meta

    path = store.path(record.blob_digest)
    if tensor_files.sha256_file(path) != record.blob_digest:
        raise OlderTaskDisturbed(record.ref, "its stored file has been changed")
    born, _ = read_meta(path)  # the file keeps the name under which its task was learnt
    held = hashlib.sha256(adapter_bytes(model.adapter(record.task).named(born.task))).hexdigest()
    if held != record.blob_digest:
        raise OlderTaskDisturbed(
            record.ref, "its tensors in the composed model are not those that were published"
        )
    low, high = record.block
    rows = model.class_table()[low:high].detach().cpu().contiguous().numpy().tobytes()
    return {
        "ref": record.ref,
        "digest": record.blob_digest,
        "class_rows": [low, high],
        "class_rows_sha256": hashlib.sha256(rows).hexdigest(),
        "unchanged": True,
    }


def _replay(
    model: ComposedModel, record: AdapterRecord, store: BlobStore, environment_digest: str
) -> dict[str, Any]:
    from trainers.replay import replay

    if record.golden_blob is None:
        raise OlderTaskDisturbed(
            record.ref, "it was registered without golden images, so it cannot be replayed"
        )
    if tensor_files.sha256_file(store.path(record.golden_blob)) != record.golden_blob:
        raise OlderTaskDisturbed(record.ref, "the file of its golden images has been changed")
    outcome = replay(model, store.path(record.golden_blob), environment_digest, record.task)
    if outcome.level == "failed":
        raise OlderTaskDisturbed(
            record.ref, f"it draws other images than before (difference {outcome.difference:.2g})"
        )
    return {"ref": record.ref} | asdict(outcome)
