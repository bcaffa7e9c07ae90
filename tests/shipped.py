"""What tests serve: a bundle of two tasks on a tiny backbone, and a model whose tasks are told things."""

from __future__ import annotations

from pathlib import Path

from affinery.adapters.files import adapter_bytes
from affinery.backbones.files import inspect_backbone, save_backbone
from affinery.bundle_writing import BundleTask, write_bundle
from affinery.composed import ComposedModel
from tests import tiny_models as tiny
from tests import tiny_unets

TASKS = {"digits": (4, 6), "letters": (6, 9)}


def write_both(folder: Path) -> Path:
    """Two and three classes, each task at version 1. → the bundle, in that folder"""
    save_backbone(tiny.backbone(), folder / "backbone")
    fingerprint = inspect_backbone(folder / "backbone").fingerprint
    tasks = []
    for seed, (name, block) in enumerate(TASKS.items()):
        meta = tiny.meta(name, block, 2, backbone=fingerprint)
        (folder / name).write_bytes(adapter_bytes(tiny.adapter(meta, seed)))
        tasks.append(
            BundleTask(name, f"{name}@1", "affiner", meta.class_names, block, folder / name, None, "d@1")
        )
    facts = {"ref": "tiny@1", "fingerprint": fingerprint}
    write_bundle(folder / "bundle", "both@1", folder / "backbone", facts, tasks, "# both\n")
    return folder / "bundle"


def told_model() -> ComposedModel:
    """On a U-Net that takes captions: a task that is told edges, and one of classes."""
    base = tiny_unets.built(tiny_unets.text_spec())
    condition = {"name": "canny", "channels": 1}
    metas = [
        tiny.meta("edges", (4, 5), kind="bitfit", config={}, condition=condition),
        tiny.meta("digits", (5, 7), kind="bitfit", config={}),
    ]
    made = [tiny.adapter(meta, seed, tiny_unets.built(base.spec)) for seed, meta in enumerate(metas)]
    return tiny.composed(*made, base=base)
