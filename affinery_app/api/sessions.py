"""/session: a browser shows a token once, and has a cookie from then on."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from affinery_app.api.access import COOKIE, Registered, Who, cookie_of, csrf_of
from affinery_app.api.bodies import JSON, kind_of
from affinery_app.api.calls import Caller, Space, answer
from affinery_app.api.guard import FORM, LONGEST_PLACE, sign_in, too_many_wrong
from affinery_app.api.problems import problem
from affinery_app.api.rates import SLOW_SECONDS, Guesses
from affinery_app.api.rights import nouns
from affinery_app.wiring import Workspace
from registry import events, tokens

router = nouns("/session", "session")
LONGEST = 500  # characters of what is shown


class Shown(BaseModel):
    """The token that a browser shows; next: where its page wants to be afterwards, on this service."""

    token: str = Field(min_length=1, max_length=LONGEST)
    next: str = Field(default="", max_length=LONGEST_PLACE)


class Session(BaseModel):
    """Who is there, and what they may. csrf: what changes in a browser's session carry; "" for others."""

    name: str
    scope: str
    tasks: list[str] | None
    via: str
    expires_at: str | None
    csrf: str


_SHOWN = {"schema": Shown.model_json_schema()}
_BODY = {"requestBody": {"required": True, "content": {JSON: _SHOWN, FORM: _SHOWN}}}


@router.get("", response_model=Session)
def get_session(who: Caller) -> JSONResponse:
    """Who calls, and what they may."""
    return answer(_told(who, who.expires_at))


@router.post("", status_code=201, response_model=Session, openapi_extra=_BODY)
async def open_session(request: Request, space: Space) -> Response:
    """Show a token, and have a cookie for half a day. A form that does so is sent on to `next`."""
    form = kind_of(request.headers) == FORM
    new = await _read(request, form)
    request.state.following = _local(new.next)  # for the page that tells a browser of a refusal
    door = request.scope["state"].get("door")
    if not isinstance(door, Registered):
        detail = "Nobody has to show a token here: there is nothing to sign in to."
        return problem(409, "Session needless", detail)
    address = request.client.host if request.client is not None else ""
    who = await _shown(request, door, address, new.token.strip())
    if isinstance(who, Response):
        return who
    if who is None:
        if form:
            return RedirectResponse(sign_in(_local(new.next), wrong="1"), 303)
        return problem(401, "Unauthorized", "There is no active token of this text.")
    cookie, ends = await run_in_threadpool(_open, space, replace(who, address=address))
    seconds = int((ends - datetime.now(UTC)).total_seconds())
    told = _told(who, ends) | {"via": "session", "csrf": csrf_of(cookie)}
    done: Response = RedirectResponse(_local(new.next), 303) if form else JSONResponse(told, 201)
    done.set_cookie(
        COOKIE,
        cookie,
        max_age=seconds,
        httponly=True,
        samesite="strict",
        path="/",
        secure=_is_secure(request),
    )
    return done


@router.delete("", status_code=204, response_class=Response)
def close_session(request: Request, space: Space) -> Response:
    """End the session of the cookie that is sent."""
    return _closed(request, space, Response(status_code=204))


@router.post("/end", status_code=303, response_class=Response)
def end_session(request: Request, space: Space) -> Response:
    """The same for a form: then to the page where one shows a token."""
    return _closed(request, space, RedirectResponse("/login", 303))


async def _shown(request: Request, door: Registered, address: str, secret: str) -> Who | Response | None:
    """Whose token it is; None where it is nobody's; or that too many were wrong that came from there."""
    guesses: Guesses = request.scope["state"]["guesses"]
    async with guesses.turn(address, secret) as has_turn:
        if not has_turn:
            return too_many_wrong(math.ceil(SLOW_SECONDS))
        who = await run_in_threadpool(door.shown, secret)
    if who is not None:
        guesses.right(secret)
        return who
    wait = guesses.wrong(address, secret)
    return None if wait is None else too_many_wrong(wait)


async def _read(request: Request, form: bool) -> Shown:
    body = await request.body()
    try:
        if not form:
            return Shown.model_validate_json(body)
        fields = parse_qs(body.decode(), keep_blank_values=True)
        return Shown(**{name: values[0] for name, values in fields.items() if name in Shown.model_fields})
    except ValueError as error:
        unread = not isinstance(error, ValidationError) or error.errors()[0]["type"] == "json_invalid"
        detail = 'Send {"token": "aff_…"}, or a form with the field token.'
        if form and not unread:
            detail = f"That is no token: one has {LONGEST} characters at most, and one at least."
        raise HTTPException(400 if unread else 422, detail) from error


def _open(space: Workspace, who: Who) -> tuple[str, datetime]:
    with space.sessions.begin() as session:
        events.append(session, "session.opened", None, {"by": who.name, "from": who.address})
        return tokens.open_session(session, who.digest, who.expires_at)


def _closed(request: Request, space: Workspace, done: Response) -> Response:
    cookie = cookie_of(request.headers)
    if cookie:
        with space.sessions.begin() as session:
            tokens.close_session(session, cookie)
    done.delete_cookie(COOKIE, path="/")
    return done


def _told(who: Who, ends: datetime | None) -> dict[str, Any]:
    return {
        "name": who.name,
        "scope": who.scope,
        "tasks": None if who.tasks is None else list(who.tasks),
        "via": who.via,
        "expires_at": None if ends is None else ends.isoformat(),
        "csrf": who.csrf,
    }


def _local(place: str) -> str:
    """Where to go on this service; the first page where it would lead elsewhere."""
    plain = place.isascii() and place.isprintable() and "\\" not in place
    return place if plain and place.startswith("/") and not place.startswith("//") else "/"


def _is_secure(request: Request) -> bool:
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
