"""What is refused before a page is reached, or breaks in one, told as a page to a browser."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from affinery_app.api.guard import Telling, for_machines
from affinery_app.api.problems import MEDIA_TYPE
from affinery_app.dashboard.visit import Visit, told
from affinery_app.wiring import Workspace

PLACES = (
    *("adapters", "backbones", "compare", "compositions", "datasets"),
    *("events", "health", "jobs", "lineage", "new", "search", "tasks"),
)
OURS = {"content-length", "content-type"}


def as_pages(space: Workspace) -> Telling:
    """Problems become pages for who asks for a page. The API's own addresses answer as they always do."""

    def telling(scope: Scope, send: Send) -> Send:
        wanted = "text/html" in Headers(scope=scope).get("accept", "")
        if not wanted or scope["method"] not in ("GET", "POST") or for_machines(scope["path"]):
            return send
        return _telling(space, scope, send)

    return telling


def _telling(space: Workspace, scope: Scope, send: Send) -> Send:
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
                shown = _page(space, scope, json.loads(body))
                for name, value in MutableHeaders(scope=start).items():  # Retry-After, Allow …
                    if name not in OURS:
                        shown.headers[name] = value
                await send({"type": start["type"], "status": start["status"], "headers": shown.raw_headers})
                await send({"type": "http.response.body", "body": shown.body})

    return tell


def _is_problem(start: Message) -> bool:
    return MutableHeaders(scope=start).get("content-type", "") == MEDIA_TYPE


def _page(space: Workspace, scope: Scope, problem: dict[str, Any]) -> Response:
    visit = Visit(Request(scope), space)
    status, detail = problem["status"], problem["detail"]
    if "who" not in scope.get("state", {}):  # not let in: nothing of the workspace is shown
        return visit.answer("refused.html", status, title=problem["title"], detail=detail)
    if status == 404:
        detail = "There is no page at this address."
        meant = get_close_matches(scope["path"].split("/")[1].lower(), PLACES, n=1)
        return told(visit, status, detail, near=f"/{meant[0]}" if meant else "")
    return told(visit, status, detail)
