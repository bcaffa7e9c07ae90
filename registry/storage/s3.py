"""Blobs in an S3-compatible store: sent with checksums, verified when read, kept in a local cache.

    s3://bucket/prefix?endpoint=https://host:7070&region=us-east-1&path_style=true&cache=/var/cache/blobs

Credentials are those that boto3 finds by itself (environment, files, the machine's role); a URL that holds
some is refused. boto3 comes with `affinery[team]` and is imported at first use.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from registry.digests import checked_digest
from registry.errors import (
    BlobDamaged,
    BlobMissing,
    StorageFull,
    StorageUnreachable,
    StorageUrlInvalid,
)
from registry.storage.contract import Leftover
from registry.storage.local import LocalStore

_PART_BYTES = 64 << 20
_MOST_PARTS = 9_000  # S3 takes 10,000
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 5
_KEY = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})")
_SOURCE = "the file that was being stored"
_OPTIONS = {"endpoint", "region", "path_style", "cache"}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}


class S3Store:
    """See the contract. A blob is visible when it is whole: S3 shows no part of an upload before its end."""

    scheme: ClassVar[str] = "s3"

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        cache: Path | None = None,
        endpoint: str | None = None,
        region: str | None = None,
        path_style: bool | None = None,
        part_bytes: int = _PART_BYTES,
        attempts: int = _ATTEMPTS,
    ) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.where = f"s3://{bucket}/{self.prefix}"
        self._endpoint, self._region = endpoint, region
        # Stores at an endpoint of their own seldom have a host name for every bucket.
        self._path_style = bool(endpoint) if path_style is None else path_style
        self._part_bytes, self._attempts = part_bytes, attempts
        self._cache = LocalStore(cache or _default_cache(f"{endpoint or ''} {self.where}"))
        self._trusted: set[str] = set()  # what this process has read from the cache and found whole

    @classmethod
    def from_url(cls, url: str) -> Self:
        """s3://bucket/prefix?endpoint=…&region=…&path_style=…&cache=…"""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if "@" in parts.netloc:
            raise StorageUrlInvalid("s3", "it holds credentials; boto3 takes them from elsewhere")
        if not parts.netloc:
            raise StorageUrlInvalid("s3", "it names no bucket; write s3://bucket/prefix")
        if unknown := sorted(options.keys() - _OPTIONS):
            known = ", ".join(sorted(_OPTIONS))
            raise StorageUrlInvalid("s3", f"it has the option {unknown[0]!r}; known are {known}")
        if "@" in urlsplit(options.get("endpoint", "")).netloc:
            raise StorageUrlInvalid("s3", "its endpoint holds credentials; boto3 takes them from elsewhere")
        style = options.get("path_style")
        if style not in (None, "true", "false"):
            raise StorageUrlInvalid("s3", "its path_style is neither true nor false")
        return cls(
            parts.netloc,
            unquote(parts.path),
            cache=Path(options["cache"]) if options.get("cache") else None,
            endpoint=options.get("endpoint"),
            region=options.get("region"),
            path_style=None if style is None else style == "true",
        )

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise StorageUnreachable(self.where, "boto3 is missing: pip install 'affinery[team]'") from error
        config = Config(
            s3={"addressing_style": "path" if self._path_style else "auto"},
            retries={"mode": "standard", "max_attempts": self._attempts},
            connect_timeout=10,
            read_timeout=60,
            # Every request carries the SHA-256 that we give it, and what is read is compared with its name.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with self._speaking():
            own = boto3.Session()  # the one that boto3 shares may not be used by two threads at once
            return own.client("s3", endpoint_url=self._endpoint, region_name=self._region, config=config)

    # --- putting ---

    def put_file(self, path: Path) -> str:
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            source.seek(0)
            return self._put(source, digest, path.stat().st_size)

    def put_bytes(self, content: bytes) -> str:
        return self._put(io.BytesIO(content), hashlib.sha256(content).hexdigest(), len(content))

    def _put(self, source: BinaryIO, digest: str, size_bytes: int) -> str:
        """Sends even what is there already: that renews its date, and mends it if it was damaged."""
        key = self._key(digest)
        with self._speaking(size_bytes=size_bytes):
            if size_bytes <= self._part_bytes:
                content = source.read()
                if (found := hashlib.sha256(content)).hexdigest() != digest:
                    raise BlobDamaged(digest, found.hexdigest(), _SOURCE)
                checksum = _base64(found.digest())  # the store refuses other bytes than these
                self._client.put_object(Bucket=self.bucket, Key=key, Body=content, ChecksumSHA256=checksum)
            else:
                self._put_parts(source, key, digest, max(self._part_bytes, size_bytes // _MOST_PARTS))
        return digest

    def _put_parts(self, source: BinaryIO, key: str, digest: str, part_bytes: int) -> None:
        at = {"Bucket": self.bucket, "Key": key}
        upload = self._client.create_multipart_upload(**at, ChecksumAlgorithm="SHA256")
        at["UploadId"] = upload["UploadId"]
        whole = hashlib.sha256()
        parts: list[dict[str, Any]] = []
        try:
            while chunk := source.read(part_bytes):
                whole.update(chunk)
                number, checksum = len(parts) + 1, _base64(hashlib.sha256(chunk).digest())
                sent = self._client.upload_part(**at, PartNumber=number, Body=chunk, ChecksumSHA256=checksum)
                parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": checksum})
            if whole.hexdigest() != digest:
                raise BlobDamaged(digest, whole.hexdigest(), _SOURCE)
            self._client.complete_multipart_upload(**at, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(Exception):  # a store that is gone keeps it as a leftover
                self._client.abort_multipart_upload(**at)
            raise

    # --- reading ---

    def path(self, digest: str) -> Path:
        key = self._key(digest)
        if self._cached(digest):
            return self._cache.path(digest)
        with self._speaking(digest):
            found = self._cache.put_stream(self._reader(key), 0)
        if found != digest:
            self._cache.remove(found)
            raise BlobDamaged(digest, found, self.where)
        self._trusted.add(digest)
        return self._cache.path(digest)

    def _cached(self, digest: str) -> bool:
        """Whether the cache has the blob whole: read once a process, since disks forget too."""
        try:
            if digest not in self._trusted:
                self._cache.verify(digest)
            self._trusted.add(digest)
            return self._cache.exists(digest)
        except (BlobMissing, BlobDamaged):
            return False

    def open(self, digest: str) -> BinaryIO:
        return self.path(digest).open("rb")

    def exists(self, digest: str) -> bool:
        try:
            self._head(digest)
        except BlobMissing:
            return False
        return True

    def size_bytes(self, digest: str) -> int:
        return int(self._head(digest)["ContentLength"])

    def verify(self, digest: str) -> None:
        found = hashlib.sha256()
        with self._speaking(digest):
            source = self._reader(self._key(digest))
            while chunk := source.read(_CHUNK_BYTES):
                found.update(chunk)
        if found.hexdigest() != digest:
            raise BlobDamaged(digest, found.hexdigest(), self.where)

    def digests(self) -> Iterator[str]:
        for entry in self._pages("list_objects_v2", "Contents"):
            if match := _KEY.fullmatch(entry["Key"].removeprefix(self.prefix)):
                yield match[1] + match[2]

    def arrived_at(self, digest: str) -> datetime:
        when = self._head(digest)["LastModified"]
        assert isinstance(when, datetime)
        return when

    # --- taking away ---

    def remove(self, digest: str) -> None:
        key = self._key(digest)
        with self._speaking():
            self._client.delete_object(Bucket=self.bucket, Key=key)
        self._cache.remove(digest)

    def leftovers(self) -> Iterator[Leftover]:
        for upload in self._pages("list_multipart_uploads", "Uploads"):
            at = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            with self._speaking():
                parts = self._client.list_parts(**at).get("Parts", [])
            dates = [upload["Initiated"], *(part["LastModified"] for part in parts)]
            name = f"{upload['UploadId']} {upload['Key']}"
            yield Leftover(name, sum(part["Size"] for part in parts), max(dates))

    def remove_leftover(self, leftover: Leftover) -> None:
        upload_id, _, key = leftover.name.partition(" ")
        from botocore.exceptions import ClientError

        with self._speaking(), suppress(ClientError):  # it was finished or taken away meanwhile
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)

    # --- speaking with the store ---

    def _key(self, digest: str) -> str:
        checked_digest("A blob", digest)
        return f"{self.prefix}{digest[:2]}/{digest[2:]}"

    def _reader(self, key: str) -> _Resuming:
        return _Resuming(self._client, {"Bucket": self.bucket, "Key": key}, self._attempts)

    def _head(self, digest: str) -> Any:
        key = self._key(digest)
        with self._speaking(digest):
            return self._client.head_object(Bucket=self.bucket, Key=key)

    def _pages(self, operation: str, what: str) -> Iterator[Any]:
        with self._speaking():
            pages = self._client.get_paginator(operation).paginate(Bucket=self.bucket, Prefix=self.prefix)
            found = [entry for page in pages for entry in page.get(what, [])]
        yield from found

    @contextmanager
    def _speaking(self, digest: str = "", size_bytes: int = 0) -> Iterator[None]:
        """Turn the client's errors into ours. None of its messages holds a secret; nor does the address."""
        try:
            from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        except ImportError as error:
            raise StorageUnreachable(self.where, "boto3 is missing: pip install 'affinery[team]'") from error
        try:
            yield
        except ClientError as error:
            code, words = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
            if digest and code in _MISSING:
                raise BlobMissing(digest, self.where) from error
            if code in _FULL:
                raise StorageFull(self.where, size_bytes) from error
            raise StorageUnreachable(self.where, f"{code}: {words}".rstrip(" :.")) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise StorageUnreachable(self.where, str(error).rstrip(".")) from error


class _Resuming:
    """An object's bytes; a connection that is cut is taken up where it broke off, of the same object."""

    def __init__(self, client: Any, at: dict[str, str], attempts: int) -> None:
        self._client, self._at, self._attempts = client, at, attempts
        answer = client.get_object(**at)
        self._body, self._same = answer["Body"], {"IfMatch": answer["ETag"]}
        self._read_bytes = 0

    def read(self, size: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        from botocore.exceptions import BotoCoreError, HTTPClientError

        left = self._attempts
        while True:
            try:
                chunk: bytes = self._body.read(size)
            except (BotoCoreError, HTTPClientError, OSError):
                left -= 1
                if not left:
                    raise
                self._body.close()
                rest = f"bytes={self._read_bytes}-"
                self._body = self._client.get_object(**self._at, **self._same, Range=rest)["Body"]
            else:
                self._read_bytes += len(chunk)
                return chunk


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _default_cache(where: str) -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("affinery") / "blobs" / hashlib.sha256(where.encode()).hexdigest()[:16]


STORE = S3Store
