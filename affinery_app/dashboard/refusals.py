"""What is refused before a page is reached, or breaks in one, told as a page to a browser."""

from __future__ import annotations

import json
from contextlib import suppress
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from affinery_app.api.bodies import kind_of
from affinery_app.api.guard import (
    CSRF_MISSING,
    FORM,
    LONGEST_PLACE,
    SIGN_IN,
    SIGN_OUT,
    Telling,
    for_machines,
)
from affinery_app.api.problems import MEDIA_TYPE
from affinery_app.dashboard.visit import Visit, told
from affinery_app.wiring import Workspace

PLACES = (
    *("adapters", "backbones", "compare", "compositions", "datasets"),
    *("events", "health", "jobs", "lineage", "new", "search", "tasks"),
)
OURS = {"content-length", "content-type"}
NOT_KEPT = {"csrf", "said"}  # of a session, and of what was done before


def as_pages(space: Workspace) -> Telling:
    """Problems become pages for who asks for a page. The API's own addresses answer as they always do."""

    def telling(scope: Scope, receive: Receive, send: Send) -> Send:
        headers = Headers(scope=scope)
        wanted = "text/html" in headers.get("accept", "")
        if not wanted or scope["method"] not in ("GET", "POST"):
            return send
        if for_machines(scope["path"]) and not _of_a_page(scope, headers):
            return send
        return _telling(space, scope, receive, send)

    return telling


def _of_a_page(scope: Scope, headers: Headers) -> bool:
    """Whether it is the form by which one signs in or out."""
    return scope["path"] in (SIGN_IN, SIGN_OUT) and kind_of(headers) == FORM


def _telling(space: Workspace, scope: Scope, receive: Receive, send: Send) -> Send:
    start: Message | None = None
    body = b""

    async def tell(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start" and _is_problem(message):
            start = message
        elif start is None:
            await send(message)
        else:
            body += message.get("body", b"")
            if not message.get("more_body", False):
                problem = json.loads(body)
                if scope["path"] == SIGN_IN:
                    shown = _not_signed_in(space, scope, problem)
                elif problem["status"] == 401 and not _is_in(scope):
                    shown = await _sign_in(space, scope, receive)
                elif problem["title"] == CSRF_MISSING:
                    shown = await _outdated(space, scope, receive)
                else:
                    shown = _page(space, scope, problem)
                for name, value in MutableHeaders(scope=start).items():  # Retry-After, Allow …
                    if name not in OURS:
                        shown.headers[name] = value
                await send({"type": start["type"], "status": start["status"], "headers": shown.raw_headers})
                await send({"type": "http.response.body", "body": shown.body})

    return tell


def _is_problem(start: Message) -> bool:
    return MutableHeaders(scope=start).get("content-type", "") == MEDIA_TYPE


def _is_in(scope: Scope) -> bool:
    """Whether who asks was let in."""
    return "who" in scope.get("state", {})


def _not_signed_in(space: Workspace, scope: Scope, problem: dict[str, Any]) -> Response:
    """What was shown was not looked at, and why: one may show it again."""
    visit = Visit(Request(scope), space)
    following = getattr(visit.request.state, "following", "/")
    return visit.answer("login.html", problem["status"], wrong=problem["detail"], following=following)


async def _sign_in(space: Workspace, scope: Scope, receive: Receive) -> Response:
    """A form that came with a session that is over: where one signs in, and goes back to the form's page."""
    visit = Visit(Request(scope, receive), space)
    wrong = "Your session has ended, so nothing was changed. Sign in again, and you are back where you were."
    return visit.answer("login.html", 401, wrong=wrong, following=await _came_from(visit))


async def _outdated(space: Workspace, scope: Scope, receive: Receive) -> Response:
    """A form of a page that was opened in another session: the way back to that page."""
    visit = Visit(Request(scope, receive), space)
    detail = (
        "It was opened before you signed in the last time, so nothing was changed. Open it again and send it "
        "from there."
    )
    back = await _came_from(visit)
    return visit.answer("refused.html", 403, title="This page is out of date", detail=detail, back=back)


async def _came_from(visit: Visit) -> str:
    """The page of a form that was sent; the first page where that is not told.

    What was filled in goes with it where the page is at the form's own address, which takes it as its query.
    """
    scope = visit.request.scope
    came = urlsplit(visit.request.headers.get("referer", ""))
    path, words = "/", dict[str, str]()
    if came.netloc == visit.request.headers.get("host"):
        path = came.path or "/"
        words = dict(parse_qsl(came.query, keep_blank_values=True))
    if unquote(path) == scope["path"]:
        with suppress(HTTPException, ClientDisconnect):  # too much, or not all of it
            words |= dict(parse_qsl((await visit.request.body()).decode(errors="replace")))
    query = urlencode({name: value for name, value in words.items() if name not in NOT_KEPT})
    place = f"{path}?{query}" if query else path
    return place if len(place) <= LONGEST_PLACE else path


def _page(space: Workspace, scope: Scope, problem: dict[str, Any]) -> Response:
    visit = Visit(Request(scope), space)
    status, detail = problem["status"], problem["detail"]
    if not _is_in(scope):  # nothing of the workspace is shown
        return visit.answer("refused.html", status, title=problem["title"], detail=detail, back="")
    if status == 404:
        detail = "There is no page at this address."
        meant = get_close_matches(scope["path"].split("/")[1].lower(), PLACES, n=1)
        return told(visit, status, detail, near=f"/{meant[0]}" if meant else "")
    return told(visit, status, detail)
