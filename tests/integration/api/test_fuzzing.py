"""Every route as OpenAPI describes it, with values that fit and values that do not: the server never fails.

AFFINERY_FUZZ=200 tries so many of each route instead of a few.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

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
from registry.models import Base
from tests.integration.api.conftest import Service, serving

SECRET = "sesame-sesame-sesame"
EXAMPLES = int(os.environ.get("AFFINERY_FUZZ", "3"))
HOSTILE = [
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "..\\..\\boot.ini",
    "a/b",
    "a\x00b",
    "\r\nSet-Cookie: a=b",
    "<script>alert(1)</script>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "' OR '1'='1",
    "\u202egnp.exe",
    "\ud800",
    "ﷺ" * 200,
    "٣",
    "-1",
    "1e999",
    "NaN",
    "A" * 10_000,
]


@pytest.fixture
def guarded(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that asks for a token, so that none that is made here shuts it; streams end at once."""
    monkeypatch.setattr(streams, "LONGEST_SECONDS", 0.01)
    monkeypatch.setattr(streams, "LOOK_SECONDS", 0.01)
    with serving(space, SECRET) as made:
        yield made


def counts(service: Service) -> dict[str, int]:
    """Of all that is recorded, but of what is sent and of who asked."""
    beside = {"event", "request", "token", "browser_session", "upload", "blob"}
    tables = [table for table in Base.metadata.sorted_tables if table.name not in beside]
    return {table.name: service.count(table) for table in tables}


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


def test_a_thousand_hostile_texts_write_nothing_and_fail_nowhere(learnable: Service) -> None:
    before, asked = counts(learnable), 0
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/tasks/estimate", {"tasks": [{"name": "?", "dataset": "shapes"}], "backbone": "tiny"}),
        ("/v1/tasks", {"tasks": [{"name": "new", "dataset": "?"}], "backbone": "tiny"}),
        ("/v1/tasks", {"tasks": [{"name": "new", "kind": "?"}], "backbone": "?"}),
        ("/v1/tasks/estimate", {"tasks": [{"name": "shapes"}], "backbone": "?"}),
        ("/v1/jobs", {"kind": "?"}),
        ("/v1/jobs", {"kind": "evaluate", "adapters": ["?"]}),
        (
            "/v1/jobs",
            {"kind": "export", "composition": "both", "format": "bundle", "task": "?", "after": ["?"]},
        ),
        ("/v1/jobs", {"kind": "train", "tasks": ["?"]}),
        ("/v1/jobs", {"kind": "rebase", "old": "?", "new": "tiny"}),
        ("/v1/schedules", {"name": "?", "cron": "?", "tasks": ["shapes"]}),
        ("/v1/schedules", {"name": "s", "cron": "0 3 * * *", "tasks": ["?"]}),
        ("/v1/schedules", {"name": "s", "cron": "0 3 * * *", "tasks": ["shapes"], "timezone": "?"}),
        ("/v1/datasets", {"name": "?", "upload": "0" * 32, "sha256": "0" * 64}),
        ("/v1/datasets", {"name": "n", "upload": "?", "sha256": "?"}),
        ("/v1/datasets", {"name": "n", "dvc": {"md5": "?", "remote": "?"}}),
        ("/v1/webhooks", {"name": "?", "url": "?"}),
        ("/v1/webhooks", {"name": "hook", "url": "https://chat.example/", "kinds": ["?"]}),
        ("/v1/webhooks/hook/test", {"nothing": "?"}),
        ("/v1/backbones", {"name": "?", "upload": "0" * 32, "sha256": "0" * 64}),
        ("/v1/tokens", {"name": "?", "scope": "?"}),
        ("/v1/compositions", {"name": "n", "backbone": "tiny", "members": ["?"]}),
        ("/v1/renamings", {"of": "?", "name": "?"}),
        ("/session", {"token": "?"}),
    ]
    places = [
        "/v1/jobs/{}/log",
        "/v1/jobs/{}/events",
        "/v1/exports/{}/files",
        "/v1/exports/both/files/{}",
        "/v1/exports/{}/download",
        "/v1/uploads/{}",
        "/v1/schedules/{}",
        "/v1/search?q={}",
        "/v1/evaluations?adapter={}",
        "/v1/evaluations/compare?left={}&right=shapes",
        "/v1/webhooks/{}",
        "/v1/webhooks/{}/deliveries",
        "/v1/webhooks/hook/deliveries?state={}",
        "/v1/tasks?after={}",
        "/v1/jobs?states={}",
    ]
    for text in HOSTILE:
        for path, body in bodies:
            for given_text in (text, f"no{text}"):
                sent = _filled(body, given_text)
                reply = learnable.ask("POST", path, sent)
                kept = path != "/v1/tasks/estimate"  # a name may be as strange as it likes
                assert reply.status in range(400 if kept else 200, 500), (path, sent, reply.body[:300])
                asked += 1
        for place in places:
            said = quote(text.encode("utf-8", "surrogatepass"), safe="")[:3000]
            reply = learnable.ask("GET", place.format(said))
            assert reply.status < 500, (place, text, reply.body[:300])
            asked += 1
    assert asked >= 1000
    assert counts(learnable) == before


def _filled(value: Any, text: str) -> Any:
    """The same with this text wherever a question mark stands."""
    if isinstance(value, dict):
        return {name: _filled(each, text) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, text) for each in value]
    return text if value == "?" else value
