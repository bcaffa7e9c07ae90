"""What every blob store promises, and what the local one does when the machine does not go along."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry import errors
from registry.storage import open_store, stores
from registry.storage.contract import BlobStore, Leftover
from registry.storage.local import LocalStore

CONTENT = b"adapter tensors " * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=stores())
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """Every store that the folder holds."""
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        name = f"test%20{tmp_path.name}-{os.urandom(4).hex()}"
        return open_store(f"s3://blobs/{name}?endpoint={endpoint}&cache={tmp_path}/cache")
    return open_store(
        {"local": f"file://{tmp_path}/blob%20s", "memory": f"memory://{tmp_path}"}[request.param]
    )


def test_bytes_are_kept_under_the_digest_of_their_content(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert not store.exists(DIGEST)
    assert store.put_bytes(CONTENT) == store.put_file(tmp_path / "file") == DIGEST
    assert store.exists(DIGEST)
    assert store.path(DIGEST).read_bytes() == CONTENT
    with store.open(DIGEST) as stream:
        assert stream.read() == CONTENT
    assert store.size_bytes(DIGEST) == len(CONTENT)
    store.verify(DIGEST)
    assert list(store.digests()) == [DIGEST]


def test_a_blob_that_is_put_again_has_just_arrived_and_one_that_is_removed_is_gone(store: BlobStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # S3 tells whole seconds
    digest = store.put_bytes(CONTENT)
    first = store.arrived_at(digest)
    assert before <= first <= datetime.now(UTC)
    store.put_bytes(CONTENT)
    assert store.arrived_at(digest) >= first
    assert store.path(digest).exists()
    store.remove(digest)
    store.remove(digest)
    assert not store.exists(digest)
    assert list(store.leftovers()) == []
    for ask in (store.arrived_at, store.path):
        with pytest.raises(errors.BlobMissing):
            ask(digest)


def test_removing_a_leftover_that_is_gone_is_no_error(store: BlobStore) -> None:
    store.remove_leftover(Leftover("gone blob", 1, datetime.now(UTC)))


def test_empty_bytes_are_a_blob_too(store: BlobStore) -> None:
    digest = store.put_bytes(b"")
    assert digest == hashlib.sha256().hexdigest()
    assert store.size_bytes(digest) == 0
    store.verify(digest)


def test_a_blob_that_is_not_there_is_said_to_be_missing(store: BlobStore) -> None:
    for ask in (store.path, store.open, store.size_bytes, store.verify):
        with pytest.raises(errors.BlobMissing, match=DIGEST[:12]):
            ask(DIGEST)
    assert list(store.digests()) == []


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "/" * 64, "..".ljust(64, "a")]
)
def test_what_is_no_digest_never_becomes_a_path(store: BlobStore, digest: str) -> None:
    for ask in (store.path, store.open, store.exists, store.size_bytes, store.verify):
        with pytest.raises(errors.RecordInvalid):
            ask(digest)


def test_an_unknown_scheme_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(errors.StorageUnknown, match="Known: file, memory, s3"):
        open_store("s4://bucket")
    assert isinstance(open_store(str(tmp_path)), LocalStore)


def test_a_changed_blob_is_found_and_putting_it_again_mends_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    store.put_bytes(CONTENT)
    place = store.path(DIGEST)
    place.chmod(0o644)
    place.write_bytes(CONTENT.replace(b"adapter", b"adaptor", 1))
    with pytest.raises(errors.BlobDamaged, match="was changed"):
        store.verify(DIGEST)
    store.put_bytes(CONTENT)
    store.verify(DIGEST)


def test_blobs_are_written_for_nobody_to_edit(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    store.put_bytes(CONTENT)
    assert store.path(DIGEST).stat().st_mode & 0o222 == 0


def test_many_writers_of_the_same_bytes_leave_one_whole_blob(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    threads = [threading.Thread(target=store.put_bytes, args=(CONTENT,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.verify(DIGEST)
    assert files_under(tmp_path) == [store.path(DIGEST)]


class Breaking(io.BytesIO):
    """A source that ends in an interruption."""

    def read(self, size: int | None = -1) -> bytes:
        chunk = super().read(min(size or -1, 4096))
        if not chunk:
            raise KeyboardInterrupt
        return chunk


def test_an_interrupted_put_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    with pytest.raises(KeyboardInterrupt):
        store.put_stream(Breaking(CONTENT), len(CONTENT))
    assert files_under(tmp_path) == []


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    small = store.put_bytes(b"small")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(errors.StorageFull, match=r"No space in .* for 16,000 bytes"):
            store.put_bytes(CONTENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert files_under(tmp_path) == [store.path(small)]
    store.put_bytes(CONTENT)
    store.verify(DIGEST)


KILLED = """
import os, signal, sys
from pathlib import Path
from registry.storage.local import LocalStore

class Deadly:
    def __init__(self): self.left = 3
    def read(self, size):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return b"x" * size

LocalStore(Path(sys.argv[1])).put_stream(Deadly(), 1)
"""


def test_a_killed_put_leaves_no_blob_and_does_not_hinder_the_next(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "blobs")
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.root)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(store.digests()) == []
    store.put_bytes(CONTENT)
    assert list(store.digests()) == [DIGEST]


def test_the_bytes_are_durable_before_the_name_and_the_name_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "blobs")
    store.put_bytes(b"so that the folders are there")
    happened: list[str] = []
    sync, replace = os.fsync, Path.replace

    def seen_sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        happened.append("sync folder" if path.is_dir() else "sync bytes")
        sync(descriptor)

    def seen_replace(source: Path, target: Path) -> Path:
        happened.append("rename")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_sync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    (store.root / DIGEST[:2]).mkdir(exist_ok=True)
    store.put_bytes(CONTENT)
    assert happened == ["sync bytes", "rename", "sync folder"]


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
