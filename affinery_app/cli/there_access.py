"""Who may call a service and whom it tells of what happens: the verbs of `here_access`, asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from affinery_app.cli.told import PAGE, Json, record_of

if TYPE_CHECKING:
    from affinery_app.client import Client
    from registry.tokens import TokenRecord
    from registry.webhooks import DeliveryRecord, WebhookRecord


class Access:
    """A request a verb; a token of the scope admin may."""

    client: Client

    def create_token(
        self, name: str, scope: str, tasks: Sequence[str] | None, days: float | None
    ) -> tuple[TokenRecord, str]:
        told = self.client.tokens.create(name, scope, tasks, days)
        return _token_of(told), told["token"]

    def tokens(self) -> list[TokenRecord]:
        return [_token_of(each) for each in self.client.tokens.list()]

    def revoke_token(self, name: str) -> TokenRecord:
        return _token_of(self.client.tokens.revoke(name))

    def add_webhook(self, name: str, address: str, kinds: Sequence[str]) -> tuple[WebhookRecord, str]:
        from registry.webhooks import WebhookRecord

        told = self.client.webhooks.add(name, address, kinds)
        return record_of(WebhookRecord, told), told["secret"]

    def webhooks(self) -> list[WebhookRecord]:
        from registry.webhooks import WebhookRecord

        return [record_of(WebhookRecord, each) for each in self.client.webhooks.list()]

    def remove_webhook(self, name: str) -> WebhookRecord:
        from registry.webhooks import WebhookRecord

        return record_of(WebhookRecord, self.client.webhooks.remove(name))

    def test_webhook(self, name: str) -> DeliveryRecord:
        from registry.webhooks import DeliveryRecord

        return record_of(DeliveryRecord, self.client.webhooks.test(name))

    def deliveries(self, name: str, state: str | None, limit: int) -> list[DeliveryRecord]:
        from registry.webhooks import DeliveryRecord

        found = self.client.webhooks.deliveries(name, state=state, limit=min(limit, PAGE))
        return [record_of(DeliveryRecord, each) for each in islice(found, limit)]


def _token_of(told: Json) -> TokenRecord:
    """Its digest a service tells nobody."""
    from registry.tokens import TokenRecord

    return record_of(TokenRecord, told | {"digest": ""})
