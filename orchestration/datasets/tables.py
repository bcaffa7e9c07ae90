"""Parquet files of images as Hugging Face's datasets write them: {bytes, path}, labels, captions."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestration.datasets.folders import (
    EXTENSIONS,
    NO_CLASSES,
    SPLITS,
    by_class,
    chosen_splits,
    joined,
)
from orchestration.datasets.listing import Found, Listing
from orchestration.errors import DatasetInvalid
from registry import names as naming
from registry.errors import NameInvalid

IMAGES = ("image", "img", "pixel_values")
LABELS = ("label", "labels", "class", "fine_label")
TEXTS = ("text", "caption", "prompt")
MAPS = ("condition", "conditioning_image")
ROWS_AT_ONCE = 32
LONGEST_TEXT = 10_000
MAGIC = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; None is found by its usual name."""

    image: str | None = None
    label: str | None = None
    text: str | None = None


def tables_in(folder: Path) -> list[Path]:
    """The Parquet files of a folder, or of the folder data in it."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def unfold(
    tables: Sequence[Path],
    folder: Path,
    split: str | None,
    columns: Columns,
    on_progress: Callable[[int, int], None],
) -> Listing:
    """Writes the images of tables into an empty folder, a few rows at a time. Raises DatasetInvalid."""
    by_split: dict[str, list[Path]] = {}
    for path in tables:
        if path.is_symlink():
            raise DatasetInvalid(str(path), "it is a link; a dataset must hold the files themselves")
        first = re.split(r"[-_.]", path.name.lower())[0]
        by_split.setdefault(SPLITS.get(first, ""), []).append(path)
    where = str(tables[0] if len(tables) == 1 else tables[0].parent)
    if set(by_split) == {""}:
        by_split, names, notes = {"train": by_split[""]}, ["train"], list[str]()
        if split not in (None, "all"):
            raise DatasetInvalid(where, f"it has no split {split!r}: no file named train-… or test-…")
    else:
        by_split = {name or "others": paths for name, paths in by_split.items()}
        names, notes = chosen_splits(where, sorted(by_split), split)
    total = sum(_rows(path) for name in names for path in by_split[name])
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        on_progress(done, total)

    parts = []
    for name in names:
        (folder / name).mkdir(parents=True)
        parts.append((name, _unfold(by_split[name], folder / name, columns, advance)))
    return joined(parts, notes)


def _opened(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DatasetInvalid(str(path), f"it cannot be read as Parquet ({error})") from error


def _rows(path: Path) -> int:
    with _opened(path) as table:
        return int(table.metadata.num_rows)


def _unfold(paths: Sequence[Path], folder: Path, columns: Columns, advance: Callable[[int], None]) -> Listing:
    named = _named_classes(paths[0], columns)
    seen: dict[str, int] = {}
    found: list[Found] = []
    bare = 0
    for path in paths:
        for number, row in enumerate(_read(path, columns, advance)):
            stem = f"{len(found):08d}"
            label = _label(path, number, row["label"], named)
            bare += label is None
            index = seen.setdefault(NO_CLASSES if label is None else label, len(seen))
            text, drawn, place = _text(path, number, row["text"]), None, f"{path.name}, row {number + 1}"
            if row["condition"] is not None:
                file = _write(folder, f"{stem}.condition", row["condition"])
                drawn = Found(folder, file, index, file, row=place)
            file = _write(folder, stem, row["image"])
            found.append(Found(folder, file, index, file, text, drawn, row=place))
    if not found:
        raise DatasetInvalid(str(paths[0]), "it has no row")
    if 0 < bare < len(found):
        raise DatasetInvalid(
            str(paths[0]), f"{bare} of its {len(found)} rows have no label, but others have one"
        )
    order = [name for name in named if name in seen] if named else sorted(seen)
    places = {seen[name]: order.index(name) for name in seen}
    moved = [replace(file, label=places[file.label]) for file in found]
    notes = ["no labels: the dataset is learnt as one without classes"] if bare else []
    if named and (empty := len(named) - len(order)):
        notes.append(f"{empty} of its {len(named)} classes have no image and were left out")
    return Listing(tuple(order), sorted(moved, key=by_class), notes)


def _read(path: Path, columns: Columns, advance: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    import pyarrow

    with _opened(path) as table:
        chosen = _chosen(path, table.schema_arrow.names, columns)
        batches = table.iter_batches(ROWS_AT_ONCE, columns=[name for name in chosen.values() if name])
        while True:
            try:
                batch = next(batches, None)
            except (pyarrow.ArrowException, OSError) as error:
                raise DatasetInvalid(str(path), f"it is damaged ({error})") from error
            if batch is None:
                return
            for row in batch.to_pylist():
                yield {what: row[name] if name else None for what, name in chosen.items()}
            advance(batch.num_rows)


def _chosen(path: Path, there: Sequence[str], columns: Columns) -> dict[str, str | None]:
    """By what it is, the column. Raises DatasetInvalid."""
    found: dict[str, str | None] = {}
    for what, given, usual in (
        ("image", columns.image, IMAGES),
        ("label", columns.label, LABELS),
        ("text", columns.text, TEXTS),
        ("condition", None, MAPS),
    ):
        if given is not None and given not in there:
            raise DatasetInvalid(str(path), f"it has no column {given!r}; its columns are {', '.join(there)}")
        found[what] = given or next((name for name in usual if name in there), None)
    if found["image"] is None:
        listed = ", ".join(there)
        raise DatasetInvalid(
            str(path), f"none of its columns ({listed}) is one of images: name it with --image-column"
        )
    return found


def _named_classes(path: Path, columns: Columns) -> list[str]:
    """The names of classes that Hugging Face keeps in the schema, in the order of their numbers."""
    with _opened(path) as table:
        label = _chosen(path, table.schema_arrow.names, columns)["label"]
        kept = (table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(kept)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetInvalid(str(path), "the class names in its schema are not a list of names")
    return [_class(path, name) for name in names]


def _class(path: Path, name: str) -> str:
    try:
        return naming.checked_class(unicodedata.normalize("NFC", name))
    except NameInvalid as error:
        raise DatasetInvalid(str(path), str(error).removesuffix(".")) from error


def _label(path: Path, row: int, label: object, named: Sequence[str]) -> str | None:
    if label is None or label == -1:  # Hugging Face's number of what has no label
        return None
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise DatasetInvalid(f"{path}, row {row + 1}", f"its label {label!r} is not the name of a class")
    if isinstance(label, int) and named:
        if not 0 <= label < len(named):
            raise DatasetInvalid(
                f"{path}, row {row + 1}", f"its label {label} is none of {len(named)} classes"
            )
        return named[label]
    return _class(path, str(label))


def _text(path: Path, row: int, text: object) -> str | None:
    if isinstance(text, list) and text:  # several captions of one image: the first
        text = text[0]
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise DatasetInvalid(
            f"{path}, row {row + 1}", f"its text is not one of up to {LONGEST_TEXT:,} characters"
        )
    return unicodedata.normalize("NFC", text)


def _write(folder: Path, stem: str, image: object) -> str:
    """Writes what a cell holds, whatever it is: it is examined as every image is. → the file's name"""
    given = image if isinstance(image, dict) else {"bytes": image}
    content = given.get("bytes")
    content = content if isinstance(content, bytes) else b""
    name = f"{stem}.{_extension(content, given.get('path'))}"
    (folder / name).write_bytes(content)
    return name


def _extension(content: bytes, path: object) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    for magic, extension in MAGIC.items():
        if content.startswith(magic):
            return extension
    told = path.rpartition(".")[2].lower() if isinstance(path, str) else ""
    return told if told in EXTENSIONS else "png"
