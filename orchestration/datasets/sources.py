"""What `affinery dataset add` is given, whatever its form, opened as a listing of images on disk."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orchestration.datasets import archives, tables
from orchestration.datasets.folders import is_image, scan
from orchestration.datasets.listing import Found, Listing
from orchestration.datasets.tables import Columns
from orchestration.errors import DatasetInvalid
from registry import names as naming
from registry.errors import NameInvalid
from trainers import packs
from trainers.errors import DatasetChanged

Progress = Callable[[str, int, int], None]
"""what is done, how much of it is done, of how much"""


def listing(
    source: Path, scratch: Path, split: str | None, columns: Columns, on_progress: Progress
) -> Listing:
    """The images of a source. Raises DatasetInvalid.

    source: a folder, a zip or tar archive, Parquet files, or a pack of ours. scratch: an empty folder, for
    what has to be unpacked.
    """

    def unpacking(done: int, of: int) -> None:
        on_progress("unpacking", done, of)

    if not source.exists():
        raise DatasetInvalid(str(source), "there is no such folder or file")
    if not source.is_dir():
        if source.suffix == ".parquet" or _begins_with(source, b"PAR1"):
            return tables.unfold([source], scratch / "rows", split, columns, unpacking)
        if not archives.is_archive(source):
            reason = "it is not a folder, nor an archive (zip, tar, tar.gz, tar.zst …), nor Parquet"
            if any(_begins_with(source, magic) for magic in archives.BEGINNINGS):
                reason = "it begins as an archive does, and is damaged or cut off: fetch it, or pack it, anew"
            raise DatasetInvalid(str(source), reason)
        (scratch / "archive").mkdir(parents=True)
        folder, notes = archives.unpack(source, scratch / "archive", unpacking)
        try:
            found = _folder(folder, scratch, split, columns, unpacking)
        except DatasetInvalid as error:  # the folder is gone by the time anybody reads of it
            place, reason = (str(each).replace(str(scratch / "archive"), str(source)) for each in error.args)
            raise DatasetInvalid(place, reason) from error
        return replace(found, notes=notes + found.notes)
    return _folder(source, scratch, split, columns, unpacking)


def _folder(
    folder: Path, scratch: Path, split: str | None, columns: Columns, unpacking: Callable[[int, int], None]
) -> Listing:
    if (folder / packs.IMAGES).is_file() and (folder / packs.MANIFEST).is_file():
        return _pack(folder, scratch / "pack", unpacking)
    if found := tables.tables_in(folder):
        return tables.unfold(found, scratch / "rows", split, columns, unpacking)
    return scan(folder, split)


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _pack(pack: Path, folder: Path, unpacking: Callable[[int, int], None]) -> Listing:
    """A pack's own images under the names that they came in with: packed again, the digest is the same."""
    try:
        manifest = packs.verify_pack(pack, packs.read_manifest(pack).digest)
    except DatasetChanged as error:
        raise DatasetInvalid(str(pack), str(error).removesuffix(".")) from error
    try:
        classes = tuple(naming.checked_class(name) for name in manifest.classes)
    except NameInvalid as error:
        raise DatasetInvalid(str(pack), str(error).removesuffix(".")) from error
    folder.mkdir(parents=True)
    found = []
    with zipfile.ZipFile(pack / packs.IMAGES) as archive:
        for number, image in enumerate(manifest.images):
            _check(pack, image, len(classes))
            drawn = None
            if image.condition is not None:
                file = _member(pack, archive, image.condition.entry, folder, f"{number:08d}.condition")
                drawn = Found(folder, file, image.label, image.condition.source_name)
            file = _member(pack, archive, image.entry, folder, f"{number:08d}")
            found.append(Found(folder, file, image.label, image.source_name, image.text, drawn))
            unpacking(number + 1, len(manifest.images))
    return Listing(classes, found, [], manifest.licence, manifest.source)


def _check(pack: Path, image: packs.PackedImage, classes: int) -> None:
    """A pack may come from anywhere: that its digests agree says nothing of what its manifest says."""
    drawn = image.condition
    names = [image.entry, image.source_name, *([] if drawn is None else [drawn.entry, drawn.source_name])]
    labelled = isinstance(image.label, int) and 0 <= image.label < classes
    if not labelled or not all(isinstance(name, str) for name in [*names, image.text or ""]):
        raise DatasetInvalid(str(pack), f"{packs.MANIFEST} does not say what {image.entry!r} is")
    for name in names[::2]:
        if not is_image(name):
            raise DatasetInvalid(str(pack), f"{name!r} in {packs.MANIFEST} is not the name of an image")


def _member(pack: Path, archive: zipfile.ZipFile, entry: str, folder: Path, stem: str) -> str:
    name = f"{stem}.{entry.rpartition('.')[2].lower()}"
    try:
        with archive.open(entry) as source, (folder / name).open("xb") as sink:
            while chunk := source.read(archives.CHUNK_BYTES):
                sink.write(chunk)
    except (KeyError, *archives.DAMAGED) as error:
        raise DatasetInvalid(str(pack), f"{entry} cannot be read from {packs.IMAGES} ({error})") from error
    return name
