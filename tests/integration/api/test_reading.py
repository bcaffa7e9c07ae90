"""What the service tells: every noun, by any reference and page by page, as its OpenAPI says."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
from openapi_spec_validator import validate

from affinery_app.api.application import routes
from affinery_app.settings import Settings
from affinery_app.wiring import Workspace
from orchestration.queue import limits
from registry import aliases, backbones, notes, renaming, retirement, tags, webhooks
from tests import registry_world as world
from tests.integration.api.conftest import Service


@pytest.fixture(scope="module")
def openapi() -> Any:
    return routes(Workspace(Path(), Settings())).openapi()


def described(openapi: Any, method: str, path: str, value: Any, status: str = "200") -> None:
    """The value is what OpenAPI says of this route's answer, and nothing more."""
    content = openapi["paths"][path][method]["responses"][status]["content"]["application/json"]
    named = {
        name: made | ({"additionalProperties": False} if "properties" in made else {})
        for name, made in openapi["components"]["schemas"].items()
    }
    schema = content["schema"] | {"components": {"schemas": named}}
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)


def test_its_openapi_is_valid_and_knows_one_shape_of_problem(openapi: Any) -> None:
    validate(openapi)
    assert openapi["openapi"].startswith("3.1")
    operations = [each for path in openapi["paths"].values() for each in path.values()]
    assert len({each["operationId"] for each in operations}) == len(operations)
    for operation in operations:
        assert "application/problem+json" in operation["responses"]["default"]["content"]
        assert operation["description"]


READ = [
    ("/v1/backbones", "/v1/backbones"),
    ("/v1/backbones/{ref}", "/v1/backbones/dit@1"),
    ("/v1/datasets", "/v1/datasets"),
    ("/v1/datasets/{ref}", "/v1/datasets/digits"),
    ("/v1/tasks", "/v1/tasks"),
    ("/v1/tasks/{ref}", "/v1/tasks/digits"),
    ("/v1/tasks/{ref}/versions", "/v1/tasks/digits/versions"),
    ("/v1/adapters", "/v1/adapters"),
    ("/v1/adapters/{ref}", "/v1/adapters/digits@1"),
    ("/v1/lineage/{ref}", "/v1/lineage/both"),
    ("/v1/lineage/{ref}/nodes", "/v1/lineage/both/nodes"),
    ("/v1/diff", "/v1/diff?left=digits@1&right=digits@2"),
    ("/v1/aliases", "/v1/aliases?task=digits"),
    ("/v1/aliases/{ref}", "/v1/aliases/digits@champion"),
    ("/v1/aliases/{ref}/history", "/v1/aliases/digits@champion/history"),
    ("/v1/tags/{ref}", "/v1/tags/digits@1"),
    ("/v1/notes/{ref}", "/v1/notes/digits@1"),
    ("/v1/renamings/{ref}", "/v1/renamings/composition:both"),
    ("/v1/compositions", "/v1/compositions"),
    ("/v1/compositions/{ref}", "/v1/compositions/both"),
    ("/v1/exports", "/v1/exports"),
    ("/v1/exports/{ref}", "/v1/exports/both"),
    ("/v1/jobs", "/v1/jobs"),
    ("/v1/jobs/{job}", "/v1/jobs/job-digits-1"),
    ("/v1/jobs/{job}/attempts", "/v1/jobs/job-digits-1/attempts"),
    ("/v1/events", "/v1/events"),
    ("/v1/jobs/{job}/log", "/v1/jobs/job-digits-1/log"),
    ("/v1/evaluations", "/v1/evaluations?adapter=faces"),
    ("/v1/evaluations/compare", "/v1/evaluations/compare?left=faces&right=faces"),
    ("/v1/limits", "/v1/limits"),
    ("/v1/limits/{scope}/{key}", "/v1/limits/backbone/dit"),
    ("/v1/search", "/v1/search?q=digits"),
    ("/v1/stats", "/v1/stats"),
    ("/v1/webhooks", "/v1/webhooks"),
    ("/v1/webhooks/{name}", "/v1/webhooks/chat"),
    ("/v1/webhooks/{name}/deliveries", "/v1/webhooks/chat/deliveries"),
    ("/session", "/session"),
    ("/healthz", "/healthz"),
]
# What answers with bytes, or with what has to be made first: below; test_access, test_scheduling, _streams.
ELSEWHERE = {
    "/v1/blobs/{digest}",
    "/v1/tasks/{ref}/report",
    "/v1/tokens",
    "/v1/schedules",
    "/v1/schedules/{name}",
    "/v1/uploads/{upload}",
    "/v1/jobs/{job}/events",
    "/v1/exports/{ref}/files",
    "/v1/exports/{ref}/files/{path}",
    "/v1/exports/{ref}/download",
}


def test_every_answer_is_what_openapi_says_and_every_reading_route_is_asked(
    either: Service, openapi: Any
) -> None:
    with either.space.sessions.begin() as session:
        aliases.point(session, "champion", "digits@1")
        tags.put(session, "digits@1", {"owner": "ann"})
        notes.write(session, "digits@1", "The first that could be read.")
        retirement.retire(session, "birds", "blurred")
        webhooks.create(session, "chat", "https://chat.example/", by="ann")
        webhooks.test(session, "chat", by="ann")
        limits.put(session, "backbone", "dit", 2)
        renaming.rename(session, "composition:both", "all")
        renaming.rename(session, "composition:all", "both")
    for route, path in READ:
        value = either.get(path)
        described(openapi, "get", route, value)
        assert value.get("items", True) or "attempts" in path, path  # these jobs were made without a try
    digest = either.get("/v1/adapters/digits@1")["blob_digest"]
    described(openapi, "get", "/v1/blobs/{digest}", either.get(f"/v1/blobs/{digest}"))
    asked = {route for route, _ in READ} | ELSEWHERE
    assert asked == {route for route, each in openapi["paths"].items() if "get" in each}


def test_a_task_s_report_is_a_file_that_is_not_sent_again_while_it_is_the_same(service: Service) -> None:
    got = service.ask("GET", "/v1/tasks/digits/report")
    assert (got.status, got.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''digits.html"
    assert got.body.startswith(b"<!doctype html>")
    assert b"<td>digits@2</td>" in got.body
    etag = got.headers["etag"]
    assert service.ask("GET", "/v1/tasks/digits/report", If_None_Match=etag).status == 304
    with service.space.sessions.begin() as session:
        notes.write(session, "task:digits", "<b>soon</b>")
    again = service.ask("GET", "/v1/tasks/digits/report", If_None_Match=etag)
    assert (again.status, b"&lt;b&gt;soon&lt;/b&gt;" in again.body) == (200, True)
    assert service.ask("GET", "/v1/tasks/digts/report").status == 404


def test_an_adapter_is_found_by_name_version_alias_and_digest_with_what_people_say_of_it(
    either: Service,
) -> None:
    with either.space.sessions.begin() as session:
        aliases.point(session, "champion", "digits@1")
        tags.put(session, "digits@1", {"owner": "ann"})
        retirement.retire(session, "digits@1", "blurred")
    first = either.get("/v1/adapters/digits@1")
    assert (first["ref"], first["tags"]) == ("digits@1", {"owner": "ann"})
    assert first["retired"]["reason"] == "blurred"
    for ref in ("digits@champion", "adapter:digits@v1", first["digest"], first["digest"][:10]):
        assert either.get(f"/v1/adapters/{quote(ref)}") == first
    assert either.get("/v1/adapters/digits")["ref"] == "digits@2"


@pytest.mark.parametrize("path", ["/v1/tags/adapter:digits@1", "/v1/notes/digits@1", "/v1/jobs/job-faces-1"])
def test_what_was_read_and_is_the_same_is_not_sent_again(service: Service, path: str) -> None:
    read = service.ask("GET", path)
    for said in (read.headers["etag"], "W/" + read.headers["etag"], '"x", ' + read.headers["etag"], "*"):
        same = service.ask("GET", path, If_None_Match=said)
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", read.headers["etag"]), said
        assert "content-type" not in same.headers
    other = service.ask("GET", path, If_None_Match='"x"')
    assert (other.status, other.body) == (200, read.body)


def test_a_name_of_any_script_is_found(service: Service) -> None:
    with service.space.sessions.begin() as session:
        world.backbone(session, "骨干 网络")
    assert service.get(f"/v1/backbones/{quote('骨干 网络@1')}")["name"] == "骨干 网络"


def everything(service: Service, path: str, limit: int) -> list[Any]:
    found: list[Any] = []
    after: int | None = 0
    while after is not None:
        sign = "&" if "?" in path else "?"
        page = service.get(f"{path}{sign}limit={limit}&after={after}")
        assert len(page["items"]) <= limit
        found += page["items"]
        after = page["next"]
    return found


@pytest.mark.parametrize(
    "path",
    [
        "/v1/backbones",
        "/v1/datasets",
        "/v1/tasks",
        "/v1/adapters",
        "/v1/tasks/digits/versions",
        "/v1/compositions",
        "/v1/jobs?states=done&kinds=train",
        "/v1/events",
        "/v1/lineage/dit/nodes?direction=down",
    ],
)
def test_pages_of_one_join_to_the_whole_list(service: Service, path: str) -> None:
    whole = everything(service, path, 500)
    assert len(whole) >= 1
    assert everything(service, path, 1) == whole


def test_a_page_misses_nothing_when_something_is_recorded_meanwhile(service: Service) -> None:
    first = service.get("/v1/adapters?limit=2")
    with service.space.sessions.begin() as session:
        world.learnt(session, "late", 1)
    rest = service.get(f"/v1/adapters?limit=2&after={first['next']}")
    assert [each["ref"] for each in first["items"] + rest["items"]] == [
        "birds@1",
        "faces@1",
        "digits@2",
        "digits@1",
    ]


def test_a_search_takes_the_filter_language_and_points_at_what_it_cannot_read(service: Service) -> None:
    with service.space.sessions.begin() as session:
        tags.put(session, "digits@2", {"owner": "bob o'hara"})
    text = quote('tag.owner="bob o\'hara" or run=mlflow-job-faces-1-faces')
    found = service.get(f"/v1/adapters?filter={text}")["items"]
    assert [each["ref"] for each in found] == ["faces@1", "digits@2"]
    reply = service.ask("GET", "/v1/adapters?filter=kind+%3F+affiner")
    assert (reply.status, reply.json["type"]) == (422, "urn:affinery:filter-invalid")


def test_lineage_is_bounded_and_says_where_it_was_cut(service: Service) -> None:
    whole = service.get("/v1/lineage/both")
    assert not whole["truncated"]
    assert {node["kind"] for node in whole["nodes"]} >= {"composition", "adapter", "backbone", "dataset"}
    cut = service.get("/v1/lineage/both?limit=3")
    assert cut["truncated"]
    assert len(cut["nodes"]) == 3
    roles = service.get("/v1/lineage/both?roles=member")
    assert {edge["role"] for edge in roles["edges"]} == {"member"}
    learnt = service.get("/v1/lineage/dit/nodes?direction=down&kinds=adapter&kinds=task")["items"]
    assert {node["kind"] for node in learnt} == {"adapter", "task"}


def test_an_unknown_reference_names_what_is_like_it_and_an_ambiguous_one_its_candidates(
    service: Service,
) -> None:
    with service.space.sessions.begin() as session:
        digest = backbones.get(session, "dit").digest
        world.backbone(session, "copy", fingerprint=digest)
    reply = service.ask("GET", "/v1/adapters/digit")
    assert (reply.status, reply.headers["content-type"]) == (404, "application/problem+json")
    assert "Did you mean 'digits'?" in reply.json["detail"]
    reply = service.ask("GET", f"/v1/backbones/{digest}")
    assert reply.status == 409
    assert "copy@1" in reply.json["detail"]
