"""Datasets under DVC: a folder of images becomes a pinned version, and is checked before every training.

Each version lies in `data/<name>/<digest>/` of the workspace's DVC repository, as one pack, with a copy in a
remote folder beside it: DVC deletes a cache object that it finds tampered with, so the cache is no copy.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.errors import DatasetInvalid, DatasetUnavailable, DataUnwritable
from orchestration.image_folders import Found, scan
from trainers import packs
from trainers.errors import DatasetChanged

if TYPE_CHECKING:
    from dvc.repo import Repo

LARGEST_PIXELS = 50_000_000
LARGEST_BYTES = 200_000_000
REMOTE = "dvc-remote"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


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


def init_data(root: Path) -> None:
    """Makes a workspace's DVC repository, and its remote in a folder beside it. Again, it changes nothing."""
    with _taking_in(root):
        root.mkdir(parents=True, exist_ok=True)
    with _taking_in(root), _serialised(root):
        if (root / ".dvc" / "config").exists() and (root / ".dvc" / "affinery").exists():
            return
        _quiet()
        from dvc.repo import Repo

        _quiet()  # importing DVC set its loggers up anew
        repo = Repo(str(root)) if (root / ".dvc" / "config").exists() else Repo.init(str(root), no_scm=True)
        with repo, repo.config.edit() as config:
            config["remote"]["local"] = {"url": str((root.parent / REMOTE).absolute())}
            config["core"]["remote"] = "local"
            config["core"]["analytics"] = False
            config["core"]["check_update"] = False
        (root.parent / REMOTE).mkdir(exist_ok=True)
        (root / ".dvc" / "affinery").touch()


@contextmanager
def _serialised(root: Path) -> Iterator[None]:
    """One at a time: DVC's own lock waits three seconds and gives up."""
    with (root / ".affinery.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _quiet() -> None:
    """DVC sends no usage reports, and says on the terminal only what we say."""
    import logging

    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    for noisy in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def import_folder(
    data: Path,
    folder: Path,
    *,
    name: str,
    licence: str = "unknown",
    source: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> ImportedDataset:
    """Checks a folder of images, packs them, and pins them.

    It holds `class_name/*.png`, or images alone for a dataset without classes, or images with a
    `metadata.jsonl` that gives captions and maps of spatial conditions.
    Raises DatasetInvalid, naming the file, DataUnwritable or DatasetUnavailable; nothing half-written stays.
    """
    classes, found, notes = scan(folder)
    incoming = data / f".incoming-{uuid.uuid4().hex[:12]}"
    with _taking_in(data), _serialised(data):
        for old in data.glob(".incoming-*"):  # of an import that was killed: the lock says none is at work
            shutil.rmtree(old, ignore_errors=True)
        try:
            incoming.mkdir()
            manifest, more = _pack(incoming, folder, classes, found, licence, source, on_progress)
            path = f"{name}/{manifest.digest[:12]}"
            target = data / path
            with _in_place(incoming, target, manifest.digest):
                md5 = _pin(data, target)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    size = sum((target / file).stat().st_size for file in (packs.IMAGES, packs.MANIFEST))
    return ImportedDataset(
        name,
        manifest.digest,
        md5,
        path,
        size,
        len(manifest.images),
        manifest.classes,
        manifest.class_counts,
        licence,
        source,
        tuple(notes + more),
    )


@contextmanager
def _in_place(incoming: Path, target: Path, digest: str) -> Iterator[None]:
    """Moves a pack to its place, where an equal one may stand; takes it away again if the block fails."""
    pinned = target.with_name(target.name + ".dvc")
    if target.exists() and not _is_whole(target, digest):
        shutil.rmtree(target)  # changed or torn since; what comes in is what was pinned under this digest
    new = not target.exists()
    if new:
        target.parent.mkdir(parents=True, exist_ok=True)
        _make_durable(incoming)
        incoming.replace(target)
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(target, ignore_errors=True)
            pinned.unlink(missing_ok=True)
            with suppress(OSError):  # other versions of the dataset keep the folder
                target.parent.rmdir()
        raise


def _is_whole(pack: Path, digest: str) -> bool:
    try:
        packs.verify_pack(pack, digest)
    except DatasetChanged:
        return False
    return True


@contextmanager
def _taking_in(data: Path) -> Iterator[None]:
    """What the system says to a write, in words. Raises DataUnwritable."""
    try:
        yield
    except OSError as error:
        raise DataUnwritable(str(data), error.strerror or str(error)) from error


def _pack(
    target: Path,
    root: Path,
    classes: tuple[str, ...],
    found: list[Found],
    licence: str,
    source: str,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[packs.Manifest, list[str]]:
    """Reads, checks and packs every image. → the manifest and notes. Raises DatasetInvalid."""
    seen: dict[tuple[str | int | None, ...], Found] = {}
    sizes: set[tuple[int, int]] = set()
    repeated = 0
    with packs.PackWriter(target, classes, licence, source) as writer:
        for done, file in enumerate(found, start=1):
            content = _read(file)
            text, beside = file.told(root)
            drawn = b"" if beside is None else _read(beside)
            key = (sha256(content).hexdigest(), file.label, text, sha256(drawn).hexdigest())
            if key in seen:
                repeated += 1
                continue
            seen[key] = file
            width, height, mode = _examine(file, content)
            condition = None if beside is None else _map(beside, drawn, (width, height))
            sizes.add((width, height))
            writer.add(
                content,
                file.label,
                extension=file.path.suffix.lower().removeprefix("."),
                width=width,
                height=height,
                mode=mode,
                source_name=unicodedata.normalize("NFC", file.name),
                text=text,
                condition=condition,
            )
            if on_progress is not None:
                on_progress(done, len(found))
        manifest = writer.finish()
    notes = []
    if several := len({key[:2] for key in seen}) - len({key[0] for key in seen}):
        notes.append(f"{several} images stand in more than one class; a mistake in the folders, perhaps")
    if repeated:
        notes.append(f"{repeated} images were there twice and are counted once")
    if len(sizes) > 1:
        notes.append(
            f"images of {len(sizes)} sizes: each is cropped to its middle square and resized for the backbone"
        )
    return manifest, notes


def _map(file: Found, content: bytes, size: tuple[int, int]) -> tuple[bytes, str, str]:
    """A condition's map as the pack takes it. Raises DatasetInvalid where it is not of its image's size."""
    width, height, _ = _examine(file, content)
    if (width, height) != size:
        raise DatasetInvalid(
            file.place, f"its {width} × {height} pixels are not the {size[0]} × {size[1]} of the image"
        )
    extension = file.path.suffix.lower().removeprefix(".")
    return content, extension, unicodedata.normalize("NFC", file.name)


def _read(file: Found) -> bytes:
    size = file.path.stat().st_size
    if not size or size > LARGEST_BYTES:
        raise DatasetInvalid(
            file.place, "it is empty" if not size else f"it has {size:,} bytes, over {LARGEST_BYTES:,}"
        )
    return file.path.read_bytes()


def _examine(file: Found, content: bytes) -> tuple[int, int, str]:
    """Decodes an image wholly. → width, height, mode. Raises DatasetInvalid: corrupt, tiny or huge."""
    import io
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
                if width * height > LARGEST_PIXELS:
                    raise DatasetInvalid(file.place, f"{width} × {height} pixels are over {LARGEST_PIXELS:,}")
                if min(width, height) < 2:
                    raise DatasetInvalid(file.place, f"{width} × {height} pixels are too few to learn from")
                image.load()
                return width, height, str(image.mode)
    except DatasetInvalid:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetInvalid(file.place, f"its pixels are over {LARGEST_PIXELS:,}") from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise DatasetInvalid(
            file.place, f"it cannot be read as an image ({error}); mend or remove it"
        ) from error


def _make_durable(folder: Path) -> None:
    for name in (packs.IMAGES, packs.MANIFEST):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def _pin(data: Path, target: Path) -> str:
    """Puts a pack under DVC and into the remote. → the MD5 of its `.dir` object"""
    with _repo(data) as repo:
        stages = repo.add([str(target)])
        repo.push([str(target) + ".dvc"])
        return str(stages[0].outs[0].hash_info.value)


@contextmanager
def _repo(data: Path) -> Iterator[Repo]:
    _quiet()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    _mend_locks(data)
    try:
        with Repo(str(data)) as repo:
            yield repo
    except DvcException as error:
        cause: Any = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            raise cause from error
        raise DatasetUnavailable(str(data), str(cause) or type(cause).__name__) from error


def _mend_locks(data: Path) -> None:
    """A full disk tears DVC's list of who reads and writes what, and DVC then refuses everything."""
    path = data / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(path.read_bytes() or b"{}")
    except FileNotFoundError:
        return
    except ValueError:
        path.unlink(missing_ok=True)


def ensure(data: Path, dvc_path: str, digest: str) -> Path:
    """The folder of a pinned version, every byte checked; fetched through DVC where files are merely missing.

    Raises DatasetChanged, saying exactly what differs, and DatasetUnavailable where DVC has no copy.
    """
    target = data / dvc_path
    if not all((target / name).exists() for name in (packs.IMAGES, packs.MANIFEST)):
        with _serialised(data), _repo(data) as repo:
            repo.pull([str(target) + ".dvc"], force=True)
    packs.verify_pack(target, digest)
    return target
