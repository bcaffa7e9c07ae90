"""`metadata.jsonl` beside images: one line a file, with its caption, its condition's map, its class.

    {"file_name": "images/1.png", "text": "a red boot", "condition": "depth/1.png", "label": "boot"}

Only file_name is needed. Hugging Face's datasets call the condition `conditioning_image`, which is taken too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from affinery.tensor_files import read_json
from orchestration.errors import DatasetInvalid
from registry import names as naming
from registry.errors import NameInvalid

METADATA = "metadata.jsonl"
MAP_KEYS = ("condition", "conditioning_image")
KEYS = ("file_name", "text", "label", *MAP_KEYS)
LONGEST_TEXT = 10_000
LARGEST_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Line:
    """What a line says. number: counted from 1; image, condition: paths below the folder."""

    number: int
    image: str
    text: str | None
    condition: str | None
    label: str | None


def read_metadata(folder: Path) -> tuple[list[Line], list[str]]:
    """→ the lines and notes. Raises DatasetInvalid, naming the line."""
    lines: list[Line] = []
    seen: dict[str, int] = {}
    unknown: set[str] = set()
    for number, raw in _objects(folder):
        line = _line(folder, number, raw)
        if line.image in seen:
            raise refused(folder, number, f"{line.image} stands in line {seen[line.image]} already")
        seen[line.image] = number
        unknown |= raw.keys() - set(KEYS)
        lines.append(line)
    if not lines:
        raise DatasetInvalid(str(folder / METADATA), "it has no line")
    without = next((line for line in lines if line.label is None), None)
    if without is not None and any(line.label is not None for line in lines):
        raise refused(folder, without.number, "it has no label, but other lines have one")
    notes = [f"{METADATA}: {', '.join(sorted(unknown))} is not used"] if unknown else []
    return lines, notes


def refused(folder: Path, number: int, reason: str) -> DatasetInvalid:
    return DatasetInvalid(f"{folder / METADATA}, line {number}", reason)


def _objects(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    path = folder / METADATA
    if path.is_symlink() or path.stat().st_size > LARGEST_BYTES:
        raise DatasetInvalid(str(path), f"it is a link, or has more than {LARGEST_BYTES:,} bytes")
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            if not content.strip():
                continue
            try:
                raw = read_json(content.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise refused(folder, number, f"it is not JSON ({error})") from error
            if not isinstance(raw, dict):
                raise refused(folder, number, "it is not a JSON object")
            yield number, raw


def _line(folder: Path, number: int, raw: dict[str, Any]) -> Line:
    maps = {raw[key] for key in MAP_KEYS if isinstance(raw.get(key), str)}
    odd = next((key for key in MAP_KEYS if not isinstance(raw.get(key), str | None)), None)
    if odd is not None or len(maps) > 1:
        raise refused(folder, number, f"its {odd or ' and '.join(MAP_KEYS)} is not the name of one file")
    if raw.get("file_name") is None:
        raise refused(folder, number, "it has no file_name")
    return Line(
        number,
        _below(folder, number, raw["file_name"]),
        _text(folder, number, raw.get("text")),
        _below(folder, number, maps.pop()) if maps else None,
        _label(folder, number, raw.get("label")),
    )


def _below(folder: Path, number: int, name: object) -> str:
    """A file of the folder, not of elsewhere: neither absolute, nor up and away, nor through a link."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise refused(folder, number, f"{name!r} is not the name of a file")
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise refused(folder, number, f"{name!r} leads out of the folder")
    at, linked = folder, False
    try:
        for part in path.parts:
            at = at / part
            linked |= at.is_symlink()
        found = at.is_file()
    except OSError:  # a name that no file can have
        found = False
    if linked:
        raise refused(folder, number, f"{name!r} is or goes through a link; give the files themselves")
    if not found:
        shown = name if len(name) <= 100 else f"{name[:99]}…"
        raise refused(folder, number, f"there is no file {shown!r}")
    return path.as_posix()


def _text(folder: Path, number: int, text: object) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > LONGEST_TEXT or not _is_plain(text):
        raise refused(folder, number, f"its text is not one of up to {LONGEST_TEXT:,} characters of Unicode")
    return unicodedata.normalize("NFC", text)


def _is_plain(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _label(folder: Path, number: int, label: object) -> str | None:
    if label is None:
        return None
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise refused(folder, number, f"its label {label!r} is not the name of a class")
    try:
        return naming.checked_class(unicodedata.normalize("NFC", str(label)))
    except NameInvalid as error:
        raise refused(folder, number, str(error).removesuffix(".")) from error
