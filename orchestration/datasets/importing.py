"""From a source to a pinned version: every image is read, checked and packed, one at a time."""

from __future__ import annotations

import shutil
import unicodedata
import uuid
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from affinery.counting import counted
from orchestration.datasets import repository
from orchestration.datasets.examining import Examined, Unfit, Unfits, examine, read
from orchestration.datasets.listing import Found, Listing
from orchestration.datasets.sources import Progress, listing
from orchestration.datasets.tables import Columns
from orchestration.errors import DatasetInvalid
from trainers import packs

UNEVEN = 10
"""Where the largest class has so many times the images of the smallest, it is told."""


@dataclass(frozen=True)
class ImportedDataset:
    """A dataset version as the registry records it. notes: what its owner may want to know."""

    name: str
    digest: str
    dvc_md5: str
    dvc_path: str
    size_bytes: int
    image_count: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    licence: str
    source: str
    notes: tuple[str, ...]


def import_dataset(
    data: Path,
    origin: Path,
    *,
    name: str,
    licence: str | None = None,
    source: str | None = None,
    split: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    skip_bad: bool = False,
    on_progress: Progress = lambda *_: None,
) -> ImportedDataset:
    """Checks a source of images, packs them, and pins them.

    origin: a folder, an archive, Parquet files, or a pack of ours (see sources.py). split: of several, the
    one to learn from. skip_bad: images that cannot be learnt from are left out and told; otherwise they end
    the import. licence and source are a pack's own where they are not given. Raises DatasetInvalid, naming
    the files, DataUnwritable or DatasetUnavailable; nothing half-written stays.
    """
    incoming = data / f".incoming-{uuid.uuid4().hex[:12]}"
    with repository.taking_in(data), repository.serialised(data):
        for old in data.glob(".incoming-*"):  # of an import that was killed: the lock says none is at work
            shutil.rmtree(old, ignore_errors=True)
        try:
            (incoming / "pack").mkdir(parents=True)
            found = listing(origin, incoming / "source", split, columns, on_progress)
            licence = licence or found.licence or "unknown"
            source = source or found.source or ""
            manifest, notes = _Packing(origin, found, skip_bad, on_progress).into(
                incoming / "pack", licence, source
            )
            path = f"{name}/{manifest.digest[:12]}"
            with repository.in_place(incoming / "pack", data / path, manifest.digest):
                md5 = repository.pin(data, data / path)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    return ImportedDataset(
        name,
        manifest.digest,
        md5,
        path,
        sum((data / path / file).stat().st_size for file in (packs.IMAGES, packs.MANIFEST)),
        len(manifest.images),
        manifest.classes,
        manifest.class_counts,
        licence,
        source,
        tuple(found.notes + notes),
    )


class _Packing:
    """One import's way through its images."""

    def __init__(self, origin: Path, found: Listing, skip_bad: bool, on_progress: Progress) -> None:
        self.origin, self.listing, self.skip_bad, self.on_progress = origin, found, skip_bad, on_progress
        self.seen: set[tuple[bytes, int, str | None, bytes]] = set()
        self.unfits = Unfits()
        self.sizes: set[tuple[int, int]] = set()
        self.repeated = self.animated = 0

    def into(self, folder: Path, licence: str, source: str) -> tuple[packs.Manifest, list[str]]:
        """Reads, checks and packs every image. → the manifest and notes. Raises DatasetInvalid."""
        found = self.listing.found
        with packs.PackWriter(folder, self.listing.classes, licence, source) as writer:
            for done, file in enumerate(found, start=1):
                try:
                    self._take(writer, file)
                except Unfit as error:
                    self.unfits.add(file, error)
                self.on_progress("reading", done, len(found))
            self._check(writer.counts)
            return writer.finish(), self._notes(writer.counts)

    def _take(self, writer: packs.PackWriter, file: Found) -> None:
        """Raises Unfit."""
        content = read(file)
        drawn = b"" if file.condition is None else read(file.condition)
        key = (sha256(content).digest(), file.label, file.text, sha256(drawn).digest())
        if key in self.seen:
            self.repeated += 1
            return
        image = examine(content)
        condition = None if file.condition is None else _map(file.condition, drawn, image)
        self.seen.add(key)
        self.sizes.add((image.width, image.height))
        self.animated += image.frames > 1
        if self.unfits.count and not self.skip_bad:
            return  # nothing will be added: the rest is read only to tell all that is wrong at once
        writer.add(
            content,
            file.label,
            extension=file.extension,
            width=image.width,
            height=image.height,
            mode=image.mode,
            source_name=unicodedata.normalize("NFC", file.name),
            text=file.text,
            condition=condition,
        )

    def _check(self, counts: list[int]) -> None:
        """Raises DatasetInvalid where there is something that is not to be passed over."""
        if self.unfits.count and not self.skip_bad:
            leave = "--skip-bad leaves out what cannot be learnt from"
            if self.unfits.count == 1:
                place, reason = self.unfits.listed[0]
                raise DatasetInvalid(place, f"{reason}; {leave}")
            total = f"{self.unfits.count} of {len(self.listing.found)} images cannot be learnt from"
            raise DatasetInvalid(str(self.origin), f"{total}: {self.unfits.told()}; {leave}")
        for name, count in zip(self.listing.classes, counts, strict=True):
            if not count:
                reason = f"no image of its class {name!r} can be learnt from: {self.unfits.told()}"
                raise DatasetInvalid(str(self.origin), reason)

    def _notes(self, counts: list[int]) -> list[str]:
        notes = []
        if self.unfits.count:
            told = counted(self.unfits.count, "image was", "images were")
            notes.append(f"{told} left out: {self.unfits.told()}")
        if several := len({key[:2] for key in self.seen}) - len({key[0] for key in self.seen}):
            told = counted(several, "image stands", "images stand")
            notes.append(f"{told} in more than one class; a mistake in the folders, perhaps")
        if self.repeated:
            told = counted(self.repeated, "image was there twice and is", "images were there twice and are")
            notes.append(f"{told} counted once")
        if self.animated:
            told = counted(self.animated, "image is an animation", "images are animations")
            notes.append(f"{told}: the first picture of each is learnt")
        if len(self.sizes) > 1:
            notes.append(
                f"images of {len(self.sizes)} sizes: each is cropped to its middle square and resized for "
                f"the backbone"
            )
        if max(counts) >= UNEVEN * min(counts):
            largest, smallest = (self.listing.classes[counts.index(edge(counts))] for edge in (max, min))
            notes.append(
                f"uneven classes: {largest} has {max(counts):,} images, {smallest} {min(counts):,}; "
                f"the rare are learnt less"
            )
        return notes


def _map(file: Found, content: bytes, image: Examined) -> tuple[bytes, str, str]:
    """A condition's map as the pack takes it. Raises Unfit where it is not of its image's size."""
    try:
        found = examine(content)
    except Unfit as error:
        kind, reason = error.args
        raise Unfit(kind, f"its map {file.name}: {reason}") from error
    if (found.width, found.height) != (image.width, image.height):
        raise Unfit(
            "with a map of another size",
            f"the {found.width} × {found.height} pixels of its map {file.name} are not its own "
            f"{image.width} × {image.height}",
        )
    return content, file.extension, unicodedata.normalize("NFC", file.name)
