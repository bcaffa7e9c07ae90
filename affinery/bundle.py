"""Bundles: a composed model as a folder that verifies itself.

    manifest.json            what is in it, with the SHA-256 of every file; its own digest names the bundle
    backbone.safetensors     the frozen backbone, byte for byte as it was registered; or left out, its
                             fingerprint alone standing in the manifest
    adapters/<i>.safetensors one file a task, byte for byte as it was published
    golden/<i>.safetensors   what each task draws from pinned seeds
    samples.png, README.md   the model card
    bundle.sig               a signature of all the others, if there is one

Only safetensors, JSON, Markdown and a picture: nothing in a bundle is ever executed. Reading its manifest and
checking its files needs no torch.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affinery import tensor_files
from affinery.errors import BundleInvalid
from affinery.merge_recipe import Weight

if TYPE_CHECKING:
    from affinery.composed import ComposedModel

SCHEMA = 1
MANIFEST = "manifest.json"
BACKBONE = "backbone.safetensors"
CARD = "README.md"
SAMPLES = "samples.png"
SIGNATURE = "bundle.sig"
PARTS = ("file", "golden")
MANIFEST_LIMIT_BYTES = 50_000_000
MERGES_LIMIT = 256  # each is a task of its own in memory
AT_ONCE = 8  # files that are read side by side
ALLOWED = re.compile(
    r"backbone\.safetensors|README\.md|samples\.png|(adapters|golden)/[0-9]{1,4}\.safetensors"
)


@dataclass(frozen=True)
class Manifest:
    """A bundle's manifest that was found in order. digest: of the manifest's own bytes.

    merges: the weights of each merged task's members, by its name.
    """

    folder: Path
    name: str
    backbone: dict[str, Any]
    tasks: tuple[dict[str, Any], ...]
    merges: dict[str, dict[str, Weight]]
    files: dict[str, str]
    digest: str

    @property
    def holds_backbone(self) -> bool:
        return "file" in self.backbone


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest and checks that it is one; the files are not looked at. Raises BundleInvalid."""
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        what = f"its {MANIFEST} is a link" if path.is_symlink() else f"there is no {MANIFEST} in it"
        raise BundleInvalid(str(folder), f"{what}.")
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
            _merges(raw.get("merges", {}), {task["name"] for task in tasks}),
            files,
            hashlib.sha256(body).hexdigest(),
        )
        named = [
            *([str(found.backbone["file"])] if found.holds_backbone else []),
            *(task[part] for task in tasks for part in PARTS if part in task),
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleInvalid(str(folder), f"its {MANIFEST} cannot be read: {error!r}.") from error
    for name in [*files, *named]:
        if not ALLOWED.fullmatch(name) or name not in files:
            raise BundleInvalid(str(folder), f"its manifest names {name!r}, which no bundle holds.")
    if found.backbone.get("file", BACKBONE) != BACKBONE or len({task["name"] for task in tasks}) < len(tasks):
        raise BundleInvalid(str(folder), "its manifest names a task twice, or another file as the backbone.")
    return found


def _merges(raw: Any, tasks: set[str]) -> dict[str, dict[str, Weight]]:
    """The sums of tasks in a manifest. Raises ValueError, KeyError or TypeError."""
    if len(raw) > MERGES_LIMIT:
        raise ValueError(f"it has {len(raw):,} sums, and {MERGES_LIMIT} are the most")
    found = {
        str(name): {str(task): Weight.from_json(weight) for task, weight in members.items()}
        for name, members in raw.items()
    }
    for name, members in found.items():
        if not members or members.keys() - tasks or name in tasks:
            raise ValueError(f"the merged task {name!r} is no sum of its tasks")
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
    names = sorted(manifest.files)
    for name in names:
        path = folder / name
        if (path.parent != folder and path.parent.is_symlink()) or path.is_symlink():
            raise BundleInvalid(str(folder), f"{name} is a link; a bundle holds its files itself.")
        if not path.is_file():
            raise BundleInvalid(str(folder), f"{name} is missing.")
    for name in _there(folder):
        if name not in manifest.files and name not in (MANIFEST, SIGNATURE):
            raise BundleInvalid(str(folder), f"{name!r} is in it, which its manifest does not name.")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(partial(_digest, folder), names)
        for name, digest in zip(names, found, strict=True):
            if digest != manifest.files[name]:
                raise BundleInvalid(
                    str(folder), f"{name} has been changed: its SHA-256 is not the manifest's."
                )
    return manifest


def _there(folder: Path) -> Iterator[str]:
    """Whatever lies in a bundle, links too, except what is hidden: tools leave such, and nobody reads it."""
    for place, below, files in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        links = [name for name in below if (Path(place) / name).is_symlink()]
        for name in [*files, *links]:
            if not name.startswith("."):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _digest(folder: Path, name: str) -> str:
    try:
        return tensor_files.sha256_file(folder / name)
    except OSError as error:
        raise BundleInvalid(str(folder), f"{name} cannot be read ({error.strerror}).") from error


def load_bundle(folder: Path, backbone: Path | None = None, signed_by: Path | None = None) -> ComposedModel:
    """The composed model of a bundle, verified. Raises BundleInvalid and what adapters' checks raise.

    backbone: its file, for a bundle that names its backbone by the fingerprint alone. signed_by: the public
    key (PEM) of whoever must have signed it.
    """
    from affinery.adapters.files import read_adapter
    from affinery.backbones.files import inspect_backbone, load_checked
    from affinery.composed import ComposedModel

    if signed_by is not None:
        from affinery.signing import verify_signature

        verify_signature(folder, signed_by)
    manifest = verify_bundle(folder)
    path = _backbone_file(manifest, backbone)
    checked = inspect_backbone(path)
    if checked.fingerprint != manifest.backbone.get("fingerprint"):
        whose = "its backbone" if manifest.holds_backbone else str(path)
        raise BundleInvalid(str(folder), f"{whose} is not the one that the manifest names.")
    model = ComposedModel(load_checked(checked), checked.fingerprint)
    for task in manifest.tasks:
        adapter = read_adapter(folder / task["file"]).named(task["name"])
        held = (adapter.meta.kind, [*adapter.meta.class_names], [*adapter.meta.block])
        if held != (task["kind"], task["class_names"], task["block"]):
            raise BundleInvalid(str(folder), f"{task['file']} has other classes than the manifest says.")
        model.load(adapter)
    for name, weights in manifest.merges.items():
        model.merge(name, weights)
    return model


def _backbone_file(manifest: Manifest, given: Path | None) -> Path:
    """Where the backbone is. Raises BundleInvalid."""
    if manifest.holds_backbone:
        if given is not None:
            raise BundleInvalid(str(manifest.folder), "it holds its backbone; load it without another.")
        return manifest.folder / BACKBONE
    if given is None:
        known = (
            f"{manifest.backbone.get('ref')}, fingerprint {str(manifest.backbone.get('fingerprint'))[:12]}"
        )
        raise BundleInvalid(
            str(manifest.folder), f"its backbone ({known}) is not in it; give that file as well (backbone=…)."
        )
    return given
