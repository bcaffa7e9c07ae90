"""A client that is generated from /openapi.json works: what it sends and reads is checked against it."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from aiopenapi3 import OpenAPI

from affinery_app.wiring import Workspace
from registry import tokens
from tests.integration.api.conftest import Service, serving


@pytest.fixture
def token(space: Workspace) -> str:
    with space.sessions.begin() as session:
        return tokens.create(session, "generated", "schedule", by="ann")[1]


def generated(service: Service, token: str) -> OpenAPI:
    """Made of what the running service says of itself, and nothing else."""

    class Session(httpx2.Client):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named | {"timeout": 120})
            self.headers["Authorization"] = f"Bearer {token}"

    return OpenAPI.load_sync(f"http://127.0.0.1:{service.port}/openapi.json", session_factory=Session)


def test_a_generated_client_lists_tasks_schedules_a_job_and_reads_it(space: Workspace, token: str) -> None:
    with serving(space) as service:
        client = generated(service, token)
        page = client._.list_tasks(parameters={"limit": 2})
        assert [task.name for task in page.items] == [
            task["name"] for task in ask(service, token, "/v1/tasks?limit=2")["items"]
        ]
        made = client._.create_job(
            data={"kind": "verify", "priority": 3}, parameters={"idempotency-key": "once"}
        )
        again = client._.create_job(
            data={"kind": "verify", "priority": 3}, parameters={"idempotency-key": "once"}
        )
        assert (made.kind, made.state, made.id) == ("verify", "queued", again.id)
        read = client._.get_job(parameters={"job": made.id})
        assert (read.number, read.priority, read.submitted_by) == (made.number, 3, "generated")
        moved = client._.prioritise_job(parameters={"job": made.id}, data={"priority": 9})
        assert moved.priority == 9
        described = ask(service, token, "/openapi.json")["paths"].values()
        assert set(client._) == {each["operationId"] for path in described for each in path.values()}


def ask(service: Service, token: str, path: str) -> Any:
    reply = service.ask("GET", path, Authorization=f"Bearer {token}")
    assert reply.status == 200, reply.body
    return reply.json
