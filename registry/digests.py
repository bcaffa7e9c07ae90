"""Canonical JSON and digests: the identity of what has no file of its own."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from registry.errors import RecordInvalid

_WHOLE = 1e16  # from here on, floats are whole numbers, and written with an exponent
_DIGEST = re.compile(r"[0-9a-f]{64}")


def canonical(value: Any) -> bytes:
    """Sorted keys, UTF-8, no spaces, no NaN: equal values give equal bytes."""
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def is_digest(text: str) -> bool:
    """Whether this is 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def checked_digest(what: str, digest: str) -> str:
    """The digest, if it is 64 lower-case hexadecimal digits; RecordInvalid otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise RecordInvalid(
            what, f"{digest[:80]!r} is not a SHA-256 digest of 64 lower-case hexadecimal digits"
        )
    return digest


def plain(what: str, value: Any) -> Any:
    """The value as JSON reads it back, the same from both databases; RecordInvalid where it is not JSON."""
    try:
        text = canonical(value)
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        raise RecordInvalid(what, f"it is not plain JSON ({error})") from error
    if b"\\u0000" in text:
        raise RecordInvalid(what, "it holds the character U+0000, which PostgreSQL cannot keep")
    return json.loads(text, parse_float=_number)


def _number(text: str) -> float | int:
    """As PostgreSQL gives it back, which keeps decimal digits: no exponent, no zero below zero."""
    value = float(text)
    return int(value) if abs(value) >= _WHOLE else value + 0.0
