"""What stands before every route: who may come in, how much may be sent, which headers every answer has."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from affinery_app.api.access import Token, is_loopback
from affinery_app.api.problems import problem

OPEN = ("/healthz",)
UPLOADS = "/v1/blobs"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """How much one request may bring, in bytes."""

    body_bytes: int = 1 << 20
    upload_bytes: int = 8 << 30


class Guard:
    """An application behind a token (or, without one, for this machine only) and behind limits."""

    def __init__(self, app: ASGIApp, token: Token | None, limits: Limits) -> None:
        self.app = app
        self.token = token
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        limit = self.limits.upload_bytes if scope["path"] == UPLOADS else self.limits.body_bytes
        refusal = self._refusal(scope, limit)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, _counting(receive, limit), send_with_headers)

    def _refusal(self, scope: Scope, limit: int) -> Response | None:
        headers = Headers(scope=scope)
        if self.token is None and not is_loopback(_host(headers.get("host", ""))):
            # A page of somebody else's may have its own name point here.
            return problem(421, "Misdirected", "Without a token this service answers to localhost only.")
        if self.token is not None and scope["path"] not in OPEN:
            shown = headers.get("authorization", "").encode("latin-1")
            if not self.token.admits(shown):
                detail = "Show the service's token: Authorization: Bearer …"
                return problem(401, "Unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
        said = headers.get("content-length", "")
        if said.isascii() and said.isdigit() and len(said) < 20 and int(said) > limit:
            return too_large(limit)
        return None


def too_large(limit: int) -> Response:
    return problem(413, "Body too large", f"A body here has {limit:,} bytes at most.")


def _counting(receive: Receive, limit: int) -> Receive:
    """What comes without a length is counted as it comes."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"A body here has {limit:,} bytes at most.")
        return message

    return counted


def _host(said: str) -> str:
    """The name in a Host header, without its port."""
    return said.partition("]")[0] if said.startswith("[") else said.partition(":")[0]
