"""What routes share: the workspace, references, pages, requests that are done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Header, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session

from affinery_app.api.access import Who
from affinery_app.wiring import Workspace
from registry import pages, requests
from registry.digests import digest_of, plain

LARGEST = 2**63 - 1
_NAMED = {"ref", "digest", "id", "name", "number", "upload", "webhook"}  # what a place may be called by


async def _space(request: Request) -> Workspace:
    space: Workspace = request.app.state.space
    return space


async def _who(request: Request) -> Who:
    who: Who = request.scope["state"]["who"]
    return who


Space = Annotated[Workspace, Depends(_space)]
Caller = Annotated[Who, Depends(_who)]
Ref = Annotated[str, Path(description="A name, name@version, name@alias, or a digest.", max_length=400)]
After = Annotated[int, Query(ge=0, le=LARGEST, description="`next` of the page before; 0 for the first.")]
Limit = Annotated[int, Query(ge=1, le=500, description="How many, at most.")]
IfMatch = Annotated[str | None, Header(description="The ETag that was read.", max_length=200)]
IfNoneMatch = Annotated[str | None, Header(description="* where nothing may be there.", max_length=200)]


class Once(BaseModel):
    """A request by the key that its sender chose, if any: sent again, it is answered alike and done once."""

    key: str | None
    caller: str
    by: str
    method: str
    path: str

    @property
    def job_key(self) -> str | None:
        """The key as a job has it: jobs know keys of all senders, and this one is its sender's alone."""
        return None if self.key is None else f"{self.key} of {self.by}"

    def do(
        self,
        space: Workspace,
        asked: Any,
        place: str,
        do: Callable[[Session], dict[str, Any]],
        etag: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> JSONResponse:
        """Do it in one transaction. place: where what was made can be read, by its `ref`; "" of a change.

        etag: that of what is answered.
        """
        again = False
        with space.sessions.begin() as session:
            if self.key is None:
                made = do(session)
            else:
                made, again = requests.once(
                    session, self.caller, self.key, self._asked(asked), lambda: do(session)
                )
        done = told(made, place, new=not again, key=self.key)
        if etag is not None:
            done.headers["ETag"] = etag(made)
        return done

    def answered(self, space: Workspace, asked: Any, place: str) -> JSONResponse | None:
        """What was answered to this request before; None where it is new."""
        if self.key is None:
            return None
        with space.sessions.read() as session:
            made = requests.answered(session, self.caller, self.key, self._asked(asked))
        return None if made is None else told(made, place, new=False, key=self.key)

    def _asked(self, asked: Any) -> str:
        return digest_of(plain("The request", [self.method, self.path, asked]))


def told(made: Mapping[str, Any], place: str, *, new: bool, key: str | None) -> JSONResponse:
    """What was made, and where it can be read; or what was changed, where place is ""."""
    named = {name: quote(str(made[name]), safe="@") for name in made.keys() & _NAMED}
    headers = {"Location": place.format(**named)} if place else {}
    if key is not None and not new:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(dict(made), 201 if place else 200, headers)


async def _once(
    request: Request,
    who: Caller,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Of your choice; kept for a day.", min_length=1, max_length=255, pattern="^[!-~]+$"
        ),
    ] = None,
) -> Once:
    return Once(
        key=idempotency_key, caller=who.key, by=who.name, method=request.method, path=request.url.path
    )


Posting = Annotated[Once, Depends(_once)]
UNKEYED = {
    "estimate_tasks": "It keeps nothing.",
    "create_token": "Its answer has a secret, which is not kept to be told again. The name is taken: 409.",
    "create_webhook": "Its answer has a secret, which is not kept to be told again. The name is taken: 409.",
    "open_session": "Its answer has a secret, which is not kept to be told again. One more ends by itself.",
    "end_session": "What has ended stays so.",
}
"""The routes that are posted to and take no Idempotency-Key, and why."""


def attached(name: str) -> dict[str, str]:
    """The header of what is to be kept as a file of this name."""
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}


def answer(value: Mapping[str, Any], *, etag: str | None = None) -> JSONResponse:
    """A result; what is in it came from the registry and is JSON already."""
    return JSONResponse(value, headers=None if etag is None else {"ETag": etag})


def paged(items: Sequence[Any], following: int | None) -> JSONResponse:
    """A page of records, or of what was made of them."""
    listed = [each if isinstance(each, dict) else each.to_json() for each in items]
    return JSONResponse({"items": listed, "next": following})


def page(
    space: Workspace, kind: str, by_id: Callable[[Session, int], Any], after: int, limit: int
) -> JSONResponse:
    """A page of everything of a kind, in the order in which it was recorded."""
    with space.sessions.read() as session:
        ids = pages.of_kind(session, kind, after, limit + 1)
        records = [by_id(session, node_id) for node_id in ids[:limit]]
    return paged(records, ids[limit - 1] if len(ids) > limit else None)
