"""The objects of a version in DVC's cache or a remote, looked at one by one.

DVC takes it that what belongs to a `.dir` object is there with it, and remembers what it saw in a remote;
here nothing is taken for granted.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from orchestration.errors import DatasetInvalid

if TYPE_CHECKING:
    from dvc.repo import Repo

CHUNK_BYTES = 1 << 20
DISK = ("file", "local")
_PART = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Holding:
    """What a place lacks of a version, and what of it is damaged there: objects by their MD5."""

    missing: tuple[str, ...]
    damaged: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.missing and not self.damaged


def holding(store: Any, md5: str, size_bytes: int | None = None) -> Holding:
    """What a store of DVC's has of a version. md5: of its `.dir` object; size_bytes: of all the others.

    On a disk every byte is read; elsewhere the `.dir` object is, and the sizes of the others are added up.
    """
    content = _content(store, md5)
    if content is None:
        return Holding((md5,), ())
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
        return Holding((), (md5,))
    parts = [str(entry["md5"]) for entry in json.loads(content)]
    missing = tuple(part for part in parts if not store.exists(part))
    if store.fs.protocol in DISK:
        damaged = tuple(part for part in parts if part not in missing and _digest(store, part) != part)
    else:
        stored = sum(store.fs.size(store.oid_to_path(part)) for part in set(parts) - set(missing))
        torn = not missing and size_bytes is not None and stored != size_bytes
        damaged = tuple(parts) if torn else ()
    return Holding(missing, damaged)


def fetch(store: Any, md5: str, folder: Path) -> Path:
    """Writes what an object stands for into a folder, every byte checked. → the folder, or the one file

    A `.dir` object comes from a remote that others write: its names may lead nowhere else. Raises
    DatasetInvalid.
    """
    if not md5.endswith(".dir"):
        _copy(store, md5, folder / "object")
        return folder / "object"
    content = _content(store, md5)
    if content is None:
        raise DatasetInvalid(md5, "the remote has no such object")
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
        raise DatasetInvalid(md5, "the remote's copy of it is damaged")
    try:
        inside = {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetInvalid(md5, "it is no list of files") from error
    for name, part in inside.items():
        place = PurePosixPath(name)
        leads_out = place.is_absolute() or ".." in place.parts or "\\" in name or "\0" in name
        if leads_out or not place.parts or not _PART.fullmatch(part):
            raise DatasetInvalid(md5, f"it names a file {name[:200]!r}, which leads out of it")
        _copy(store, part, folder / place)
    return folder


def _copy(store: Any, md5: str, to: Path) -> None:
    found = hashlib.md5(usedforsecurity=False)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with store.fs.open(store.oid_to_path(md5), "rb") as source, to.open("xb") as sink:
            while chunk := source.read(CHUNK_BYTES):
                found.update(chunk)
                sink.write(chunk)
    except FileNotFoundError as error:
        raise DatasetInvalid(md5, "the remote has no such object") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise DatasetInvalid(md5, "two of its files have one name") from error
    if found.hexdigest() != md5:
        raise DatasetInvalid(md5, "the remote's copy of it is damaged")


def make_way(store: Any, md5: str) -> None:
    """Has DVC write anew what is damaged or missing of a version: it looks for the `.dir` object alone."""
    found = holding(store, md5)
    for each in sorted({*found.damaged, *(() if found.whole else (md5,))}):
        path = store.oid_to_path(each)
        if not store.fs.exists(path):
            continue
        if store.fs.protocol in DISK:
            store.unprotect(path)
        store.fs.remove(path)


def forget_seen(repo: Repo, remote: str | None) -> Any:
    """Has DVC look anew at what a remote holds. → the remote's store"""
    from dvc_data.hashfile.db import get_index

    store = repo.cloud.get_remote_odb(remote, "push")
    index = get_index(store)
    index.clear()
    index.close()
    return store


def _content(store: Any, md5: str) -> bytes | None:
    try:
        with store.fs.open(store.oid_to_path(md5), "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        return None


def _digest(store: Any, md5: str) -> str:
    found = hashlib.md5(usedforsecurity=False)
    with store.fs.open(store.oid_to_path(md5), "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
