"""A small registry whose blobs are there: files with their metadata, golden images, proofs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from sqlalchemy.orm import Session

from affinery import tensor_files
from registry import adapters, backbones, blobs, certificates, compositions, tasks
from registry.digests import canonical
from registry.models import Job
from registry.records import AdapterRecord, BackboneRecord
from registry.session import connect, sessions
from registry.storage.contract import BlobStore
from tests import registry_world as world

SPEC = {"arch": "dit", "num_classes": 10, "null_index": 10, "config": {"hidden": 4}}


@dataclass(frozen=True)
class Files:
    """Writes files that say what they are, and puts them into a store."""

    store: BlobStore
    scratch: Path

    def backbone(self, session: Session, name: str = "dit", seed: float = 0.0, **row: Any) -> BackboneRecord:
        """A backbone of one tensor; row overrides what its row says."""
        file = self._file({"weight": np.full(4, seed, np.float32)}, "affinery.backbone", SPEC)
        values: dict[str, Any] = {
            "fingerprint": tensor_files.fingerprint(file, canonical(SPEC).decode()),
            "blob_digest": self.store.put_file(file),
            "size_bytes": file.stat().st_size,
            "num_classes": 10,
            "null_index": 10,
            "spec": SPEC,
        }
        return backbones.register(session, name=name, **(values | row))

    def learnt(
        self, session: Session, name: str, number: int = 1, on: str = "dit", **said: Any
    ) -> AdapterRecord:
        """A further adapter version of a task, golden images and proof with it; said overrides metadata."""
        if name not in [known.name for known in tasks.list_all(session)]:
            world.task(session, name, on)
        task = tasks.get(session, name)
        base = backbones.get(session, task.backbone)
        meta = {
            "task": name,
            "kind": task.kind,
            "config": task.config,
            "backbone": base.digest,
            "null_index": base.null_index,
            "block": list(task.block),
            "class_names": list(task.classes),
            "layout": "append",
        }
        rows = np.full((3, 4), number, np.float32)
        file = self._file({"class_rows": rows}, "affinery.adapter", meta | said)
        golden = f"golden images of {name} {number}".encode()
        golden_digest = self.store.put_bytes(golden)
        blobs.commit(session, golden_digest, len(golden))
        job = f"job-{name}-{number}"
        world.job(session, job, name)
        world.run(session, job, name)
        digest = self.store.put_file(file)
        record = world.publish(
            session,
            job,
            name,
            digest=digest,
            blob_digest=digest,
            size_bytes=file.stat().st_size,
            golden_blob=golden_digest,
        )
        certificates.record(session, stage_adapter=record.ref, results={"adapters": []}, level="bit-exact")
        session.get_one(Job, job).state = "done"
        session.flush()
        return adapters.by_id(session, record.node_id)

    def _file(self, tensors: dict[str, Any], key: str, meta: dict[str, Any]) -> Path:
        path = self.scratch / "file.safetensors"
        path.write_bytes(save(tensors, metadata={key: canonical(meta).decode()}))
        return path


def fill(url: str, store: BlobStore, scratch: Path) -> None:
    """Two backbones, three tasks, four adapter versions, a composition of two and its export."""
    engine = connect(url)
    files = Files(store, scratch)
    with sessions(engine).begin() as session:
        files.backbone(session, "dit")
        files.backbone(session, "unet", seed=1.0)
        files.learnt(session, "digits", 1)
        files.learnt(session, "digits", 2)
        files.learnt(session, "faces", 1)
        files.learnt(session, "birds", 1, on="unet")
        compositions.register(
            session, name="both", backbone="dit", mode="routed", recipe={}, members=["digits@1", "faces"]
        )
        compositions.record_export(
            session, composition="both", format="bundle", digest=world.sha("bundle"), path="/b", size_bytes=1
        )
        world.evaluated(session, "faces")
    engine.dispose()
