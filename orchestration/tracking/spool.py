"""The spool on disk: a folder a run, with the operations appended to a file, and how many MLflow has.

operations.jsonl   one operation a line; a line without its end was never promised
state.json         the MLflow run that it became, and how much was replayed
refused.jsonl      what MLflow will never take, with its reason
files/             copies of what is to be uploaded, until it was
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from affinery import tensor_files

OPERATIONS, STATE, REFUSED, FILES = "operations.jsonl", "state.json", "refused.jsonl", "files"
WRITING, REPLAYING = ".writing", ".replaying"
BATCH = 500
MOST_WAITING = 20_000
"""Operations that wait in memory for room on the disk, before the oldest are given up."""
LINKED_BYTES = 64 << 20
"""Files from this size on are linked, not copied, where the disk can: such ones are never written twice."""
log = logging.getLogger(__name__)


@dataclass
class Replayed:
    """One run's place in the spool: the MLflow run that it became, and how much of it was replayed."""

    folder: Path
    run_id: str | None = None
    offset: int = 0

    def save(self) -> None:
        content = json.dumps({"run_id": self.run_id, "offset": self.offset}).encode()
        tensor_files.write_whole(self.folder / STATE, content)

    def set_aside(self, raw: bytes, reason: str) -> None:
        """Keeps what can never be replayed beside the spool, with the reason, so that the rest goes on."""
        entry = {"reason": reason, "operations": raw.decode("utf-8", "replace")}
        with (self.folder / REFUSED).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


class Spool:
    """Appends never raise: what a full disk does not take waits in memory for what follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trouble: str | None = None
        self.lost = 0
        self._waiting: dict[str, list[bytes]] = {}
        self._lock = threading.Lock()

    def append(self, key: str, operation: Mapping[str, Any]) -> None:
        line = json.dumps(operation, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            waiting = self._waiting.setdefault(key, [])
            waiting.append(line)
            try:
                self._write(key, b"".join(waiting))
            except OSError as error:
                self._cannot_write(waiting, error)
            else:
                del self._waiting[key]
                if not self._waiting:
                    self.trouble = None

    def _cannot_write(self, waiting: list[bytes], error: OSError) -> None:
        reason = f"{self.folder} cannot be written ({error.strerror or error}): what MLflow is to be told"
        if self.trouble is None:
            log.warning("%s waits in memory. Make room before this process ends.", reason)
        self.trouble = f"{reason} is not on disk."
        while len(waiting) > MOST_WAITING:
            del waiting[1]  # the first begins the run
            self.lost += 1

    def _write(self, key: str, content: bytes) -> None:
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / WRITING), (folder / OPERATIONS).open("ab+", buffering=0) as file:
            end = _drop_torn_line(file)
            try:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise

    def keep(self, key: str, path: Path) -> str:
        """A copy of a file, beside the operations, that stays until it was uploaded; else the file itself."""
        files = self.folder / key / FILES
        kept = files / f"{uuid.uuid4().hex[:8]}-{path.name}"
        try:
            files.mkdir(parents=True, exist_ok=True)
            if path.stat().st_size >= LINKED_BYTES:
                with suppress(OSError):
                    os.link(path, kept)
                    return str(kept)
            shutil.copyfile(path, kept)
        except OSError as error:
            kept.unlink(missing_ok=True)
            log.warning("%s is not copied for MLflow (%s); it is read where it lies.", path, error)
            return str(path)
        return str(kept)

    def begun(self) -> list[str]:
        """Every run that has begun."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{OPERATIONS}"))

    def knows(self, key: str) -> bool:
        return key in self._waiting or (self.folder / key / OPERATIONS).exists()

    def pending(self) -> list[str]:
        """Those of which MLflow has not got everything yet."""
        waiting = set(self._waiting)
        for key in self.begun():
            if self.replayed(key).offset < (self.folder / key / OPERATIONS).stat().st_size:
                waiting.add(key)
        return sorted(waiting)

    def replayed(self, key: str) -> Replayed:
        folder = self.folder / key
        try:
            state = json.loads((folder / STATE).read_bytes())
            return Replayed(folder, state["run_id"], int(state["offset"]))
        except (OSError, ValueError, KeyError):
            return Replayed(folder)

    def operations(self, key: str) -> list[dict[str, Any]]:
        """Everything that a run was told, replayed or not."""
        try:
            lines = _whole_lines((self.folder / key / OPERATIONS).read_bytes())
        except FileNotFoundError:
            return []
        return [operation for operation in map(_parsed, lines) if operation is not None]

    def fresh(self, replayed: Replayed) -> Iterator[tuple[dict[str, Any] | None, bytes]]:
        """What was not replayed yet, metrics of successive lines in one. → operation (or None), lines"""
        try:
            with (replayed.folder / OPERATIONS).open("rb") as file:
                file.seek(replayed.offset)
                lines = _whole_lines(file.read())
        except FileNotFoundError:  # all of it still waits in memory
            return
        at = 0
        while at < len(lines):
            operation, taken = _next_operation(lines, at)
            yield operation, b"".join(lines[at : at + taken])
            at += taken


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Holds a lock that ends with this process, whatever becomes of it."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _drop_torn_line(file: BinaryIO | Any) -> int:
    """A line without its end is of a process that died in it; nothing was promised of it. → the end"""
    end = int(file.seek(0, os.SEEK_END))
    start = end
    while start and (file.seek(start - 1), file.read(1))[1] != b"\n":
        start -= 1
    if start < end:
        file.truncate(start)
    return start


def _whole_lines(content: bytes) -> list[bytes]:
    """A torn last line waits for its end."""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _next_operation(lines: Sequence[bytes], at: int) -> tuple[dict[str, Any] | None, int]:
    """The operation at a line, with the metrics of the lines after it. → it (or None), its lines"""
    operation = _parsed(lines[at])
    if operation is None or operation["op"] != "metrics":
        return operation, 1
    points, taken = list(operation["points"]), 1
    while at + taken < len(lines) and len(points) < BATCH:
        following = _parsed(lines[at + taken])
        if following is None or following["op"] != "metrics":
            break
        points += following["points"]
        taken += 1
    return {"op": "metrics", "points": points}, taken


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "op" in found else None
