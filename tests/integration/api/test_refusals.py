"""Bad input is told what is wrong with it, in one shape; nothing is written, and the server never fails."""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest

from affinery_app.wiring import Workspace
from registry.models import Base
from tests.integration.api.conftest import Reply, Service, serving

SECRET = "sesame-sesame-sesame"
TEXTS = [
    "",
    " ",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "digits@",
    "digits@0",
    "digits@-1",
    "digits@99999999999999999999",
    "@champion",
    "nobody:digits",
    "digits\x00",
    "\x00",
    "a\nb",
    "\u202egnp.exe",
    "' OR 1=1 --",
    '"; DROP TABLE adapter; --',
    "%s%n${jndi:x}{{7*7}}",
    "<script>alert(1)</script>",
    "ｄｉｇｉｔｓ",
    "数字" * 50,
    "x" * 100_000,
    "\ufffd\uffff",
    "😀",
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    1e308,
    float("inf"),
    float("nan"),
    "\ud800",
    "\x00",
    [],
    {},
    [[[]]],
    {"a": {"b": {"c": "\x00"}}},
    {"\ud800": 1},
    *TEXTS,
]


def fine(reply: Reply) -> None:
    """An answer, or a problem that is the sender's."""
    assert reply.status < 500, (reply.status, reply.body[:500])
    assert reply.headers["x-content-type-options"] == "nosniff"
    if reply.status >= 400:
        assert reply.headers["content-type"] == "application/problem+json", reply.body[:300]
        problem = reply.json
        assert problem.keys() >= {"type", "title", "status", "detail"}
        assert (problem["status"], problem["type"][:13]) == (reply.status, "urn:affinery:")
        assert problem["detail"]


def counts(service: Service) -> dict[str, int]:
    return {table.name: service.count(table) for table in Base.metadata.sorted_tables}


def test_no_reference_makes_the_server_fail(either: Service) -> None:
    nouns = ["adapters", "backbones", "datasets", "tasks", "compositions", "exports", "jobs", "blobs"]
    nouns += ["lineage", "aliases", "tags", "notes"]
    for text in TEXTS[:-3]:
        if len(text) < 1000:
            for noun in nouns:
                reply = either.ask("GET", f"/v1/{noun}/{quote(text, safe='')}")
                fine(reply)
                assert reply.status != 200 or text.strip() in ("", "..") or noun == "x", (noun, text)
    fine(either.ask("GET", "/v1/adapters/" + "x" * 3000))
    for raw in ("/v1/adapters/%00", "/v1/adapters/%ff%fe", "/v1/adapters/%", "/v1/adapters/%ZZ", "/v1/../v1"):
        fine(either.ask("GET", raw))


def test_no_query_makes_the_server_fail(either: Service) -> None:
    asked = {
        "/v1/adapters": ("filter", "limit", "after"),
        "/v1/events": ("kind", "subject", "after", "limit"),
        "/v1/lineage/dit": ("direction", "depth", "roles", "limit"),
        "/v1/lineage/dit/nodes": ("kinds", "roles", "after", "limit"),
        "/v1/aliases": ("task",),
        "/v1/jobs": ("states", "kinds", "task", "after"),
    }
    values = [
        *TEXTS,
        "-1",
        "1e9",
        "9" * 30,
        "0x10",
        "NaN",
        "١",
        "1.5",
        "kind=",
        "((((",
        "not " * 200,
        "9223372036854775807",
    ]
    for path, names in asked.items():
        for name in names:
            for value in values:
                if len(value) < 5000:
                    fine(either.ask("GET", f"{path}?{name}={quote(value, safe='')}"))
    fine(either.ask("GET", "/v1/adapters?filter=%ff%00&limit=%c0%af"))
    fine(either.ask("GET", "/v1/adapters?limit=1&limit=2"))


def test_a_parameter_that_an_address_does_not_take_is_refused_with_those_that_it_takes(
    service: Service,
) -> None:
    reply = service.ask("GET", "/v1/aliases?tsak=digits&limit=3&tsak=faces")
    assert (reply.status, reply.json["type"]) == (422, "urn:affinery:request-invalid")
    assert [fault["where"] for fault in reply.json["faults"]] == ["query.tsak", "query.limit"]
    assert "there are task" in reply.json["detail"]
    assert "takes none" in service.ask("GET", "/v1/adapters/digits@1?limit=1").json["detail"]
    before = service.get("/v1/tags/adapter:digits@1")
    assert service.ask("PATCH", "/v1/tags/adapter:digits@1?dry=1", {"owner": "ann"}).status == 422
    assert service.get("/v1/tags/adapter:digits@1") == before


def test_a_value_of_another_kind_than_json_s_own_is_refused(service: Service) -> None:
    for size in ("5", True, 5.0, None):
        assert service.ask("POST", "/v1/uploads", {"size_bytes": size}).status == 422, size
    verify = {"kind": "verify"}
    for name, value in (("priority", "3"), ("timeout_seconds", "60"), ("ref", 7)):
        assert service.ask("POST", "/v1/jobs", verify | {name: value}).status == 422, name
    for told in (1_900_000_000, "1900000000", 1.9e9, True, "2030-01-02", "2030-01-02T03:04:05", "tomorrow"):
        reply = service.ask("POST", "/v1/jobs", verify | {"run_at": told})
        assert (reply.status, "RFC 3339" in reply.json["detail"]) == (422, True), told
        assert reply.json["faults"][0]["detail"].startswith("write it as"), told
    moment = {"timeout_seconds": 60, "run_at": "2030-01-02T03:04:05+01:00"}
    assert service.ask("POST", "/v1/jobs", verify | moment).json["run_at"].startswith("2030-01-02T02:04:05")


CONDITIONAL = (
    "put_alias",
    "delete_alias",
    "patch_tags",
    "put_note",
    "delete_note",
    "put_limit",
    "delete_limit",
    "retire_adapter",
    "restore_adapter",
    "pause_schedule",
    "resume_schedule",
    "delete_schedule",
)
OF_JOBS = ("cancel_job", "pause_job", "resume_job", "retry_job", "prioritise_job")


def test_a_condition_is_looked_at_or_refused_and_nothing_is_changed(service: Service) -> None:
    described = service.get("/openapi.json")["paths"]
    looked_at = set()
    for path, operations in described.items():
        for method, operation in operations.items():
            if method == "get":
                continue
            named = {each["name"] for each in operation.get("parameters", []) if each["in"] == "header"}
            if "if-match" in named:
                looked_at.add(operation["operationId"])
                continue
            place = re.sub(r"\{.*?\}", "nothing", path)
            reply = service.ask(method.upper(), place, b"{}", Content_Type="application/json", If_Match='"x"')
            assert (reply.status, "if-match" in reply.json["detail"]) == (422, True), (method, path)
    assert looked_at == {*CONDITIONAL, *OF_JOBS}
    before = service.get("/v1/adapters/digits@1")
    refused = service.ask("POST", "/v1/renamings", {"of": "task:digits", "name": "d"}, If_Match='"x"')
    assert (refused.status, service.get("/v1/adapters/digits@1")) == (422, before)


def test_json_that_is_none_for_another_reason_than_a_misprint_says_what_is_read(service: Service) -> None:
    for body in (
        b"[" * 100_000,
        b'{"kind":"verify","priority":' + b"9" * 5000 + b"}",
        '{"a":"é"}'.encode("cp1252"),
    ):
        reply = service.ask("POST", "/v1/jobs", body, Content_Type="application/json")
        assert (reply.status, "send it in UTF-8" in reply.json["detail"]) == (400, True)


def test_every_parameter_of_every_route_is_described(service: Service) -> None:
    described = service.get("/openapi.json")["paths"]
    bare = [
        (operation["operationId"], each["name"])
        for operations in described.values()
        for operation in operations.values()
        for each in operation.get("parameters", [])
        if not each.get("description")
    ]
    assert bare == []


def test_a_field_that_is_misspelt_is_refused_whatever_is_sent_and_nothing_is_made(service: Service) -> None:
    described = service.get("/openapi.json")
    shapes = described["components"]["schemas"]
    loose = [
        operation["operationId"]
        for operations in described["paths"].values()
        for operation in operations.values()
        if (
            said := operation.get("requestBody", {})
            .get("content", {})
            .get("application/json", {})
            .get("schema")
        )
        and not all(each.get("additionalProperties") is not None for each in _meant(said, shapes))
    ]
    assert loose == ["open_session"]
    for wrong in ({"task": ["digits"]}, {"days": "30"}, {"tasks": "digits"}):
        assert service.ask("POST", "/v1/tokens", {"name": "ci", "scope": "read"} | wrong).status == 422, wrong
    assert service.get("/v1/tokens")["items"] == []
    new = {"task": "digits", "blob": "0" * 64, "metric": {"kid": 0.1}}
    assert "metric" in service.ask("POST", "/v1/adapters", new).json["detail"]


def _meant(said: dict[str, Any], shapes: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that a body may be of."""
    if "$ref" in said:
        return _meant(shapes[said["$ref"].rpartition("/")[2]], shapes)
    several = said.get("anyOf") or said.get("oneOf")
    if several is None:
        return [said]
    return [found for each in several if each.get("type") != "null" for found in _meant(each, shapes)]


def test_an_address_with_a_slash_too_many_is_none_and_leads_nowhere_else(service: Service) -> None:
    for path in ("/v1/adapters/", "/v1/adapters/digits@1/", "/tasks/"):
        reply = service.ask("GET", path)
        assert (reply.status, "location" in reply.headers) == (404, False), path


@pytest.mark.parametrize(("name", "known"), [("states", "queued, running"), ("kinds", "train, evaluate")])
def test_a_state_or_kind_that_no_job_can_have_is_refused(service: Service, name: str, known: str) -> None:
    reply = service.ask("GET", f"/v1/jobs?{name}=bogus")
    assert reply.status == 422
    assert "'bogus'" in reply.json["detail"]
    assert known in reply.json["detail"]


BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/compositions", {"name": "n", "backbone": "dit", "members": ["digits"], "recipe": {}}),
    ("POST", "/v1/adapters", {"task": "digits", "blob": "0" * 64, "metrics": {}, "tags": {"a": "b"}}),
    ("PUT", "/v1/aliases/digits@champion", {"adapter": "1", "require": ["loss<1"]}),
    ("PATCH", "/v1/tags/digits@1", {"owner": "ann"}),
    ("PUT", "/v1/notes/digits@1", {"text": "x"}),
    ("POST", "/v1/renamings", {"of": "task:digits", "name": "numerals"}),
]


def test_no_value_of_a_body_makes_the_server_fail(either: Service) -> None:
    chance = random.Random(7)
    keys = count()
    for method, path, good in BODIES:
        for name in good:
            for value in chance.sample(VALUES, 20):
                bad = json.dumps(good | {name: value}).encode()
                key = {"Idempotency_Key": str(next(keys))} if chance.random() < 0.5 else {}
                fine(either.ask(method, path, bad, Content_Type="application/json", If_Match="*", **key))
        if method == "POST":
            for value in (float("inf"), "\ud800", {"\ud800": 1}, "\x00"):
                bad = json.dumps(good | {"recipe": {"a": value}, "metrics": {"a": value}}).encode()
                fine(either.ask(method, path, bad, Content_Type="application/json", Idempotency_Key="k"))
                bad = json.dumps(good | {("metrics" if "task" in good else "recipe"): {"a": value}}).encode()
                fine(either.ask(method, path, bad, Content_Type="application/json", Idempotency_Key="k"))
        for body in (good | {"more": 1}, {}, [], "text", 5, None, [good]):
            whole = json.dumps(body).encode()
            fine(either.ask(method, path, whole, Content_Type="application/json", If_Match="*"))


def test_bodies_that_are_no_json_are_refused_and_nothing_is_written(service: Service) -> None:
    before = counts(service)
    deep = b"[" * 100_000
    nested = b'{"name":"n","backbone":"dit","members":["digits"],"recipe":' + b'{"a":' * 50 + b"1" + b"}" * 51
    for body in (b"", b"{", b"nul", b"\xff\xfe{}", b"\x00", deep, b'{"a":1,}', b"1" * 5000, nested):
        for method, path, _ in BODIES:
            reply = service.ask(method, path, body, Content_Type="application/json", If_Match="*")
            fine(reply)
            assert reply.status in (400, 422), (path, body[:20])
    for method, path, good in BODIES:
        for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", ""):
            body = json.dumps(good).encode()
            assert service.ask(method, path, body, Content_Type=kind, If_Match="*").status == 415
    assert counts(service) == before


def test_json_that_breaks_off_is_a_body_that_cannot_be_read_and_where(service: Service) -> None:
    reply = service.ask("POST", "/v1/renamings", b'{"of": nobody}', Content_Type="application/json")
    assert (reply.status, reply.json["type"]) == (400, "urn:affinery:body-unreadable")
    assert "after 7 characters" in reply.json["detail"]


def test_a_body_that_is_packed_or_says_no_kind_is_refused(service: Service) -> None:
    new = b'{"size_bytes": 3}'
    assert service.ask("POST", "/v1/uploads", new).status == 415
    json_kind = {"Content_Type": "application/json"}
    assert service.ask("POST", "/v1/uploads", new, **json_kind, Content_Encoding="identity").status == 201
    packed = service.ask("POST", "/v1/uploads", gzip.compress(new), **json_kind, Content_Encoding="gzip")
    assert (packed.status, packed.headers["accept-encoding"]) == (415, "identity")
    upload = service.ask("POST", "/v1/uploads", new, **json_kind).json["upload"]
    part = service.ask(
        "PUT",
        f"/v1/uploads/{upload}?offset=0",
        gzip.compress(b"abc"),
        Content_Type="application/octet-stream",
        Content_Encoding="gzip",
    )
    assert part.status == 415
    assert service.get(f"/v1/uploads/{upload}")["offset"] == 0


def test_headers_that_mean_nothing_are_refused(service: Service) -> None:
    new = {"name": "n", "backbone": "dit", "members": ["digits"]}
    for key in ("", "x" * 300, "two words", "\t"):
        reply = service.ask("POST", "/v1/compositions", new, Idempotency_Key=key)
        fine(reply)
        assert reply.status == 422, key
    for etag in ("x", "1", '"', '"x"', '"-1"', '"' + "9" * 100 + '"', "W/" + '"1"'):
        reply = service.ask("PUT", "/v1/aliases/digits@champion", {"adapter": "1"}, If_Match=etag)
        fine(reply)
        assert reply.status == 412


def test_other_methods_and_addresses_are_problems_too(service: Service) -> None:
    for method, path, status in (
        ("GET", "/v1", 404),
        ("GET", "/docs", 404),
        ("GET", "/v2/adapters", 404),
        ("DELETE", "/v1/adapters/digits@1", 405),
        ("PUT", "/v1/backbones/dit", 405),
        ("TRACE", "/healthz", 405),
        ("OPTIONS", "/v1/adapters", 405),
    ):
        reply = service.ask(method, path)
        fine(reply)
        assert reply.status == status
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/adapters", "GET, POST"),
        ("/v1/aliases/digits@champion", "GET, PUT, DELETE"),
        (f"/v1/uploads/{'0' * 32}", "GET, PUT, DELETE"),
        ("/session", "GET, POST, DELETE"),
        ("/healthz", "GET"),
    ],
)
def test_what_an_address_does_not_take_is_told_all_that_it_takes(
    service: Service, path: str, allowed: str
) -> None:
    reply = service.ask("PATCH", path, {})
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert allowed in reply.json["detail"]


def test_what_is_no_http_is_answered_or_closed_and_the_server_goes_on(service: Service) -> None:
    for words in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 200_000):
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as raw:
            try:
                raw.sendall(words)
                raw.shutdown(socket.SHUT_WR)
                answer = raw.recv(200)
            except ConnectionError:
                answer = b""
        assert b" 5" not in answer[:12]
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as raw:
        path = f"/v1/blobs?digest={'0' * 64}".encode()
        raw.sendall(
            b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        )
        raw.sendall(b"Content-Length: 1000\r\n\r\nonly this")
    assert service.get("/healthz") == {"status": "ok"}


def test_only_those_who_show_the_token_come_in(space: Workspace) -> None:
    with serving(space, SECRET) as service:
        assert service.get("/healthz") == {"status": "ok"}
        for shown in (
            None,
            "",
            "Bearer",
            "Bearer ",
            f"Basic {SECRET}",
            f"Bearer {SECRET}x",
            SECRET,
            "Bearer ä",
        ):
            headers = {} if shown is None else {"Authorization": shown}
            for method, path in (
                ("GET", "/v1/adapters"),
                ("GET", "/openapi.json"),
                ("POST", "/v1/compositions"),
            ):
                reply = service.ask(method, path, **headers)
                fine(reply)
                assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert service.ask("GET", "/v1/adapters", Authorization=f"Bearer {SECRET}").status == 200
        # With a token it may have any name.
        named = service.ask("GET", "/v1/adapters", Authorization=f"bearer {SECRET}", Host="affinery.example")
        assert named.status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80"])
def test_without_a_token_no_name_but_this_machine_s_is_answered(service: Service, host: str) -> None:
    reply = service.ask("GET", "/v1/adapters", Host=host)
    assert (reply.status, reply.json["type"]) == (421, "urn:affinery:misdirected")
    for own in ("localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8000"):
        assert service.ask("GET", "/v1/adapters", Host=own).status == 200
