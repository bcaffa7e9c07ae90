"""What the S3 store does beyond the contract: parts, checksums, cut lines, its cache, its silence."""

from __future__ import annotations

import hashlib
import os
import traceback
from pathlib import Path
from typing import Any

import boto3
import pytest

from registry import errors
from registry.collection import collect
from registry.session import connect, sessions
from registry.storage import open_store
from registry.storage.s3 import S3Store
from tests.unit.registry.conftest import Line

PART = 5 << 20  # the least that S3 takes
LARGE = os.urandom(1 << 20) * 12 + b"and a little more"
LARGE_DIGEST = hashlib.sha256(LARGE).hexdigest()


def store_at(endpoint: str, folder: Path, attempts: int = 4) -> S3Store:
    name = f"{folder.parent.name}-{folder.name}"
    return S3Store(
        "blobs", name, cache=folder / "cache", endpoint=endpoint, part_bytes=PART, attempts=attempts
    )


def bare(endpoint: str) -> Any:
    return boto3.client("s3", endpoint_url=endpoint)


@pytest.fixture
def store(s3_endpoint: str, tmp_path: Path) -> S3Store:
    """A store on a good line."""
    return store_at(s3_endpoint, tmp_path)


def test_a_large_blob_goes_in_parts_and_comes_back_whole(
    store: S3Store, tmp_path: Path, s3_endpoint: str
) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    assert store.put_file(tmp_path / "large") == LARGE_DIGEST
    store.verify(LARGE_DIGEST)
    assert store.path(LARGE_DIGEST).read_bytes() == LARGE
    assert store.size_bytes(LARGE_DIGEST) == len(LARGE)
    assert list(store.leftovers()) == []
    key = f"{store.prefix}{LARGE_DIGEST[:2]}/{LARGE_DIGEST[2:]}"
    head = bare(s3_endpoint).head_object(Bucket="blobs", Key=key)
    assert head["ETag"].strip('"').endswith("-3")


def test_a_file_that_changes_while_it_is_sent_is_not_stored(store: S3Store, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    with path.open("rb") as source, pytest.raises(errors.BlobDamaged):
        store._put(source, "0" * 64, len(LARGE))
    with path.open("rb") as source, pytest.raises(errors.StorageError):
        store._put(source, "0" * 64, 10)
    assert not store.exists("0" * 64)
    assert list(store.leftovers()) == []


def test_an_object_that_was_changed_in_the_bucket_is_found_when_read(
    store: S3Store, s3_endpoint: str
) -> None:
    digest = store.put_bytes(b"tensors")
    key = f"{store.prefix}{digest[:2]}/{digest[2:]}"
    bare(s3_endpoint).put_object(Bucket="blobs", Key=key, Body=b"tensorz")
    for ask in (store.verify, store.path, store.open):
        with pytest.raises(errors.BlobDamaged, match="was changed"):
            ask(digest)
    assert list(store._cache.digests()) == []
    store.put_bytes(b"tensors")
    store.verify(digest)


def test_the_cache_answers_while_it_is_whole_and_is_filled_anew_when_it_is_not(
    store: S3Store, s3_endpoint: str, tmp_path: Path
) -> None:
    digest = store.put_bytes(b"tensors")
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"tensorz")
    assert store_at(s3_endpoint, tmp_path).path(digest).read_bytes() == b"tensors"
    path.unlink()
    assert store.path(digest).read_bytes() == b"tensors"
    away = store_at("http://127.0.0.1:1", tmp_path)
    away._cache = store._cache
    assert away.path(digest).read_bytes() == b"tensors"


def test_a_read_whose_line_is_cut_goes_on_where_it_broke_off(
    store: S3Store, tmp_path: Path, line: Line
) -> None:
    store.put_bytes(LARGE)
    line.limit_bytes, line.cuts = 3 << 20, 3
    broken = store_at(line.address, tmp_path)
    assert broken.path(LARGE_DIGEST).read_bytes() == LARGE
    assert line.happened == 3
    line.happened = 0
    broken.verify(LARGE_DIGEST)
    assert line.happened == 3


@pytest.mark.timeout(120)
def test_a_read_whose_line_is_always_cut_leaves_nothing_in_the_cache(
    store: S3Store, tmp_path: Path, line: Line
) -> None:
    store.put_bytes(LARGE)
    line.limit_bytes, line.cuts = 5000, 1000
    broken = store_at(line.address, tmp_path, attempts=2)
    with pytest.raises(errors.StorageUnreachable):
        broken.path(LARGE_DIGEST)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.timeout(120)
def test_a_put_whose_line_is_cut_tries_again_and_in_the_end_leaves_no_blob(
    store: S3Store, tmp_path: Path, line: Line
) -> None:
    line.limit_bytes, line.cuts = 3 << 20, 2
    broken = store_at(line.address, tmp_path)
    assert broken.put_bytes(LARGE) == LARGE_DIGEST
    store.verify(LARGE_DIGEST)
    store.remove(LARGE_DIGEST)
    line.cuts = 1000
    broken = store_at(line.address, tmp_path, attempts=1)
    with pytest.raises(errors.StorageUnreachable):
        broken.put_bytes(LARGE)
    assert not store.exists(LARGE_DIGEST)
    assert list(store.leftovers()) == []


def test_what_a_killed_upload_left_is_collected(store: S3Store, s3_endpoint: str, sqlite_url: str) -> None:
    client, key = bare(s3_endpoint), f"{store.prefix}aa/{'b' * 62}"
    upload = client.create_multipart_upload(Bucket="blobs", Key=key)
    client.upload_part(Bucket="blobs", Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"12345")
    ledger = sessions(connect(sqlite_url))
    assert collect(ledger, store).leftovers == ()
    orphan = store.put_bytes(b"nobody's")
    (found,) = store.leftovers()
    assert (found.size_bytes, found.name.endswith(key)) == (5, True)
    done = collect(ledger, store, grace_seconds=-60)
    assert ([each.digest for each in done.gone], len(done.leftovers)) == ([orphan], 1)
    assert list(store.leftovers()) == []
    assert list(store.digests()) == []


def test_a_bucket_or_a_server_that_is_not_there_is_said(s3_endpoint: str, tmp_path: Path) -> None:
    elsewhere = S3Store("nowhere", cache=tmp_path, endpoint=s3_endpoint)
    with pytest.raises(errors.StorageUnreachable, match="NoSuchBucket"):
        elsewhere.put_bytes(b"x")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:hidden@bucket/prefix", "holds credentials"),
        ("s3://bucket?endpoint=http://key:hidden@host", "endpoint holds credentials"),
        ("s3:///prefix", "names no bucket"),
        ("s3://bucket?secret=hidden", "the option 'secret'"),
        ("s3://bucket?path_style=perhaps", "neither true nor false"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_being_repeated(url: str, words: str) -> None:
    with pytest.raises(errors.StorageUrlInvalid, match=words) as caught:
        open_store(url)
    assert "hidden" not in "".join(traceback.format_exception(caught.value, limit=0))


def test_no_error_shows_the_secret(
    s3_endpoint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for store in (
        S3Store("nowhere", cache=tmp_path, endpoint=s3_endpoint, attempts=1),
        S3Store("blobs", cache=tmp_path, endpoint="http://127.0.0.1:1", attempts=1),
    ):
        with pytest.raises(errors.StorageUnreachable) as caught:
            store.put_bytes(b"x")
        assert "a very secret word" not in "".join(traceback.format_exception(caught.value))
        assert "a very secret word" not in repr(vars(store))
    assert "a very secret word" not in "".join(capfd.readouterr())
