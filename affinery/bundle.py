"""Bundles: a composed model as a folder that verifies itself.

    manifest.json            what is in it, with the SHA-256 of every file; its own digest names the bundle
    backbone.safetensors     the frozen backbone, byte for byte as it was registered
    adapters/<i>.safetensors one file a task, byte for byte as it was published
    golden/<i>.safetensors   what each task draws from pinned seeds
    README.md                the model card

Only safetensors, JSON and Markdown: nothing in a bundle is ever executed. Writing one is copying files, and
needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery import tensor_files
from affinery.errors import BundleInvalid, ConfigInvalid

if TYPE_CHECKING:
    from affinery.composed import ComposedModel

SCHEMA = 1
MANIFEST = "manifest.json"
BACKBONE = "backbone.safetensors"
CARD = "README.md"
PARTS = ("file", "golden")
MANIFEST_LIMIT_BYTES = 50_000_000
ALLOWED = re.compile(r"backbone\.safetensors|README\.md|(adapters|golden)/[0-9]{1,4}\.safetensors")


@dataclass(frozen=True)
class BundleTask:
    """One task to ship. file, golden: paths of its adapter and of its golden images."""

    name: str
    ref: str
    kind: str
    class_names: tuple[str, ...]
    block: tuple[int, int]
    file: Path
    golden: Path | None
    dataset: str


@dataclass(frozen=True)
class Manifest:
    """A bundle's manifest that was found in order. digest: of the manifest's own bytes."""

    folder: Path
    name: str
    backbone: dict[str, Any]
    tasks: tuple[dict[str, Any], ...]
    files: dict[str, str]
    digest: str


def write_bundle(
    folder: Path,
    name: str,
    backbone_file: Path,
    backbone: dict[str, Any],
    tasks: Sequence[BundleTask],
    card: str,
) -> Manifest:
    """Writes a bundle: it is there whole under its name or not at all. A bundle of the same content is kept.

    backbone: at least `ref` and `fingerprint`. Raises ConfigInvalid where another thing is in the way.
    """
    folder = folder.absolute()
    part = folder.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        _copy(backbone_file, part / BACKBONE)
        tensor_files.write_whole(part / CARD, card.encode())
        entries = []
        for i, task in enumerate(tasks):
            entry = {
                "name": task.name,
                "ref": task.ref,
                "kind": task.kind,
                "class_names": list(task.class_names),
                "block": list(task.block),
                "dataset": task.dataset,
                "file": f"adapters/{i}.safetensors",
            }
            _copy(task.file, part / f"adapters/{i}.safetensors")
            if task.golden is not None:
                entry["golden"] = f"golden/{i}.safetensors"
                _copy(task.golden, part / f"golden/{i}.safetensors")
            entries.append(entry)
        written = sorted(path for path in part.rglob("*") if path.is_file())
        manifest = {
            "schema": SCHEMA,
            "name": name,
            "backbone": backbone | {"file": BACKBONE},
            "tasks": entries,
            "files": {path.relative_to(part).as_posix(): tensor_files.sha256_file(path) for path in written},
        }
        body = json.dumps(manifest, sort_keys=True, ensure_ascii=False, indent=1).encode()
        tensor_files.write_whole(part / MANIFEST, body)
        for below in [path for path in part.iterdir() if path.is_dir()]:
            tensor_files.make_durable(below)
        _put_in_place(part, folder, body)
        return read_manifest(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _put_in_place(part: Path, folder: Path, body: bytes) -> None:
    """Gives a finished bundle its name, unless the same bundle has it already."""
    if not os.path.lexists(folder):
        try:
            part.rename(folder)
            tensor_files.make_durable(folder.parent)
            return
        except OSError:
            if not os.path.lexists(folder):
                raise
            # somebody else has written it in this very moment
    if _manifest_bytes(folder) != body:
        raise ConfigInvalid(str(folder), "something else is there already; choose another folder.")
    verify_bundle(folder)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    tensor_files.make_durable(target)


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else b""


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest and checks that it is one; the files are not looked at. Raises BundleInvalid."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleInvalid(str(folder), f"there is no {MANIFEST} in it.")
    try:
        if path.stat().st_size > MANIFEST_LIMIT_BYTES:
            raise ValueError(f"it is larger than {MANIFEST_LIMIT_BYTES:,} bytes")
        body = path.read_bytes()
        raw = tensor_files.read_json(body)
        if raw["schema"] != SCHEMA:
            raise BundleInvalid(str(folder), f"its schema is {raw['schema']}, this Affinery reads {SCHEMA}.")
        files = {str(name): str(digest) for name, digest in raw["files"].items()}
        tasks = tuple(_task_entry(task) for task in raw["tasks"])
        found = Manifest(
            folder,
            str(raw["name"]),
            dict(raw["backbone"]),
            tasks,
            files,
            hashlib.sha256(body).hexdigest(),
        )
        named = [
            str(found.backbone["file"]),
            *(task[part] for task in tasks for part in PARTS if part in task),
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleInvalid(str(folder), f"its {MANIFEST} cannot be read: {error!r}.") from error
    for name in [*files, *named]:
        if not ALLOWED.fullmatch(name) or name not in files:
            raise BundleInvalid(str(folder), f"its manifest names {name!r}, which no bundle holds.")
    if found.backbone["file"] != BACKBONE or len({task["name"] for task in tasks}) < len(tasks):
        raise BundleInvalid(str(folder), "its manifest names a task twice, or another file as the backbone.")
    return found


def _task_entry(raw: Any) -> dict[str, Any]:
    """One task of a manifest, if it says all that it must. Raises ValueError or KeyError."""
    for key in ("name", "ref", "kind", "dataset", *(part for part in PARTS if part in raw), "file"):
        if not isinstance(raw[key], str):
            raise ValueError(f"a task's {key} is not text")
    if not all(isinstance(label, str) for label in raw["class_names"]) or len(raw["block"]) != 2:
        raise ValueError(f"the classes of task {raw['name']!r} are not names, or their rows no range")
    return dict(raw)


def verify_bundle(folder: Path) -> Manifest:
    """Checks every file against the manifest; raises BundleInvalid naming the first that differs."""
    manifest = read_manifest(folder)
    for name, digest in sorted(manifest.files.items()):
        path = folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise BundleInvalid(str(folder), f"{name} is a link; a bundle holds its files itself.")
        if not path.is_file():
            raise BundleInvalid(str(folder), f"{name} is missing.")
        if tensor_files.sha256_file(path) != digest:
            raise BundleInvalid(str(folder), f"{name} has been changed: its SHA-256 is not the manifest's.")
    return manifest


def load_bundle(folder: Path) -> ComposedModel:
    """The composed model of a bundle, verified. Raises BundleInvalid and what adapters' checks raise."""
    from affinery.adapters.files import read_adapter
    from affinery.backbones.files import inspect_backbone, load_backbone
    from affinery.composed import ComposedModel

    manifest = verify_bundle(folder)
    path = folder / BACKBONE
    fingerprint = inspect_backbone(path).fingerprint
    if fingerprint != manifest.backbone.get("fingerprint"):
        raise BundleInvalid(str(folder), "its backbone is not the one that the manifest names.")
    model = ComposedModel(load_backbone(path), fingerprint)
    for task in manifest.tasks:
        adapter = read_adapter(folder / task["file"]).named(task["name"])
        held = (adapter.meta.kind, [*adapter.meta.class_names], [*adapter.meta.block])
        if held != (task["kind"], task["class_names"], task["block"]):
            raise BundleInvalid(str(folder), f"{task['file']} has other classes than the manifest says.")
        model.load(adapter)
    return model
