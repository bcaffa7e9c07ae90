"""Writing a bundle: copying files, and digesting them while they are copied. No torch here."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affinery import tensor_files
from affinery.adapters.meta import read_meta
from affinery.bundle import BACKBONE, CARD, MANIFEST, SAMPLES, SCHEMA, Manifest, read_manifest, verify_bundle
from affinery.errors import AdapterBackboneMismatch, BundleInvalid, PlaceInvalid
from affinery.merge_recipe import Weight
from affinery.sample_grid import sample_grid

AT_ONCE = 4  # files that are copied side by side, each with its digest


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


def write_bundle(
    folder: Path,
    name: str,
    backbone_file: Path | None,
    backbone: dict[str, Any],
    tasks: Sequence[BundleTask],
    card: str,
    merges: Mapping[str, Mapping[str, Weight]] | None = None,
    digests: Mapping[Path, str] | None = None,
) -> Manifest:
    """Writes a bundle: it is there whole under its name or not at all. A bundle of the same content is kept.

    backbone_file: None leaves the backbone out, which then must be given again at load; backbone: at least
    `ref` and `fingerprint`. merges: the weights of members of each merged task. digests: the SHA-256 that
    sources are known to have.

    Raises ConfigInvalid where another thing is in the way, BundleInvalid where a source is not what it was,
    AdapterBackboneMismatch where an adapter is of another backbone.
    """
    folder = folder.absolute()
    part = folder.with_name(f".{uuid.uuid4().hex}.part")
    sources = {} if backbone_file is None else {BACKBONE: backbone_file}
    entries = []
    for i, task in enumerate(tasks):
        entry: dict[str, Any] = {
            "name": task.name,
            "ref": task.ref,
            "kind": task.kind,
            "class_names": list(task.class_names),
            "block": list(task.block),
            "dataset": task.dataset,
            "file": f"adapters/{i}.safetensors",
        }
        sources[entry["file"]] = task.file
        if task.golden is not None:
            entry["golden"] = f"golden/{i}.safetensors"
            sources[entry["golden"]] = task.golden
        entries.append(entry)
    _check_backbones(tasks, backbone)
    try:
        part.mkdir(parents=True)
        files = _copied(sources, part, digests or {})
        grid = sample_grid([(task.name, task.golden) for task in tasks if task.golden is not None])
        if grid is not None:
            card = f"{card}\n![What each task draws from its pinned seeds]({SAMPLES})\n"
        for path, content in ((CARD, card.encode()), (SAMPLES, grid)):
            if content is not None:
                tensor_files.write_whole(part / path, content)
                files[path] = tensor_files.sha256_file(part / path)
        manifest = {
            "schema": SCHEMA,
            "name": name,
            "backbone": backbone | ({} if backbone_file is None else {"file": BACKBONE}),
            "tasks": entries,
            "merges": {
                merge: {task: weight.to_json() for task, weight in members.items()}
                for merge, members in (merges or {}).items()
            },
            "files": files,
        }
        body = json.dumps(manifest, sort_keys=True, ensure_ascii=False, indent=1).encode()
        tensor_files.write_whole(part / MANIFEST, body)
        for below in [path for path in part.iterdir() if path.is_dir()]:
            tensor_files.make_durable(below)
        _put_in_place(part, folder, body)
        return read_manifest(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_backbones(tasks: Sequence[BundleTask], backbone: Mapping[str, Any]) -> None:
    for task in tasks:
        found = read_meta(task.file)[0].backbone
        if found != backbone.get("fingerprint"):
            raise AdapterBackboneMismatch(task.name, str(backbone.get("fingerprint")), found)


def _copied(sources: Mapping[str, Path], part: Path, digests: Mapping[Path, str]) -> dict[str, str]:
    """Copies every source to its name below a folder, each digested while it is copied. → digests by name"""
    for parent in {(part / name).parent for name in sources}:
        parent.mkdir(parents=True, exist_ok=True)
    largest_first = sorted(sources, key=lambda name: -sources[name].stat().st_size)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = {}
        copies = []
        for name in largest_first:
            copies.append(pool.submit(_copy, sources[name], part / name))
            found[name] = pool.submit(tensor_files.sha256_file, sources[name])
        for copy in copies:
            copy.result()
        taken = {name: digest.result() for name, digest in found.items()}
    for name, source in sources.items():
        if digests.get(source, taken[name]) != taken[name]:
            raise BundleInvalid(
                str(source), "its SHA-256 is not the one that was recorded. Look for more: affinery verify"
            )
    return taken


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    tensor_files.make_durable(target)


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
        raise PlaceInvalid("the folder", str(folder), "is taken: something else is there already", "")
    verify_bundle(folder)


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else b""
