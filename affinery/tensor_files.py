"""safetensors files as Affinery reads and writes them: checked before use, digested without torch.

Only the standard library is imported here, so that a header can be looked at in a millisecond.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADER_LIMIT_BYTES = 100_000_000
DIMENSIONS_LIMIT = 16
TYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


class NotSafetensors(ValueError):
    """The bytes are no whole safetensors file; the message says where they fail."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its type, its shape and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]


def read_json(text: str | bytes) -> Any:
    """JSON as it stands in files of others: a repeated key, NaN or bottomless nesting raises ValueError."""

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise ValueError("it has a key twice")
        return keys

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text, object_pairs_hook=no_repeats, parse_constant=no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_header(path: Path) -> Header:
    """Reads and checks the header; raises NotSafetensors, or OSError where the file cannot be read."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise NotSafetensors("it is a pipe or a device, not a file")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, HEADER_LIMIT_BYTES):
            raise NotSafetensors("it is not a safetensors file, or is cut off in its header")
        body = file.read(length)
    try:
        raw = read_json(body)
        metadata = raw.pop("__metadata__", {})
        tensors = {str(name): _entry(fields, 8 + length) for name, fields in raw.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata holds other things than text")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NotSafetensors(f"it is not a safetensors file: its header is not readable ({error})") from error
    _check_layout(tensors, 8 + length, size)
    return Header(metadata, tensors)


def _entry(fields: Mapping[str, Any], base: int) -> TensorEntry:
    if fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("a tensor has other fields than its type, shape and place")
    start, stop = fields["data_offsets"]
    shape = tuple(fields["shape"])
    if len(shape) > DIMENSIONS_LIMIT or not all(type(n) is int for n in (start, stop, *shape)):
        raise ValueError("a tensor's shape or place is not made of whole numbers")
    return TensorEntry(str(fields["dtype"]), shape, base + start, base + stop)


def _check_layout(tensors: Mapping[str, TensorEntry], base: int, size: int) -> None:
    """Tensors must fill the file, without gaps or overlaps, each as long as its shape says."""
    at = base
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.dtype not in TYPE_BYTES:
            raise NotSafetensors(f"tensor {name!r} has the type {entry.dtype!r}, which is not read here")
        expected = math.prod(entry.shape) * TYPE_BYTES[entry.dtype]
        if any(n < 0 for n in entry.shape) or entry.start != at or entry.stop - entry.start != expected:
            raise NotSafetensors(f"tensor {name!r} does not lie where its shape {list(entry.shape)} says")
        at = entry.stop
    if at > size:
        raise NotSafetensors(f"it is cut off: {size:,} bytes of {at:,} are there")
    if at < size:
        raise NotSafetensors(f"{size - at:,} bytes stand behind its last tensor")


def fingerprint(path: Path, spec_json: str) -> str:
    """sha-256 over the spec and, by name, each tensor's name, type, shape and bytes.

    Two files of the same tensors have one fingerprint, however their containers order them.
    """
    header = read_header(path)
    digest = hashlib.sha256(f"affinery-backbone-1\0{spec_json}\0".encode())
    if not header.tensors:
        return digest.hexdigest()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for name in sorted(header.tensors):
            entry = header.tensors[name]
            digest.update(f"{name}\0{entry.dtype}\0{list(entry.shape)}\0".encode())
            digest.update(memoryview(view)[entry.start : entry.stop])
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """→ the hex digest of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, and durable once this returns."""
    with written_whole(path) as part:
        part.write_bytes(content)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside a file's to write to; once that went well, the file is there, whole and durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield part
        make_durable(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    make_durable(path.parent)


def make_durable(path: Path) -> None:
    """Has a file's bytes, or a folder's list of names, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
