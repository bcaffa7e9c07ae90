"""Archives of images: unpacked member by member, each one checked, none of them trusted.

Only files are taken, and only those that may be learnt from. A member that leads out of the archive, a link,
a device, two members of one name, or more bytes than an archive of images can hold end the import.
"""

from __future__ import annotations

import errno
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Self

from orchestration.datasets.folders import is_image
from orchestration.datasets.metadata import NAMES
from orchestration.errors import DatasetInvalid

MOST_FILES = 20_000_000
LARGEST_FILE_BYTES = 2_000_000_000
SMALLEST_LIMIT_BYTES, LARGEST_RATIO = 1 << 30, 100
"""Images are packed already: what grows a hundredfold is no archive of images."""
CHUNK_BYTES = 1 << 20
TABLES = (".parquet",)
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    lzma.LZMAError,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
Progress = Callable[[int, int], None]
Member = tuple[str, bool, Callable[[], IO[bytes]]]
"""name, whether it is an ordinary file, how to read it"""


BEGINNINGS = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""Of zip, gzip, bzip2, xz and zstandard."""


def is_archive(path: Path) -> bool:
    """Whether a file is one that `unpack` knows, by its first bytes."""
    if zipfile.is_zipfile(path):
        return True
    try:
        with _tar(path, lambda *_: None) as tar:
            return tar.next() is not None
    except (*DAMAGED, OSError):
        return False


def unpack(archive: Path, folder: Path, on_progress: Progress) -> tuple[Path, list[str]]:
    """Unpacks what can be learnt from into an empty folder. → the folder of the images, notes

    An outermost folder that holds all the rest is passed over. Raises DatasetInvalid.
    """
    limit = max(SMALLEST_LIMIT_BYTES, LARGEST_RATIO * archive.stat().st_size)
    left_out = taken = unpacked = 0
    seen: set[str] = set()
    with _members(archive, on_progress) as members:
        for name, ordinary, content in _reading(archive, members):
            path = _below(archive, name)
            if _is_hidden(path):
                continue
            if not ordinary:
                raise DatasetInvalid(str(archive), f"its member {_shown(name)} is a link or a device")
            if not _is_wanted(path):
                left_out += 1
                continue
            if path.as_posix() in seen or len(seen) >= MOST_FILES:
                twice = f"two members are named {_shown(name)}"
                raise DatasetInvalid(
                    str(archive), twice if path.as_posix() in seen else "it has too many members"
                )
            seen.add(path.as_posix())
            with _explained(archive):
                source = content()
            unpacked += _write(archive, source, folder, path, limit - unpacked)
            taken += 1
    notes = [f"{left_out} other files of the archive were left out"] if left_out else []
    return _innermost(folder), notes


@contextmanager
def _members(archive: Path, on_progress: Progress) -> Iterator[Iterator[Member]]:
    with ExitStack() as stack:
        if zipfile.is_zipfile(archive):
            with _explained(archive):
                opened = stack.enter_context(zipfile.ZipFile(archive))
            yield _zipped(opened, on_progress)
        else:
            with _explained(archive):
                tar = stack.enter_context(_tar(archive, on_progress))
            yield _tarred(tar)


def _reading(archive: Path, members: Iterator[Member]) -> Iterator[Member]:
    """The members; what is damaged between two of them is told as the archive's."""
    while True:
        with _explained(archive):
            member = next(members, None)
        if member is None:
            return
        yield member


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    try:
        yield
    except DatasetInvalid:
        raise
    except (*DAMAGED, OSError) as error:
        raise DatasetInvalid(str(archive), f"it is damaged, or cannot be read ({error})") from error


def _zipped(opened: zipfile.ZipFile, on_progress: Progress) -> Iterator[Member]:
    infos = opened.infolist()
    for done, info in enumerate(infos, start=1):
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.flag_bits & 1:
            raise DatasetInvalid(
                str(opened.filename), "it is encrypted; unpack it yourself and add the folder"
            )
        if not info.is_dir():
            yield info.filename, kind in (0, stat.S_IFREG), lambda info=info: opened.open(info)  # type: ignore[misc]
        on_progress(done, len(infos))


def _tarred(tar: tarfile.TarFile) -> Iterator[Member]:
    for member in tar:
        if not member.isdir():
            yield member.name, member.isreg(), lambda member=member: tar.extractfile(member)  # type: ignore[misc]
        tar.members = []  # type: ignore[attr-defined]  # or it keeps a list of all that went by


class _Header(tarfile.TarInfo):
    """A tar member's header. Python takes one that is damaged or cut off, but the first, for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end is marked
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"nothing whole after {archive.offset:,} bytes, nor its end") from error


@contextmanager
def _tar(path: Path, on_progress: Progress) -> Iterator[tarfile.TarFile]:
    """A tar file as a stream, whatever it was compressed with."""
    with ExitStack() as stack:
        raw: Any = stack.enter_context(path.open("rb"))
        magic = raw.read(4)
        raw.seek(0)
        counted: Any = _Counted(raw, path.stat().st_size, on_progress)
        if magic == b"\x28\xb5\x2f\xfd":  # Python 3.11 has no zstandard of its own
            import pyarrow

            counted = stack.enter_context(
                pyarrow.CompressedInputStream(pyarrow.PythonFile(counted, "r"), "zstd")
            )
            yield stack.enter_context(tarfile.open(fileobj=counted, mode="r|", tarinfo=_Header))
        else:
            yield stack.enter_context(tarfile.open(fileobj=counted, mode="r|*", tarinfo=_Header))


class _Counted:
    """A file that tells how far it was read."""

    closed = False

    def __init__(self, file: IO[bytes], size: int, on_progress: Progress) -> None:
        self.file, self.size, self.on_progress, self.done = file, size, on_progress, 0

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.done += len(content)
        self.on_progress(self.done, self.size)
        return content

    def close(self) -> None:
        """The file is closed by whoever opened it."""


def _below(archive: Path, name: str) -> PurePosixPath:
    """A member's place below the folder. Raises DatasetInvalid where it would be elsewhere."""
    path = PurePosixPath(name)
    outside = path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts
    if outside or not path.parts or "\0" in name or "\\" in name:
        raise DatasetInvalid(str(archive), f"its member {_shown(name)} leads out of the archive")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DatasetInvalid(str(archive), f"the name of its member {_shown(name)} is not UTF-8") from error
    return path


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 100 else f"{name[:99]}…")


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _is_wanted(path: PurePosixPath) -> bool:
    return is_image(path.name) or path.name in NAMES or path.suffix in TABLES


def _write(archive: Path, source: IO[bytes], folder: Path, path: PurePosixPath, room: int) -> int:
    """→ how many bytes. Raises DatasetInvalid where they are more than there is room for."""
    most = min(room, LARGEST_FILE_BYTES)
    size = 0
    try:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        sink = (folder / path).open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise DatasetInvalid(
            str(archive), f"{_shown(str(path))} is both a file and a folder in it"
        ) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DatasetInvalid(str(archive), f"the name {_shown(str(path))} is too long") from error
        raise
    with source, sink:
        while True:
            with _explained(archive):
                chunk = source.read(CHUNK_BYTES)
            if not chunk:
                return size
            size += len(chunk)
            if size > most:
                reason = (
                    f"unpacked, it has more than {most:,} bytes at {_shown(str(path))}: no archive of images"
                )
                raise DatasetInvalid(str(archive), reason)
            sink.write(chunk)


def _innermost(folder: Path) -> Path:
    """Archives often hold one folder that holds the rest; a single class is not that."""
    entries = list(folder.iterdir())
    if len(entries) != 1 or not entries[0].is_dir():
        return folder
    inside = list(entries[0].iterdir())
    holds = any(path.is_dir() or path.name in NAMES or path.suffix in TABLES for path in inside)
    return _innermost(entries[0]) if holds else folder
