"""Every route as OpenAPI describes it, with values that fit and values that do not: the server never fails.

AFFINERY_FUZZ=200 tries so many of each route instead of a few.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance

from affinery_app.api import streams
from affinery_app.api.application import routes
from affinery_app.wiring import Workspace
from tests.integration.api.conftest import Service, serving

SECRET = "sesame-sesame-sesame"
EXAMPLES = int(os.environ.get("AFFINERY_FUZZ", "3"))


@pytest.fixture
def guarded(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that asks for a token, so that none that is made here shuts it; streams end at once."""
    monkeypatch.setattr(streams, "LONGEST_SECONDS", 0.01)
    monkeypatch.setattr(streams, "LOOK_SECONDS", 0.01)
    with serving(space, SECRET) as made:
        yield made


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.timeout(3600 if EXAMPLES > 3 else 300)
def test_nothing_that_openapi_allows_or_forbids_makes_the_server_fail(
    guarded: Service, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(routes(guarded.space).openapi())
    shown = {"Authorization": f"Bearer {SECRET}"}
    asked = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=EXAMPLES == 3,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Case[Any]) -> None:
            nonlocal asked
            asked += 1
            reply = case.call(base_url=f"http://127.0.0.1:{guarded.port}", headers=shown, timeout=30)
            assert reply.status_code < 500 or reply.status_code == 507, (
                case.as_curl_command(),
                reply.content,
            )
            kind = reply.headers.get("content-type", [""])[0]
            if reply.status_code >= 400:
                assert kind == "application/problem+json", (case.as_curl_command(), reply.content)
            elif kind == "application/json":
                case.validate_response(reply, checks=[response_schema_conformance], headers=shown)

        with suppress(Unsatisfiable):  # of a route without parameters nothing is wrong
            ask()
    assert asked > 50
    assert guarded.get("/healthz") == {"status": "ok"}
