"""A bundle of many adapters: written against copying the same files, opened against reading them.

    python -m benchmarks.bundles [--quick] [--json FILE]

Both sides write the same bytes to the same disk and wait until they are on it, in turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from affinery import tensor_files
from affinery.adapters.files import adapter_bytes
from affinery.backbones.files import inspect_backbone, load_backbone, save_backbone
from affinery.bundle import load_bundle
from affinery.bundle_writing import BundleTask, write_bundle
from benchmarks.timing import CLOCKS, Figure, Spread, show, write
from tests import tiny_models as tiny

ADAPTERS, QUICK_ADAPTERS = 100, 10
ROUNDS, QUICK_ROUNDS = 7, 3
WIDTH, DEPTH, RANK = 384, 4, 8
BANDWIDTH_TARGET = 0.8  # of copying
OPENING_TARGET_SECONDS = 1.0  # beside reading


def parts(folder: Path, count: int) -> tuple[Path, str, list[BundleTask]]:
    """A backbone and so many adapters on it, as a store holds them."""
    config = {"width": WIDTH, "depth": DEPTH, "heads": 6, "patch": 2}
    save_backbone(tiny.backbone(config=config, image_size=16), folder / "backbone")
    fingerprint = inspect_backbone(folder / "backbone").fingerprint
    base = load_backbone(folder / "backbone")
    first = tiny.adapter(tiny.meta("t", (4, 6), RANK, backbone=fingerprint), 1, base)
    tasks = []
    for i in range(count):
        meta = tiny.meta(f"t{i}", (4 + 2 * i, 6 + 2 * i), RANK, backbone=fingerprint)
        file = folder / f"{i}.safetensors"
        file.write_bytes(adapter_bytes(type(first)(meta, first.tensors)))
        said = (meta.task, f"t{i}@1", meta.kind, meta.class_names, meta.block)
        tasks.append(BundleTask(*said, file, None, "d@1"))
    return folder / "backbone", fingerprint, tasks


def copied(files: list[Path], folder: Path) -> None:
    """The bare work: every file copied, and on the disk."""
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
        tensor_files.make_durable(folder / file.name)
    tensor_files.make_durable(folder)
    shutil.rmtree(folder)


def figures(folder: Path, count: int, rounds: int) -> tuple[list[Figure], int]:
    """→ the figures, and how many bytes a bundle has."""
    clock = CLOCKS["wall"]
    backbone, fingerprint, tasks = parts(folder, count)
    files = [backbone, *(task.file for task in tasks)]
    facts = {"ref": "b@1", "fingerprint": fingerprint}
    digests = {file: tensor_files.sha256_file(file) for file in files}

    def bundled() -> None:
        write_bundle(folder / "bundle", "b@1", backbone, facts, tasks, "# b\n", digests=digests)
        shutil.rmtree(folder / "bundle")

    slower = clock.over(lambda: copied(files, folder / "copy"), {"bundle": bundled}, rounds)["bundle"]
    write_bundle(folder / "bundle", "b@1", backbone, facts, tasks, "# b\n", digests=digests)
    inside = [path for path in (folder / "bundle").rglob("*") if path.is_file()]

    def read() -> None:
        """What opening cannot do without: every byte read once and digested."""
        for path in inside:
            tensor_files.sha256_file(path)

    taken = clock.in_turns({"open": lambda: load_bundle(folder / "bundle"), "read": read}, rounds)
    beyond = [one - bare for one, bare in zip(taken["open"], taken["read"], strict=True)]
    return [
        Figure(
            "writing, share of the speed of copying",
            "×",
            Spread.of([1 / ratio for ratio in slower]),
            target=BANDWIDTH_TARGET,
            more_is_better=True,
        ),
        Figure("opening, beyond reading", "s", Spread.of(beyond), target=OPENING_TARGET_SECONDS),
        Figure("opening, all of it", "s", Spread.of(taken["open"]), Spread.of(taken["read"])),
    ], sum(path.stat().st_size for path in inside)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bundles", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer adapters and rounds")
    parser.add_argument("--adapters", type=int, help="how many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()
    count = chosen.adapters or (QUICK_ADAPTERS if chosen.quick else ADAPTERS)
    versions = {"torch": version("torch"), "python": platform.python_version()}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found, size = figures(Path(folder), count, QUICK_ROUNDS if chosen.quick else ROUNDS)
    facts: dict[str, Any] = {"adapters": count, "bytes": size, "versions": versions, "load": load}
    title = f"a bundle of {count} adapters, {size / 1e6:,.0f} MB"
    show(title, f"load {load:.1f} at the start", found, rival="bare")
    if chosen.json:
        write(chosen.json, facts, found)


if __name__ == "__main__":
    main()
