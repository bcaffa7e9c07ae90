"""Of what kind a request's body may be: looked at once, before it is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fastapi import HTTPException

JSON = "application/json"
BYTES = "application/octet-stream"
OF_BYTES: dict[str, Any] = {
    "requestBody": {"required": True, "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}
"""What OpenAPI says of a route that takes bytes as they are."""


def check(headers: Mapping[str, str], kinds: Collection[str]) -> None:
    """HTTPException (415) where a body comes that is of none of these kinds, or packed. No kinds: any."""
    if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
        return
    if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        detail = "Send the body as it is, without Content-Encoding: nothing is unpacked here."
        raise HTTPException(415, detail, {"Accept-Encoding": "identity"})
    kind = kind_of(headers)
    if kind.startswith("application/") and kind.endswith("+json"):
        kind = JSON
    if kinds and kind not in kinds:
        said = f"this is {kind[:80]!r}" if kind else "this says no kind"
        raise HTTPException(415, f"Send the body with Content-Type: {' or '.join(kinds)}; {said}.")


def kind_of(headers: Mapping[str, str]) -> str:
    """The Content-Type without its parameters; "" where there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()
