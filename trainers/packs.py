"""Dataset packs: a dataset as two files, whatever number of images it has.

    images.zip      the images' own bytes, not compressed again, in a fixed order with fixed times
    manifest.json   every image's entry, class, SHA-256 and size, and the archive's; its own SHA-256 is
                    the dataset's digest, which so pins every byte of both files

An image may have a caption, and a map of a spatial condition, which lies beside it in the archive.

The same images under the same class names always give the same bytes. Nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from affinery.errors import words_of
from affinery.tensor_files import read_json, sha256_file
from trainers.errors import DatasetChanged

SCHEMA = 1
IMAGES, MANIFEST = "images.zip", "manifest.json"
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class PackedMap:
    """The map of an image's spatial condition. source_name: its path in the folder that it came from."""

    entry: str
    sha256: str
    source_name: str


@dataclass(frozen=True)
class PackedImage:
    """One image. label: its class's position; source_name: its path in the folder that it came from.

    text: its caption; condition: its map; None where it has none.
    """

    entry: str
    label: int
    sha256: str
    width: int
    height: int
    mode: str
    source_name: str
    text: str | None = None
    condition: PackedMap | None = None

    @classmethod
    def of(cls, raw: dict[str, Any]) -> PackedImage:
        """Raises TypeError on anything that is none."""
        image = cls(**raw)
        return replace(image, condition=PackedMap(**raw["condition"])) if image.condition else image


@dataclass(frozen=True)
class Manifest:
    """What a pack holds. archive: the SHA-256 of images.zip; digest: that of the manifest's bytes."""

    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    images: tuple[PackedImage, ...]
    licence: str
    source: str
    archive: str
    digest: str


class PackWriter:
    """Writes a pack into an empty folder. Images must come class by class."""

    def __init__(self, folder: Path, classes: tuple[str, ...], licence: str, source: str) -> None:
        self.folder, self.classes, self.licence, self.source = folder, classes, licence, source
        self.images: list[PackedImage] = []
        self.counts = [0] * len(classes)
        self._archive = zipfile.ZipFile(folder / IMAGES, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._archive.close()

    def add(
        self,
        content: bytes,
        label: int,
        *,
        extension: str,
        width: int,
        height: int,
        mode: str,
        source_name: str,
        text: str | None = None,
        condition: tuple[bytes, str, str] | None = None,
    ) -> None:
        """condition: a map's content, extension and source name."""
        stem = f"{label:04d}/{self.counts[label]:06d}"
        entry = f"{stem}.{extension}"
        digest = self._write(entry, content)
        packed = None
        if condition is not None:
            map_entry = f"{stem}.condition.{condition[1]}"
            packed = PackedMap(map_entry, self._write(map_entry, condition[0]), condition[2])
        self.images.append(PackedImage(entry, label, digest, width, height, mode, source_name, text, packed))
        self.counts[label] += 1

    def _write(self, entry: str, content: bytes) -> str:
        """→ the content's SHA-256"""
        info = zipfile.ZipInfo(entry, EPOCH)
        info.external_attr = 0o644 << 16
        self._archive.writestr(info, content)
        return hashlib.sha256(content).hexdigest()

    def finish(self) -> Manifest:
        """Closes the archive and writes the manifest."""
        self._archive.close()
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "classes": self.classes,
            "class_counts": self.counts,
            "images": [_record(image) for image in self.images],
            "licence": self.licence,
            "source": self.source,
            "archive": sha256_file(self.folder / IMAGES),
        }
        body = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        (self.folder / MANIFEST).write_bytes(body)
        return read_manifest(self.folder)


def _record(image: PackedImage) -> dict[str, Any]:
    """What an image does not have (a caption, a map) is left out."""
    return {name: value for name, value in asdict(image).items() if value is not None}


def read_manifest(pack: Path) -> Manifest:
    """The manifest of a pack; the images are not looked at. Raises DatasetChanged where it cannot be read."""
    path = pack / MANIFEST
    try:
        body = path.read_bytes()
        raw = read_json(body)
        if raw["schema"] != SCHEMA:
            raise DatasetChanged(
                str(pack), f"its manifest has schema {raw['schema']}, this Affinery reads {SCHEMA}"
            )
        return Manifest(
            tuple(raw["classes"]),
            tuple(raw["class_counts"]),
            tuple(PackedImage.of(image) for image in raw["images"]),
            str(raw["licence"]),
            str(raw["source"]),
            str(raw["archive"]),
            hashlib.sha256(body).hexdigest(),
        )
    except FileNotFoundError as error:
        raise DatasetChanged(str(pack), f"{MANIFEST} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetChanged(str(pack), f"{MANIFEST} cannot be read: {words_of(error)}") from error


def verify_pack(pack: Path, digest: str) -> Manifest:
    """Checks every byte of a pack against the digest that was pinned. Raises DatasetChanged."""
    manifest = read_manifest(pack)
    if manifest.digest != digest:
        raise DatasetChanged(
            str(pack), f"{MANIFEST} was edited: its SHA-256 is {manifest.digest[:12]}, not {digest[:12]}"
        )
    if not (pack / IMAGES).is_file():
        raise DatasetChanged(str(pack), f"{IMAGES} is missing")
    if sha256_file(pack / IMAGES) != manifest.archive:
        elsewhere = f"{IMAGES} was changed outside its images, in the archive's own records"
        raise DatasetChanged(str(pack), next(differences(pack, manifest), elsewhere))
    return manifest


def differences(pack: Path, manifest: Manifest) -> Iterator[str]:
    """What in a pack is not as its manifest says, image by image."""
    expected: dict[str, PackedImage | PackedMap] = {image.entry: image for image in manifest.images}
    expected |= {image.condition.entry: image.condition for image in manifest.images if image.condition}
    try:
        with zipfile.ZipFile(pack / IMAGES) as archive:
            names = archive.namelist()
            for name in sorted(set(names) - expected.keys()):
                yield f"{name} was added to {IMAGES}"
            for name in sorted(expected.keys() - set(names)):
                yield f"{expected[name].source_name} ({name}) was taken out of {IMAGES}"
            for name in names:
                if name not in expected:
                    continue
                image = expected[name]
                try:
                    found = hashlib.sha256(archive.read(name)).hexdigest()
                except zipfile.BadZipFile as error:
                    yield f"{image.source_name} ({name}) was changed: {error}"
                    continue
                if found != image.sha256:
                    digests = f"its SHA-256 is {found[:12]}, not {image.sha256[:12]}"
                    yield f"{image.source_name} ({name}) was changed: {digests}"
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        yield f"{IMAGES} is damaged: {words_of(error)}"
