"""Published adapters in the file formats of others."""

from __future__ import annotations

from pathlib import Path

from affinery.errors import ConfigInvalid
from orchestration.specs import spec_of
from registry import adapters, backbones
from registry.records import AdapterRecord
from registry.session import Sessions
from registry.storage.contract import BlobStore

FORMATS = ("peft", "diffusers")


def export_lora(
    sessions: Sessions, store: BlobStore, ref: str, file_format: str, folder: Path
) -> AdapterRecord:
    """Writes a published LoRA as a folder that PEFT or diffusers reads. → its record

    Nothing is recorded: the folder is made of the version's own bytes alone. Raises ConfigInvalid where the
    adapter is no LoRA or the format does not know its backbone, and the registry's NotFound.
    """
    from affinery.adapters.files import read_adapter
    from affinery.backbones import architecture
    from affinery.backbones.contract import on_meta
    from affinery.interchange import write_diffusers, write_peft

    writers = dict(zip(FORMATS, (write_peft, write_diffusers), strict=True))
    if file_format not in writers:
        raise ConfigInvalid("--format", f"{file_format!r} is none of {', '.join(FORMATS)}.")
    with sessions.read() as session:
        record = adapters.get(session, ref)
        backbone = backbones.by_id(session, record.backbone_id)
    store.verify(record.blob_digest)
    spec = spec_of(backbone)
    adapter = read_adapter(store.path(record.blob_digest), record.blob_digest).named(record.task)
    writers[file_format](adapter, on_meta(spec, architecture(spec.arch)), folder)
    return record
