"""What goes wrong, in one shape: problem+json (RFC 9457). Bad input is never the server's fault."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from affinery.errors import AffineryError, UnknownName, UserError
from affinery_app.api.errors import (
    FileGone,
    NoRoom,
    NotGranted,
    PreconditionFailed,
    PreconditionRequired,
    ScopeMissing,
    UploadMoved,
    UploadOverlong,
    UploadUnfinished,
)
from orchestration.errors import DatasetUnavailable, DataUnwritable, JobIsOver, JobNotFound, TaskIsBusy
from registry import errors

MEDIA_TYPE = "application/problem+json"
log = logging.getLogger(__name__)
# The first that fits counts: the special before the general.
STATUSES: tuple[tuple[type[AffineryError], int], ...] = (
    (ScopeMissing, 403),
    (NotGranted, 403),
    (PreconditionFailed, 412),
    (PreconditionRequired, 428),
    (errors.NotFound, 404),
    (JobNotFound, 404),
    (UnknownName, 404),
    (errors.AliasMoved, 412),
    (errors.AmbiguousRef, 409),
    (errors.TaskExists, 409),
    (errors.TokenExists, 409),
    (errors.WebhookExists, 409),
    (errors.NameTaken, 409),
    (errors.TaskHeld, 409),
    (errors.GateClosed, 409),
    (errors.StaleFence, 409),
    (errors.Refused, 409),
    (TaskIsBusy, 409),
    (JobIsOver, 409),
    (UploadMoved, 409),
    (UploadUnfinished, 409),
    (UploadOverlong, 413),
    (FileGone, 404),
    (NoRoom, 507),
    (DataUnwritable, 507),
    (DatasetUnavailable, 503),
    (errors.BlobUnknown, 422),
    (errors.RegistryBusy, 503),
    (errors.RegistryUnreachable, 503),
    (errors.RegistryMissing, 503),
    (errors.RegistryOutdated, 503),
    (errors.RegistryTooNew, 503),
    (errors.RegistryDamaged, 503),
    (errors.RegistryReadOnly, 503),
    (errors.StorageUnreachable, 503),
    (errors.StorageReadOnly, 503),
    (errors.RegistryFull, 507),
    (errors.StorageFull, 507),
    (UserError, 422),
    (AffineryError, 500),
)
RETRY_SECONDS = "1"
FASTAPIS = "There was an error parsing the body"  # what it says of all that is no JSON to it, but a misprint
UNREAD = (
    "It is no JSON that is read here: send it in UTF-8, nested as deep as what is asked for, its numbers of "
    "a thousand digits at most."
)


class Fault(BaseModel):
    """One thing that is wrong with a request, and where it stands."""

    where: str = Field(examples=["query.limit"])
    detail: str


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(examples=["urn:affinery:not-found"])
    title: str
    status: int
    detail: str
    faults: list[Fault] | None = Field(default=None, description="Of a request that cannot be read.")


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    faults: list[Fault] | None = None,
) -> Response:
    """A problem as an answer; its type is made of its title."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    shown = Problem(type=f"urn:affinery:{name}", title=title, status=status, detail="", faults=faults)
    said = shown.model_dump(exclude_none=True) | {"detail": detail}
    # What was asked may stand in the answer, and need not be text that UTF-8 can say.
    body = json.dumps(said, ensure_ascii=False).encode(errors="backslashreplace")
    return Response(body, status, headers, MEDIA_TYPE)


def of_error(error: AffineryError) -> Response:
    """The problem that one of our errors is."""
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    headers = {"Retry-After": RETRY_SECONDS} if isinstance(error, errors.RegistryBusy) else None
    return problem(status, _title(error), said_of(error), headers=headers)


def said_of(error: AffineryError) -> str:
    """What a caller is told; the server's log has the rest, where that names places of its machine."""
    told = error.elsewhere()
    if told != str(error):
        log.warning("%s", error)
    return told


def _title(error: AffineryError) -> str:
    """Its name in words: AliasMoved is "Alias moved"."""
    words = re.findall(r"[A-Z][a-z0-9]*", type(error).__name__)
    return " ".join([words[0], *(word.lower() for word in words[1:])])


def tell(app: FastAPI) -> None:
    """Have every error of this application answered as a problem."""

    @app.exception_handler(AffineryError)
    async def _ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, AffineryError)
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def _unreadable(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        unread = error.errors()[0]
        if unread["type"] == "json_invalid":
            place = f"after {unread['loc'][-1]} characters"
            return problem(400, "Body unreadable", f"It is no JSON {place}: {unread['ctx']['error']}.")
        faults = [_fault(each) for each in error.errors()[:20]]
        first = faults[0]
        detail = f"{first.where}: {first.detail}." + (" And more, see faults." if len(faults) > 1 else "")
        return problem(422, "Request invalid", detail, faults=faults)

    @app.exception_handler(HTTPException)
    async def _refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = error.headers
        if error.status_code == 405:
            headers = {"Allow": ", ".join(_methods(app, request.scope))}
        details = {
            404: "There is nothing at this address. What there is: /openapi.json",
            405: f"This address takes {(headers or {}).get('Allow')} only.",
            **({400: UNREAD} if error.detail == FASTAPIS else {}),
        }
        titles = {
            400: "Body unreadable",
            404: "Nothing here",
            405: "Method not allowed",
            416: "Range not satisfiable",
        }
        title = titles.get(error.status_code, "Request refused")
        detail = details.get(error.status_code, str(error.detail))
        return problem(error.status_code, title, detail, headers=headers)

    @app.exception_handler(DataError)
    async def _unkeepable(_: Request, __: Exception) -> Response:
        return problem(
            422, "Value unkeepable", "The database cannot keep or compare a value of this request."
        )

    @app.exception_handler(ClientDisconnect)
    async def _gone(_: Request, __: Exception) -> Response:
        return problem(400, "Body unreadable", "It ended before it was whole.")

    @app.exception_handler(Exception)
    async def _unforeseen(_: Request, __: Exception) -> Response:
        return problem(500, "Unforeseen", "Something went wrong here; the server's log says what.")


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """What may be asked of an address, by whichever of the routes that answer there."""
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.router.routes)
    ]


def _fault(error: Mapping[str, Any]) -> Fault:
    where = ".".join(str(each)[:80] for each in error["loc"])
    said = str(error["msg"]).removeprefix("Value error, ")  # pydantic's, of what our own checks say
    return Fault(where=_sayable(where), detail=_sayable(said)[:500])


def _sayable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
