"""`metadata.jsonl` or `metadata.csv` beside images: one line a file, with its caption, its map, its class.

    {"file_name": "images/1.png", "text": "a red boot", "condition": "depth/1.png", "label": "boot"}

Only file_name is needed. Hugging Face's datasets call the condition `conditioning_image`, which is taken too.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from affinery.tensor_files import read_json
from orchestration.errors import DatasetInvalid
from registry import names as naming
from registry.errors import NameInvalid

NAMES = ("metadata.jsonl", "metadata.csv")
MAP_KEYS = ("condition", "conditioning_image")
KEYS = ("file_name", "text", "label", *MAP_KEYS)
LONGEST_TEXT = 10_000
LARGEST_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Line:
    """What a line says. number: counted from 1; image, condition: paths below the folder."""

    metadata: Path
    number: int
    image: str
    text: str | None
    condition: str | None
    label: str | None

    @property
    def place(self) -> str:
        return f"{self.metadata.name}, line {self.number}"

    def refused(self, reason: str) -> DatasetInvalid:
        return _refused(self.metadata, self.number, reason)


def metadata_of(folder: Path) -> Path | None:
    """The file that speaks of a folder's images. Raises DatasetInvalid where there are two."""
    there = [folder / name for name in NAMES if (folder / name).exists()]
    if len(there) > 1:
        raise DatasetInvalid(str(folder), f"it has both {' and '.join(NAMES)}; keep one")
    return there[0] if there else None


def read_metadata(metadata: Path) -> tuple[list[Line], list[str]]:
    """→ the lines and notes. Raises DatasetInvalid, naming the line."""
    lines: list[Line] = []
    seen: dict[str, int] = {}
    unknown: set[str] = set()
    for number, raw in _rows(metadata):
        line = _line(metadata, number, raw)
        if line.image in seen:
            raise line.refused(f"{line.image} stands in line {seen[line.image]} already")
        seen[line.image] = number
        unknown |= raw.keys() - set(KEYS)
        lines.append(line)
    if not lines:
        raise DatasetInvalid(str(metadata), "it has no line")
    without = next((line for line in lines if line.label is None), None)
    if without is not None and any(line.label is not None for line in lines):
        raise without.refused("it has no label, but other lines have one")
    notes = [f"{metadata.name}: {', '.join(sorted(unknown))} is not used"] if unknown else []
    return lines, notes


def _refused(metadata: Path, number: int, reason: str) -> DatasetInvalid:
    return DatasetInvalid(f"{metadata}, line {number}", reason)


def _rows(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if metadata.is_symlink() or metadata.stat().st_size > LARGEST_BYTES:
        raise DatasetInvalid(str(metadata), f"it is a link, or has more than {LARGEST_BYTES:,} bytes")
    return _csv_rows(metadata) if metadata.suffix == ".csv" else _objects(metadata)


def _objects(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with metadata.open("rb") as file:
        for number, content in enumerate(file, start=1):
            if not content.strip():
                continue
            try:
                raw = read_json(content.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise _refused(metadata, number, f"it is not JSON ({error})") from error
            if not isinstance(raw, dict):
                raise _refused(metadata, number, "it is not a JSON object")
            yield number, raw


def _csv_rows(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A cell that is empty says nothing."""
    with metadata.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        try:
            for row in reader:
                if "" in row or None in row.values():
                    raise _refused(
                        metadata, reader.line_num, "it has more or fewer cells than the first line"
                    )
                yield reader.line_num, {name: cell for name, cell in row.items() if cell}
        except (csv.Error, UnicodeDecodeError) as error:
            raise _refused(metadata, reader.line_num + 1, f"it is not CSV in UTF-8 ({error})") from error


def _line(metadata: Path, number: int, raw: dict[str, Any]) -> Line:
    maps = {raw[key] for key in MAP_KEYS if isinstance(raw.get(key), str)}
    odd = next((key for key in MAP_KEYS if not isinstance(raw.get(key), str | None)), None)
    if odd is not None or len(maps) > 1:
        raise _refused(metadata, number, f"its {odd or ' and '.join(MAP_KEYS)} is not the name of one file")
    if raw.get("file_name") is None:
        raise _refused(metadata, number, "it has no file_name")
    return Line(
        metadata,
        number,
        _below(metadata, number, raw["file_name"]),
        _text(metadata, number, raw.get("text")),
        _below(metadata, number, maps.pop()) if maps else None,
        _label(metadata, number, raw.get("label")),
    )


def _below(metadata: Path, number: int, name: object) -> str:
    """A file of the folder, not of elsewhere: neither absolute, nor up and away, nor through a link."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise _refused(metadata, number, f"{name!r} is not the name of a file")
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise _refused(metadata, number, f"{name!r} leads out of the folder")
    at, linked = metadata.parent, False
    try:
        for part in path.parts:
            at = at / part
            linked |= at.is_symlink()
        found = at.is_file()
    except OSError:  # a name that no file can have
        found = False
    if linked:
        raise _refused(metadata, number, f"{name!r} is or goes through a link; give the files themselves")
    if not found:
        shown = name if len(name) <= 100 else f"{name[:99]}…"
        raise _refused(metadata, number, f"there is no file {shown!r}")
    return path.as_posix()


def _text(metadata: Path, number: int, text: object) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > LONGEST_TEXT or not _is_plain(text):
        raise _refused(
            metadata, number, f"its text is not one of up to {LONGEST_TEXT:,} characters of Unicode"
        )
    return unicodedata.normalize("NFC", text)


def _is_plain(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _label(metadata: Path, number: int, label: object) -> str | None:
    if label is None:
        return None
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise _refused(metadata, number, f"its label {label!r} is not the name of a class")
    try:
        return naming.checked_class(unicodedata.normalize("NFC", str(label)))
    except NameInvalid as error:
        raise _refused(metadata, number, str(error).removesuffix(".")) from error
