"""Prepares the datasets of the papers' tables as packs, each with its licence and source.

    python -m benchmarks.papers.data --out data/papers

    digits, letters, animals   as they come with Affinery
    twemoji                    npm package emoji-datasource-twitter, by category (graphics CC BY 4.0)
    silhouettes                the same pictures as twemoji, each with its transparency as a map
    noto                       npm package emoji-datasource-google, by subcategory (Apache-2.0), to pretrain

The npm packages are fetched with `npm pack` into OUT/packages, unless they lie there. What is there stays.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from affinery.errors import ConfigInvalid
from benchmarks.papers.folders import LAYOUTS, Picture, listed
from benchmarks.papers.silhouettes import silhouette
from trainers.packs import IMAGES, MANIFEST, Manifest, PackWriter, read_manifest

SHIPPED = ("digits", "letters", "animals")
VERSION = "16.0.0"


@dataclass(frozen=True)
class Emoji:
    """A package's pictures. by: what their classes are; fewest: images of a class; skins: in every tone.

    mapped: each with what is figure and what is ground.
    """

    vendor: str
    by: str
    licence: str
    fewest: int = 20
    skins: bool = False
    mapped: bool = False


EMOJI = {
    "twemoji": Emoji("twitter", "category", "CC BY 4.0 (graphics), MIT (data)"),
    "silhouettes": Emoji("twitter", "category", "CC BY 4.0 (graphics), MIT (data)", mapped=True),
    "noto": Emoji("google", "subcategory", "Apache-2.0 (graphics), MIT (data)", fewest=5, skins=True),
}
LEFT_OUT = ("Component", "Symbols", "keycap", "alphanum", "skin-tone")

Labelled = Iterable[tuple[str, str, bytes]]
"""class, name, content of each image."""


def write_pack(out: Path, images: Labelled, licence: str, source: str, mapped: bool = False) -> Manifest:
    """Packs images class by class, written whole; one that is there stays. mapped: with their silhouettes."""
    if (out / MANIFEST).exists():
        return read_manifest(out)
    ordered = sorted(images)
    classes = tuple(sorted({label for label, _, _ in ordered}))
    told = ((Picture(label, name), content) for label, name, content in ordered)
    return _written(out, told, classes, licence, source, mapped)


def _written(
    out: Path,
    images: Iterable[tuple[Picture, bytes]],
    classes: tuple[str, ...],
    licence: str,
    source: str,
    mapped: bool = False,
) -> Manifest:
    """images: class by class, one in memory at a time. Raises ConfigInvalid for what is no picture."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as scratch:
        whole = Path(scratch) / "pack"
        whole.mkdir()
        with PackWriter(whole, classes, licence, source) as writer:
            for picture, content in images:
                with _opened(content, picture.name) as opened:
                    (width, height), mode = opened.size, opened.mode
                    extension = (opened.format or "png").lower()
                    map_of = (silhouette(opened), "png", picture.name) if mapped else None
                writer.add(
                    content,
                    classes.index(picture.label),
                    extension=extension,
                    width=width,
                    height=height,
                    mode=mode,
                    source_name=picture.name,
                    text=picture.text,
                    condition=map_of,
                )
            writer.finish()
        whole.rename(out)
    return read_manifest(out)


def _opened(content: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except OSError as error:
        raise ConfigInvalid("data", f"{name} is no picture that can be read: {error}.") from error


def pack_folder(out: Path, data: Path, name: str) -> Manifest:
    """Packs a dataset of the papers from the user's folder. Raises ConfigInvalid where it is not whole."""
    if (out / MANIFEST).exists():
        return read_manifest(out)
    pictures, layout = listed(data, name)
    classes = tuple(sorted({picture.label for picture, _ in pictures}))
    contents = ((picture, path.read_bytes()) for picture, path in pictures)
    return _written(out, contents, classes, layout.licence, layout.source)


def shipped(name: str) -> tuple[list[tuple[str, str, bytes]], str, str]:
    """A dataset that comes with Affinery, its licence and its source."""
    assets = files("affinery_app") / "assets" / "datasets"
    about = json.loads((assets / "index.json").read_text(encoding="utf-8"))[name]
    with as_file(assets / f"{name}.zip") as path, zipfile.ZipFile(path) as archive:
        found = [
            (entry.split("/")[-2], entry, archive.read(entry))
            for entry in archive.namelist()
            if entry.endswith(".png")
        ]
    return found, about["licence"], about["source"]


def emoji(package: Path, asked: Emoji) -> Iterator[tuple[str, str, bytes]]:
    """The pictures of an emoji-datasource package, without letters, digits and signs."""
    prefix, there = f"package/img/{asked.vendor}/64/", f"has_img_{asked.vendor}"
    with tarfile.open(package) as archive:
        listed = archive.extractfile("package/emoji.json")
        assert listed is not None
        wanted = {
            variant["image"]: entry[asked.by]
            for entry in json.load(listed)
            if not {entry["category"], entry["subcategory"]} & set(LEFT_OUT)
            for variant in [entry, *(entry.get("skin_variations", {}).values() if asked.skins else ())]
            if variant[there]
        }
        labels = list(wanted.values())
        large = {label for label in set(labels) if labels.count(label) >= asked.fewest}
        for member in archive:
            image = member.name.removeprefix(prefix)
            if member.name.startswith(prefix) and wanted.get(image) in large:
                file = archive.extractfile(member)
                assert file is not None
                yield wanted[image], image, file.read()


def joined(packs: Mapping[str, Path], out: Path) -> Path:
    """Several packs as one, whose classes are called NAME/CLASS. → its folder"""
    manifests = {name: read_manifest(folder) for name, folder in sorted(packs.items())}
    digests = json.dumps({name: manifest.digest for name, manifest in manifests.items()})
    target = out / hashlib.sha256(digests.encode()).hexdigest()[:20]

    def images() -> Iterator[tuple[str, str, bytes]]:
        for name, manifest in manifests.items():
            with zipfile.ZipFile(packs[name] / IMAGES) as archive:
                for image in manifest.images:
                    label = f"{name}/{manifest.classes[image.label]}"
                    yield label, f"{name}/{image.source_name}", archive.read(image.entry)

    licences, sources = (
        "; ".join(dict.fromkeys(getattr(manifest, what) for manifest in manifests.values()))
        for what in ("licence", "source")
    )
    write_pack(target, images(), licences, sources)
    return target


def fetched(folder: Path, vendor: str) -> Path:
    """The package's archive, fetched where it is not there. Raises SystemExit where it cannot be had."""
    name = f"emoji-datasource-{vendor}"
    path = folder / f"{name}-{VERSION}.tgz"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"npm is not installed: lay {path.name} into {folder}, or install npm.")
    done = subprocess.run(
        [npm, "pack", f"{name}@{VERSION}", "--silent"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not path.exists():
        raise SystemExit(f"npm could not fetch {name}: {done.stderr.strip()[-500:]}")
    return path


def prepare(out: Path, names: Iterable[str], data: Path | None = None) -> dict[str, Path]:
    """Makes the packs that are asked for. data: where the papers' datasets lie. → their folders, by name"""
    packs = {name: out / "packs" / name for name in names}
    for name, folder in packs.items():
        if name in SHIPPED:
            images, licence, source = shipped(name)
            write_pack(folder, images, licence, source)
        elif name in LAYOUTS:
            if data is None:
                raise SystemExit(f"{name} is a dataset of yours: say where it lies with --data FOLDER.")
            pack_folder(folder, data, name)
        elif not (folder / MANIFEST).exists():
            asked = EMOJI[name]
            package = fetched(out / "packages", asked.vendor)
            source = f"npm package {package.stem}"
            write_pack(folder, emoji(package, asked), asked.licence, source, asked.mapped)
    return packs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers.data", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[*SHIPPED, *EMOJI], choices=[*SHIPPED, *EMOJI])
    chosen = parser.parse_args()
    for name, folder in prepare(chosen.out, chosen.only).items():
        found = read_manifest(folder)
        counts = f"{len(found.images):6,} images  {len(found.classes):3} classes"
        print(f"{name:8} {counts}  {found.licence}  ({found.source})")


if __name__ == "__main__":
    main()
