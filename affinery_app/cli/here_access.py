"""Who may call the service and who is told of what happens, in a workspace on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from affinery_app.cli.job_options import submitter

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from registry.tokens import TokenRecord
    from registry.webhooks import DeliveryRecord, WebhookRecord


class Access:
    """One transaction a verb."""

    space: Workspace

    def create_token(
        self, name: str, scope: str, tasks: Sequence[str] | None, days: float | None
    ) -> tuple[TokenRecord, str]:
        """→ its record and, this once, its text"""
        from registry import tokens

        with self.space.sessions.begin() as session:
            return tokens.create(session, name, scope, tasks=tasks, days=days, by=submitter())

    def tokens(self) -> list[TokenRecord]:
        from registry import tokens

        with self.space.sessions.read() as session:
            return tokens.list_all(session)

    def revoke_token(self, name: str) -> TokenRecord:
        from registry import tokens

        with self.space.sessions.begin() as session:
            return tokens.revoke(session, name, by=submitter())

    def add_webhook(self, name: str, address: str, kinds: Sequence[str]) -> tuple[WebhookRecord, str]:
        """→ its record and, this once, its secret"""
        from orchestration.webhooks_posting import checked
        from registry import webhooks

        address = checked(address, self.space.webhook_hosts)
        with self.space.sessions.begin() as session:
            return webhooks.create(session, name, address, kinds=kinds, by=submitter())

    def webhooks(self) -> list[WebhookRecord]:
        from registry import webhooks

        with self.space.sessions.read() as session:
            return webhooks.list_all(session)

    def remove_webhook(self, name: str) -> WebhookRecord:
        from registry import webhooks

        with self.space.sessions.begin() as session:
            return webhooks.remove(session, name, by=submitter())

    def test_webhook(self, name: str) -> DeliveryRecord:
        from registry import webhooks

        with self.space.sessions.begin() as session:
            return webhooks.test(session, name, by=submitter())

    def deliveries(self, name: str, state: str | None, limit: int) -> list[DeliveryRecord]:
        """The newest first."""
        from registry import webhooks

        with self.space.sessions.read() as session:
            return webhooks.deliveries(session, name, limit=limit, state=state)
