"""Folders of images as they come in: which files are learnt from, under which class, told what.

Only names are looked at here, and the lines of `metadata.jsonl`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestration.errors import DatasetInvalid
from orchestration.metadata import METADATA, Line, read_metadata, refused
from registry import names as naming

EXTENSIONS = {"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"}
NO_CLASSES = "all"


@dataclass(frozen=True)
class Found:
    """An image file of a folder. name: its path in the folder; line: what metadata.jsonl says of it."""

    path: Path
    label: int
    name: str
    line: Line | None = None

    @property
    def place(self) -> str:
        """How an error names it."""
        return self.name if self.line is None else f"{self.name} ({METADATA}, line {self.line.number})"

    def told(self, root: Path) -> tuple[str | None, Found | None]:
        """Its caption, and the map of its condition."""
        if self.line is None or self.line.condition is None:
            return None if self.line is None else self.line.text, None
        name = self.line.condition
        return self.line.text, Found(root / name, self.label, name, self.line)


def scan(folder: Path) -> tuple[tuple[str, ...], list[Found], list[str]]:
    """Looks at a folder's names only. → class names, files, notes. Raises DatasetInvalid."""
    if not folder.is_dir():
        reason = "it is not a folder" if folder.exists() else "there is no such folder"
        raise DatasetInvalid(str(folder), reason)
    if (folder / METADATA).exists():
        return _scan_metadata(folder)
    found: list[Found] = []
    others = [path.name for path in _entries(folder) if path.is_file() and not _is_image(path)]
    classes: list[str] = []
    loose = [path for path in _entries(folder) if path.is_file() and _is_image(path)]
    for sub in (path for path in _entries(folder) if path.is_dir()):
        inside = list(_files(sub))
        others += [str(path.relative_to(folder)) for path in inside if not _is_image(path)]
        images = [path for path in inside if _is_image(path)]
        if not images:
            others.append(f"{sub.name}/ (no images)")
            continue
        label = naming.checked_class(unicodedata.normalize("NFC", sub.name))
        if label in classes:
            raise DatasetInvalid(
                str(folder), f"two class folders have the name {label!r} in Unicode's normal form"
            )
        classes.append(label)
        found += [Found(path, len(classes) - 1, path.relative_to(folder).as_posix()) for path in images]
    if loose and classes:
        raise DatasetInvalid(
            str(folder),
            f"it has both class folders and images beside them ({loose[0].name}); move those into a class",
        )
    if loose:
        classes, found = [NO_CLASSES], [Found(path, 0, path.name) for path in loose]
    if not found:
        raise DatasetInvalid(str(folder), "there is no image in it; it should look like class_name/*.png")
    notes = []
    if others:
        shown = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
        notes.append(f"{len(others)} other files were left out: {shown}")
    if len(classes) == 1:
        notes.append("one class: the dataset is learnt as one without classes")
    return tuple(classes), found, notes


def _scan_metadata(folder: Path) -> tuple[tuple[str, ...], list[Found], list[str]]:
    """What `scan` gives, from the lines of metadata.jsonl."""
    lines, notes = read_metadata(folder)
    classes = sorted({line.label for line in lines if line.label is not None}) or [NO_CLASSES]
    found = []
    for line in lines:
        for name in (line.image, line.condition):
            if name is not None and not _is_image(Path(name)):
                raise refused(folder, line.number, f"{name!r} is not the name of an image")
        label = 0 if line.label is None else classes.index(line.label)
        found.append(Found(folder / line.image, label, line.image, line))
    named = {line.image for line in lines} | {line.condition for line in lines}
    others = sum(
        _is_image(path) and path.relative_to(folder).as_posix() not in named for path in _files(folder)
    )
    if others:
        notes.append(f"{others} images are in no line of {METADATA} and were left out")
    for what, count in (
        ("caption", sum(line.text is None for line in lines)),
        ("condition", sum(line.condition is None for line in lines)),
    ):
        if 0 < count < len(lines):
            notes.append(f"{count} of {len(lines)} images have no {what}")
    if classes == [NO_CLASSES]:
        notes.append("no labels: the dataset is learnt as one without classes")
    return tuple(classes), sorted(found, key=lambda file: (file.label, file.name)), notes


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files. Raises DatasetInvalid on a link."""
    entries = [
        path for path in sorted(folder.iterdir(), key=lambda p: p.name) if not path.name.startswith(".")
    ]
    for path in entries:
        if path.is_symlink():
            raise DatasetInvalid(str(path), "it is a link; a dataset must hold the files themselves")
    return entries


def _files(folder: Path) -> Iterator[Path]:
    for path in _entries(folder):
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _is_image(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in EXTENSIONS
