"""Folders of images as they come in: which files are learnt from, under which class, told what.

Only names are looked at here, and the lines of a metadata file. A folder whose subfolders are named after
splits (train, test …), as Hugging Face lays out images, is read split by split.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from affinery.counting import counted
from affinery.errors import words_of
from orchestration.datasets.listing import Found, Listing
from orchestration.datasets.metadata import metadata_of, read_metadata
from orchestration.errors import DatasetInvalid
from registry import names as naming

EXTENSIONS = {"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"}
NO_CLASSES = "all"
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
EVERY_SPLIT = "all"


def scan(folder: Path, split: str | None = None) -> Listing:
    """Looks at a folder's names only. Raises DatasetInvalid.

    split: the one to learn from, or all; without it the training split where there are splits.
    """
    if not folder.is_dir():
        reason = "it is not a folder" if folder.exists() else "there is no such folder"
        raise DatasetInvalid(str(folder), reason)
    if parts := _splits(folder):
        chosen, notes = chosen_splits(str(folder), sorted(parts), split)
        return joined([(name, scan_plain(parts[name])) for name in chosen], notes)
    if split not in (None, EVERY_SPLIT):
        raise DatasetInvalid(str(folder), f"it has no split {split!r}: no folders named train, test …")
    return scan_plain(folder)


def scan_plain(folder: Path) -> Listing:
    """A folder without splits."""
    metadata = metadata_of(folder)
    return _scan_classes(folder) if metadata is None else _scan_metadata(folder, metadata)


def _splits(folder: Path) -> dict[str, Path]:
    """By name, the folders of splits; none where the folder is laid out otherwise."""
    if metadata_of(folder) is not None:
        return {}
    entries = _entries(folder)
    subs = [path for path in entries if path.is_dir()]
    if [path.name for path in subs] == ["data"] and not any(is_image(path.name) for path in entries):
        return _splits(subs[0])
    names = [SPLITS.get(path.name.lower()) for path in subs]
    if "train" not in names or None in names or len(set(names)) != len(names):
        return {}
    if any(path.is_file() and is_image(path.name) for path in entries):
        return {}
    return {str(name): path for name, path in zip(names, subs, strict=True)}


def chosen_splits(where: str, there: list[str], wanted: str | None) -> tuple[list[str], list[str]]:
    """→ the splits to learn from, and notes. Raises DatasetInvalid."""
    if wanted == EVERY_SPLIT:
        return there, []
    asked = wanted or ("train" if "train" in there else None)
    name = None if asked is None else SPLITS.get(asked.lower(), asked)
    if name not in there:
        known = ", ".join(there)
        what = "which split is meant is not clear" if asked is None else f"it has no split {asked!r}"
        raise DatasetInvalid(where, f"{what}; it has {known}: choose with --split, or --split all")
    others = [each for each in there if each != name]
    if not others:
        return [name], []
    return [name], [f"the split {name} is taken; {', '.join(others)} left out; the split 'all' is every one"]


def joined(parts: list[tuple[str, Listing]], notes: list[str]) -> Listing:
    """Several splits as one listing; names then begin with their split's."""
    if len(parts) == 1:
        return replace(parts[0][1], notes=notes + parts[0][1].notes)
    classes = sorted({name for _, part in parts for name in part.classes})
    if len(classes) > 1 and NO_CLASSES in classes:
        raise DatasetInvalid(parts[0][0], "some of its splits have classes and some have none")
    found = [
        replace(
            file,
            label=classes.index(part.classes[file.label]),
            name=f"{split}/{file.name}",
            condition=_in(split, file),
        )
        for split, part in parts
        for file in part.found
    ]
    more = [f"{split}: {note}" for split, part in parts for note in part.notes]
    return Listing(tuple(classes), sorted(found, key=by_class), notes + more)


def _in(split: str, file: Found) -> Found | None:
    return file.condition and replace(file.condition, name=f"{split}/{file.condition.name}")


def by_class(file: Found) -> tuple[int, str]:
    """The order of images in a pack."""
    return file.label, file.name


def _scan_classes(folder: Path) -> Listing:
    found: list[Found] = []
    others: list[str] = []
    classes: list[str] = []
    loose: list[str] = []
    for path in _entries(folder):
        if path.is_file():
            (loose if is_image(path.name) else others).append(path.name)
            continue
        inside = [file.relative_to(folder).as_posix() for file in files(path)]
        others += [name for name in inside if not is_image(name)]
        images = [name for name in inside if is_image(name)]
        if not images:
            others.append(f"{path.name}/ (no images)")
            continue
        label = naming.checked_class(unicodedata.normalize("NFC", path.name))
        if label in classes:
            raise DatasetInvalid(
                str(folder), f"two class folders have the name {label!r} in Unicode's normal form"
            )
        classes.append(label)
        found += [Found(folder, name, len(classes) - 1, name) for name in images]
    if loose and classes:
        raise DatasetInvalid(
            str(folder),
            f"it has both class folders and images beside them ({loose[0]}); move those into a class",
        )
    if loose:
        classes, found = [NO_CLASSES], [Found(folder, name, 0, name) for name in loose]
    if not found:
        raise DatasetInvalid(str(folder), "there is no image in it; it should look like class_name/*.png")
    notes = []
    if others:
        shown = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
        told = counted(len(others), "other file was", "other files were")
        notes.append(f"{told} left out: {shown}")
    if len(classes) == 1:
        notes.append("one class: the dataset is learnt as one without classes")
    return Listing(tuple(classes), found, notes)


def _scan_metadata(folder: Path, metadata: Path) -> Listing:
    """The same from the lines of a metadata file."""
    lines, notes = read_metadata(metadata)
    classes = sorted({line.label for line in lines if line.label is not None}) or [NO_CLASSES]
    numbers = {name: i for i, name in enumerate(classes)}
    found = []
    for line in lines:
        for name in (line.image, line.condition):
            if name is not None and not is_image(name):
                raise line.refused(f"{name!r} is not the name of an image")
        label = 0 if line.label is None else numbers[line.label]
        drawn = line.condition and Found(folder, line.condition, label, line.condition, line=line.place)
        found.append(Found(folder, line.image, label, line.image, line.text, drawn or None, line.place))
    named = {line.image for line in lines} | {line.condition for line in lines}
    others = sum(
        is_image(path.name) and path.relative_to(folder).as_posix() not in named for path in files(folder)
    )
    if others:
        told = counted(others, "image is in no line of", "images are in no line of")
        notes.append(f"{told} {metadata.name}, and left out")
    for what, count in (
        ("caption", sum(line.text is None for line in lines)),
        ("condition", sum(line.condition is None for line in lines)),
    ):
        if 0 < count < len(lines):
            notes.append(f"{count} of {len(lines)} images have no {what}")
    if classes == [NO_CLASSES]:
        notes.append("no labels: the dataset is learnt as one without classes")
    return Listing(tuple(classes), sorted(found, key=by_class), notes)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files. Raises DatasetInvalid, on links and pipes too."""
    try:
        there = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise DatasetInvalid(str(folder), f"it cannot be read: {words_of(error)}") from error
    entries = [path for path in there if not path.name.startswith(".")]
    for path in entries:
        if path.is_symlink():
            raise DatasetInvalid(str(path), "it is a link; a dataset must hold the files themselves")
        if not path.is_file() and not path.is_dir():
            raise DatasetInvalid(str(path), "it is neither a file nor a folder; take it out")
    return entries


def files(folder: Path) -> Iterator[Path]:
    """Every file in it and below, sorted, without hidden ones. Raises DatasetInvalid."""
    for path in _entries(folder):
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return "." in name and name.rpartition(".")[2].lower() in EXTENSIONS
