"""/v1/webhooks: addresses that are told of what happens, and what each was told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.orm import Session

from affinery_app.api.calls import After, Caller, Limit, Posting, Space, answer, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Sent, Word, pages, shape
from orchestration.webhooks_posting import checked
from registry import webhooks
from registry.webhooks import DeliveryRecord, WebhookRecord

router = nouns("/v1/webhooks", "webhooks")
Webhook = shape(WebhookRecord)
Delivery = shape(DeliveryRecord)
Name = Annotated[str, Path(max_length=64, description="A webhook's name.")]


class NewWebhook(Sent):
    """Who is to be told of what. kinds: job.done, or job.* for all of jobs; none for all that happens."""

    name: Word
    url: str = Field(max_length=webhooks.LONGEST_URL, examples=["https://chat.example/hooks/affinery"])
    kinds: list[Word] = Field(default=[], max_length=webhooks.MOST_KINDS, examples=[["adapter.published"]])


class MadeWebhook(Webhook):  # type: ignore[misc, valid-type]
    """A new webhook, and the secret that signs what it is told: it is not to be had again."""

    secret: str


@router.get("", response_model=pages(Webhook))
def list_webhooks(space: Space) -> JSONResponse:
    """Every webhook, by name."""
    with space.sessions.read() as session:
        return paged(webhooks.list_all(session), None)


@router.post("", status_code=201, response_model=MadeWebhook)
def create_webhook(space: Space, who: Caller, new: NewWebhook) -> JSONResponse:
    """Tell this address, from now on, of what happens. The secret is in this answer only."""
    url = checked(new.url, space.webhook_hosts)
    with space.sessions.begin() as session:
        record, secret = webhooks.create(session, new.name, url, kinds=new.kinds, by=who.name)
    made: dict[str, Any] = record.to_json() | {"secret": secret}
    return JSONResponse(made, 201, {"Location": f"/v1/webhooks/{record.name}"})


@router.get("/{name}", response_model=Webhook)
def get_webhook(space: Space, name: Name) -> JSONResponse:
    """One webhook, and how much it is still to be told."""
    with space.sessions.read() as session:
        return answer(webhooks.get(session, name).to_json())


@router.delete("/{name}", response_model=Webhook)
def delete_webhook(space: Space, who: Caller, name: Name) -> JSONResponse:
    """Forget a webhook, and what it was still to be told."""
    with space.sessions.begin() as session:
        return answer(webhooks.remove(session, name, by=who.name).to_json())


@router.post("/{name}/test", status_code=201, response_model=Delivery)
def test_webhook(space: Space, who: Caller, name: Name, posting: Posting) -> JSONResponse:
    """Have a webhook told a `webhook.tested`, whatever its kinds. What became of it: its deliveries."""

    def write(session: Session) -> dict[str, Any]:
        return webhooks.test(session, name, by=who.name).to_json()

    return posting.do(space, name, "/v1/webhooks/{webhook}/deliveries", write)


@router.get("/{name}/deliveries", response_model=pages(Delivery))
def list_deliveries(
    space: Space,
    name: Name,
    after: After = 0,
    limit: Limit = 50,
    state: Annotated[
        Literal["waiting", "delivered", "given-up"] | None, Query(description="Only these.")
    ] = None,
) -> JSONResponse:
    """What a webhook was and is to be told, the newest first. Kept for a week."""
    with space.sessions.read() as session:
        found = webhooks.deliveries(session, name, before=after or None, limit=limit + 1, state=state)
    return paged(found[:limit], found[limit - 1].event if len(found) > limit else None)
