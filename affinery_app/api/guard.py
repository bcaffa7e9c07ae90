"""What stands before every route: who may come in, how much may be sent, which headers every answer has.

Whoever came in stands in `request.scope["state"]["who"]` (access.Who); on an open address it may be None.
Beside it stand the `door` and the `guesses`, for who shows a token at the sign-in.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from fastapi import Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from affinery.errors import AffineryError
from affinery_app.api.access import HERE, Door, Registered, Who, bearer, cookie_of, is_loopback
from affinery_app.api.bodies import kind_of
from affinery_app.api.problems import of_error, problem
from affinery_app.api.rates import SLOW_SECONDS, Buckets, Guesses
from affinery_app.api.rights import SAFE
from registry.asking import Asker, asked_by

# What nobody has to show anything for: the pages' own look, and where one shows a token.
SIGN_IN, SIGN_OUT = "/session", "/session/end"
OPEN = frozenset(("GET /healthz", f"POST {SIGN_IN}", f"POST {SIGN_OUT}", "GET /login"))
OPEN_FOLDER = "/static/"
LOGIN = "/login"
LONGEST_PLACE = 2000  # characters of an address that one is led back to
MACHINES = ("/v1", "/session", "/openapi.json")  # where no page is
UPLOADS = ("/v1/blobs", "/v1/uploads/")
CSRF_HEADER = "x-affinery-csrf"
CSRF_FIELD = "csrf"
CSRF_MISSING = "Csrf missing"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
_PEEKED = 4096  # how far into a form its first field is looked for
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """How much one request may bring, in bytes, and how often somebody may ask."""

    body_bytes: int = 1 << 20
    upload_bytes: int = 8 << 30
    burst: int = 400
    per_second: float = 100.0
    wrong_burst: int = 20
    wrong_per_second: float = 0.5


Telling = Callable[[Scope, Receive, Send], Send]
"""How an answer is sent on to who asked: where a browser is to read a problem, as a page."""


class Guard:
    """An application behind a door, and behind limits."""

    def __init__(
        self, app: ASGIApp, door: Door, limits: Limits, telling: Telling = lambda _, __, send: send
    ) -> None:
        self.app = app
        self.door = door
        self.limits = limits
        self.telling = telling
        self._asked = Buckets(limits.burst, limits.per_second)
        self.guesses = Guesses(Buckets(limits.wrong_burst, limits.wrong_per_second))
        self._aside: set[asyncio.Task[None]] = set()

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

        limit = self.limits.upload_bytes if scope["path"].startswith(UPLOADS) else self.limits.body_bytes
        body = _Body(_counting(receive, limit))
        tell = self.telling(scope, body.receive, send_with_headers)
        try:
            came = await self._came(scope, Headers(scope=scope), limit)
            if not isinstance(came, Response):
                came = await _forged(scope, Headers(scope=scope), came, body) or came
        except AffineryError as error:
            came = of_error(error)
        except HTTPException:
            came = too_large(limit)
        if isinstance(came, Response):
            await came(scope, receive, tell)
            return
        scope.setdefault("state", {}).update(who=came, door=self.door, guesses=self.guesses)
        if came is None or scope["method"] in SAFE:
            await self.app(scope, body.receive, tell)
            return
        with asked_by(Asker(came.name, came.via, came.address, f"{scope['method']} {scope['path']}"[:300])):
            await self.app(scope, body.receive, tell)

    async def _came(self, scope: Scope, headers: Headers, limit: int) -> Who | Response | None:
        """Who came in, or what they are told instead; None for nobody, where that is enough."""
        address = (scope.get("client") or ("",))[0]
        if await self.door.is_open():
            if not is_loopback(_host(headers.get("host", ""))):
                # A page of somebody else's may have its own name point here.
                return problem(421, "Misdirected", "Without a token this service answers to localhost only.")
            who: Who | None = HERE
        else:
            shown = bearer(headers) or cookie_of(headers)
            if _is_open(scope["method"], scope["path"]) or not shown:
                who = await self.door.admit(headers)
            else:
                async with self.guesses.turn(address, shown) as has_turn:
                    if not has_turn:
                        return too_many_wrong(math.ceil(SLOW_SECONDS))
                    who = await self.door.admit(headers)
            if who is None and not _is_open(scope["method"], scope["path"]):
                return self._unknown(scope, headers, address)
            if who is not None:
                self.guesses.right(shown)
                wait = self._asked.take(who.key)
                if wait is not None:
                    return too_often(wait)
                self._remember(who)
                who = replace(who, address=address)
        said = headers.get("content-length", "")
        if said.isascii() and said.isdigit() and len(said) < 20 and int(said) > limit:
            return too_large(limit)
        return who

    def _unknown(self, scope: Scope, headers: Headers, address: str) -> Response:
        path = scope["path"]
        if scope["method"] == "GET" and "text/html" in headers.get("accept", "") and not for_machines(path):
            ended = {"ended": "1"} if cookie_of(headers) else {}
            return RedirectResponse(sign_in(_place(scope), **ended), 303)
        shown = "authorization" in headers or "cookie" in headers
        wait = self.guesses.wrong(address, bearer(headers) or cookie_of(headers)) if shown else None
        if wait is not None:
            return too_many_wrong(wait)
        detail = "Show a token that is active: Authorization: Bearer …"
        return problem(401, "Unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})

    def _remember(self, who: Who) -> None:
        """Beside the request, and not in its way: a registry that is busy loses nothing but a time of day."""
        door = self.door
        if not isinstance(door, Registered) or not door.is_due(who):
            return

        async def remember() -> None:
            with contextlib.suppress(AffineryError):
                await run_in_threadpool(door.remember, who)

        task = asyncio.get_running_loop().create_task(remember())
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


def too_large(limit: int) -> Response:
    return problem(413, "Body too large", f"A body here has {limit:,} bytes at most.")


def too_often(seconds: int, why: str = "That was asked too often. Ask again") -> Response:
    return problem(429, "Too many requests", f"{why} in {seconds} s.", headers={"Retry-After": str(seconds)})


def too_many_wrong(seconds: int) -> Response:
    return too_often(seconds, "Too many wrong tokens came from this address. Try again")


def _is_open(method: str, path: str) -> bool:
    return f"{method} {path}" in OPEN or path.startswith(OPEN_FOLDER)


def sign_in(following: str, **said: str) -> str:
    """Where one shows a token, to be led on from there to a place of this service."""
    return f"{LOGIN}?{urlencode({'next': following, **said}, safe='/')}"


def _place(scope: Scope) -> str:
    """What was asked for, as an address has it: the path, and the query whole."""
    path, asked = quote(scope["path"], safe="/@:"), scope["query_string"].decode("latin-1")
    place = f"{path}?{asked}" if asked else path
    return next((each for each in (place, path) if len(each) <= LONGEST_PLACE), "/")


def for_machines(path: str) -> bool:
    """Whether no page is at this address."""
    return any(path == each or path.startswith(f"{each}/") for each in MACHINES)


async def _forged(scope: Scope, headers: Headers, who: Who | None, body: _Body) -> Response | None:
    """The refusal of a change that another site's page may have sent in a browser's name."""
    if scope["method"] in SAFE or (who is not None and who.via == "token"):
        return None
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    own = (f"http://{headers.get('host', '')}", f"https://{headers.get('host', '')}")
    if site not in (None, "same-origin", "none") or (origin is not None and origin not in own):
        return problem(403, "Cross-site", "A page of another site may change nothing here.")
    signs_in = (scope["method"], scope["path"]) == (
        "POST",
        SIGN_IN,
    )  # by what is shown, whoever was there before
    if who is not None and who.via == "session" and not signs_in:
        said = headers.get(CSRF_HEADER) or await _first_field(headers, body)
        if not hmac.compare_digest(said.encode(), who.csrf.encode()):
            detail = (
                "A change in a browser's session carries what GET /session gives as csrf: in the header "
                "X-Affinery-CSRF, or as the form's first field, csrf."
            )
            return problem(403, CSRF_MISSING, detail)
    return None


async def _first_field(headers: Headers, body: _Body) -> str:
    """The field csrf of a form, where it comes first; "" otherwise."""
    kind = kind_of(headers)
    if kind not in (FORM, MULTIPART):
        return ""
    start = (await body.peek(_PEEKED)).decode("latin-1")
    if kind == FORM:
        first = start.partition("&")[0]
        return parse_qs(first).get(CSRF_FIELD, [""])[0]
    head, _, rest = start.partition("\r\n\r\n")
    return rest.partition("\r\n")[0] if f'name="{CSRF_FIELD}"' in head else ""


class _Body:
    """A request's body, whose beginning can be looked at before it is received."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._waiting: list[Message] = []

    async def peek(self, size: int) -> bytes:
        """Its first bytes: so many, or more, or all."""
        seen = b""
        while len(seen) < size:
            message = await self._receive()
            self._waiting.append(message)
            seen += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body", False):
                break
        return seen

    async def receive(self) -> Any:
        """As the server gives it."""
        return self._waiting.pop(0) if self._waiting else await self._receive()


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
