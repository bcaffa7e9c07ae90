"""/v1/aliases: names that move from version to version, each move from what was seen."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Query
from fastapi.responses import JSONResponse
from pydantic import Field

from affinery_app.api.calls import Caller, IfMatch, IfNoneMatch, Ref, Space, answer, paged
from affinery_app.api.errors import PreconditionRequired
from affinery_app.api.etags import listed
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Sent, Word, pages, shape
from registry import adapters, aliases, names
from registry.errors import RecordInvalid, RefInvalid
from registry.metrics import requirement
from registry.records import AliasRecord

router = nouns("/v1/aliases", "aliases")
Alias = shape(AliasRecord)
_ETAG = re.compile('"[0-9]{1,9}"')


class Target(Sent):
    """What an alias is to mean, and what that must hold."""

    adapter: Word = Field(description="A version of the alias's own task: 3, or any reference.")
    require: list[Word] = Field(default=[], max_length=20, examples=[["recognition>=0.8"]])


@router.get("", response_model=pages(Alias))
def list_aliases(
    space: Space, task: Annotated[Word | None, Query(description="Those of this task.")] = None
) -> JSONResponse:
    """Every alias, or every one of a task."""
    with space.sessions.read() as session:
        return paged(aliases.list_all(session, task=task), None)


@router.get("/{ref}", response_model=Alias)
def get_alias(space: Space, ref: Ref) -> JSONResponse:
    """What an alias (task@alias) means now. Its ETag is for If-Match."""
    with space.sessions.read() as session:
        return _told(aliases.get(session, ref))


@router.get("/{ref}/history", response_model=pages(Alias))
def list_moves(space: Space, ref: Ref) -> JSONResponse:
    """Every move of an alias, the latest first."""
    with space.sessions.read() as session:
        return paged(aliases.history(session, ref), None)


@router.put("/{ref}", response_model=Alias)
def put_alias(
    space: Space,
    who: Caller,
    ref: Ref,
    target: Target,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> JSONResponse:
    """Point an alias at a version, if it still means what was read. Two who move it at once: one moves it."""
    wanted = names.parse_as("adapter", ref)
    if wanted.alias is None:
        raise RefInvalid(ref, "it names no alias: write task@alias.")
    adapter = f"{wanted.name}@{target.adapter}" if target.adapter.isdecimal() else target.adapter
    required = [requirement(each) for each in target.require]
    if if_match is None and if_none_match != "*":
        raise PreconditionRequired(ref)
    with space.sessions.begin() as session:
        who.check_tasks(session, wanted.name)
        meant = adapters.get(session, adapter)
        if meant.task != wanted.name:
            raise RecordInvalid(f"The alias {ref}", f"{meant.ref} is of another task")
        moved = aliases.point(
            session,
            wanted.alias,
            meant.ref,
            expect=aliases.NOTHING if if_match is None else None,
            expect_moves=_moves(if_match),
            require=required,
        )
    return _told(moved)


@router.delete("/{ref}", response_model=Alias)
def delete_alias(space: Space, who: Caller, ref: Ref, if_match: IfMatch = None) -> JSONResponse:
    """Take an alias away, if it still means what was read. Its history stays."""
    if if_match is None:
        raise PreconditionRequired(ref)
    with space.sessions.begin() as session:
        who.check_tasks(session, names.parse_as("adapter", ref).name)
        return _told(aliases.remove(session, ref, expect_moves=_moves(if_match)))


def _told(alias: AliasRecord) -> JSONResponse:
    return answer(alias.to_json(), etag=_etag(alias.number))


def _moves(if_match: str | None) -> list[int] | None:
    """The numbers of the moves of which If-Match says that one is the last; None for any."""
    named = ["*"] if if_match is None else listed(if_match)
    return None if "*" in named else [int(each[1:-1]) for each in named if _ETAG.fullmatch(each)]


def _etag(move: int) -> str:
    return f'"{move}"'
