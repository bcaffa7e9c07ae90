"""ETags: what was read before is known by them, and is not sent again, or not changed but as it was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from affinery_app.api.errors import PreconditionFailed
from registry.digests import digest_of


def etag_of(value: Any) -> str:
    """The ETag of what may change without being counted."""
    return f'"{digest_of(value)[:32]}"'


def listed(said: str) -> list[str]:
    """The ETags that a header names, or *."""
    return [each.strip() for each in said.split(",")]


def held(what: str, etag: str, if_match: str | None) -> None:
    """PreconditionFailed where the change was meant for something else than what is there."""
    if if_match is not None and not {"*", etag} & set(listed(if_match)):
        raise PreconditionFailed(what, etag)


def is_had(headers: Mapping[str, str], etag: str) -> bool:
    """Whether who asks says that they have it (RFC 9110, 13.1.2)."""
    said = listed(headers.get("if-none-match", ""))
    return "*" in said or etag in (each.removeprefix("W/") for each in said)


def unless_had(headers: Headers, send: Send) -> Send:
    """The way for an answer to who may have it already: 304 and nothing more, where they do."""
    had = False

    async def sent(message: Message) -> None:
        nonlocal had
        if message["type"] == "http.response.start" and message["status"] == 200:
            told = MutableHeaders(scope=message)
            had = "etag" in told and is_had(headers, told["etag"])
            if had:
                message["status"] = 304
                for name in ("content-length", "content-type"):
                    del told[name]
        elif had and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sent if "if-none-match" in headers else send
