"""/v1/tokens: who may call. Secrets are shown once, when they are made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from affinery_app.api.calls import Caller, Space, answer, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Sent, Word, pages
from registry import tokens

router = nouns("/v1/tokens", "tokens")
Name = Annotated[str, Path(max_length=64, description="A token's name.")]


class Token(BaseModel):
    """A token, without its secret. tasks: those that it may change; null for all."""

    id: str
    name: str
    scope: Literal["read", "schedule", "promote", "admin"]
    tasks: list[str] | None
    created_by: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    used_at: str | None
    state: Literal["active", "expired", "revoked"]


class NewToken(Sent):
    """What a token is called and may do."""

    name: Word
    scope: Literal["read", "schedule", "promote", "admin"]
    tasks: list[Word] | None = Field(
        default=None, min_length=1, max_length=tokens.MOST_TASKS, description="Left out for all."
    )
    days: float | None = Field(default=None, gt=0, le=tokens.LONGEST_DAYS, description="Until it expires.")


class MadeToken(Token):
    """A new token, and its text: it is not to be had again."""

    token: str


@router.get("", response_model=pages(Token))
def list_tokens(space: Space) -> JSONResponse:
    """Every token, the oldest first; those that are revoked too."""
    with space.sessions.read() as session:
        return paged(tokens.list_all(session), None)


@router.post("", status_code=201, response_model=MadeToken)
def create_token(space: Space, who: Caller, new: NewToken) -> JSONResponse:
    """Make a token. Its text is in this answer only; an Idempotency-Key therefore means nothing here."""
    with space.sessions.begin() as session:
        record, text = tokens.create(session, **new.model_dump(), by=who.name)
    made: dict[str, Any] = record.to_json() | {"token": text}
    return JSONResponse(made, 201)


@router.delete("/{name}", response_model=Token)
def revoke_token(space: Space, who: Caller, name: Name) -> JSONResponse:
    """End a token at once, and the browsers' sessions that were opened with it."""
    with space.sessions.begin() as session:
        return answer(tokens.revoke(session, name, by=who.name).to_json())
