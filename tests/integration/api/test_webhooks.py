"""Webhooks: told what happens, signed, in order, at least once; and nobody else is told anything."""

from __future__ import annotations

import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from sqlalchemy import text, update

from affinery_app import settings
from affinery_app.wiring import Workspace
from orchestration import webhooks as telling
from orchestration import webhooks_posting as posting
from orchestration.webhooks import Sender
from registry import events, webhooks
from registry.columns import utc_now
from registry.models import Webhook, WebhookDelivery
from tests.command_line import typed
from tests.integration.api.conftest import Service

HERE = frozenset(("127.0.0.1",))
GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "webhooks.md"
PATIENCE = 60


@dataclass
class Receiver:
    """A receiver on this machine. answer: how it answers each message, by what it was told."""

    answer: Callable[[BaseHTTPRequestHandler, dict[str, Any]], object] = lambda handler, _: reply(
        handler, 204
    )
    got: queue.Queue[tuple[dict[str, str], bytes]] = field(default_factory=queue.Queue)
    port: int = 0
    at_once: int = 0
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=1"

    def next(self) -> tuple[dict[str, str], dict[str, Any]]:
        headers, body = self.got.get(timeout=PATIENCE)
        return headers, json.loads(body)


def reply(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


@contextmanager
def receiving(receiver: Receiver, host: str = "127.0.0.1", port: int = 0) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.at_once += 1
            receiver.most_at_once = max(receiver.most_at_once, receiver.at_once)
            receiver.got.put(({name.lower(): value for name, value in self.headers.items()}, body))
            with suppress(OSError):  # who asked may be gone
                receiver.answer(self, json.loads(body))
            receiver.at_once -= 1

        def log_message(self, format: str, *_: Any) -> None:  # noqa: A002 - as it is called there
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver()) as made:
        yield made


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(telling, "RETRY_SECONDS", 0.01)


@contextmanager
def sending(space: Workspace) -> Iterator[Sender]:
    sender = Sender(space.sessions, HERE)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


def added(space: Workspace, url: str, *kinds: str, name: str = "chat") -> str:
    """→ the secret"""
    with space.sessions.begin() as session:
        return webhooks.create(session, name, url, kinds=kinds, by="ann")[1]


def happen(space: Workspace, *kinds: str) -> None:
    for number, kind in enumerate(kinds):
        with space.sessions.begin() as session:
            events.append(session, kind, None, {"number": number})


def settled(space: Workspace, count: int, name: str = "chat") -> list[dict[str, Any]]:
    """So many deliveries, when none of them waits any more, the oldest first."""
    waiting, found = threading.Event(), list[dict[str, Any]]()
    for _ in range(PATIENCE * 50):
        with space.sessions.read() as session:
            found = [each.to_json() for each in webhooks.deliveries(session, name)][::-1]
        if len(found) >= count and all(each["state"] != "waiting" for each in found):
            return found
        waiting.wait(0.02)
    raise AssertionError(found)


def verifier() -> FunctionType:
    """The receiver's check as the guide shows it."""
    (code,) = re.findall(r"^```python\n(import base64.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102 - our own guide
    made: FunctionType = scope["verified"]
    return made


# --- what is told ----------------------------------------------------------------------------------


def test_what_happens_is_told_in_order_and_signed_as_the_guide_checks_it(
    either: Service, receiver: Receiver
) -> None:
    space = either.space
    new = {"name": "chat", "url": "http://127.0.0.1:1/", "kinds": ["note.*", "tag.set"]}
    refused = either.ask("POST", "/v1/webhooks", new)
    assert (refused.status, "webhook_hosts" in refused.json["detail"]) == (422, True)
    secret = added(space, receiver.url, "note.*", "tag.set")
    assert either.ask("PUT", "/v1/notes/digits@1", {"text": "é"}).status == 200
    assert either.ask("PATCH", "/v1/tags/digits@1", {"a": "b"}).status == 200
    assert either.ask("DELETE", "/v1/notes/digits@1").status == 200
    check = verifier()
    with sending(space):
        told = []
        for _ in range(3):
            headers, body = receiver.got.get(timeout=PATIENCE)
            told.append(json.loads(body))
            assert check(secret, headers, body) == told[-1]
            assert check(secret, headers | {"webhook-id": "evt_other"}, body) is None
            assert check(secret, headers, body + b" ") is None
            assert check(secret, headers | {"webhook-timestamp": "1"}, body) is None
            assert check("whsec_" + "A" * 44, headers, body) is None
            assert headers["content-type"] == "application/json"
        assert [each["type"] for each in told] == ["note.set", "tag.set", "note.removed"]
        assert told[0]["data"] == either.get("/v1/events?kind=note.set")["items"][0]
        found = settled(space, 3)
    assert [(each["state"], each["tries"], each["status"]) for each in found] == [("delivered", 1, 204)] * 3
    assert receiver.got.empty()
    listed = either.ask("GET", "/v1/webhooks/chat/deliveries?limit=2").json
    assert [each["kind"] for each in listed["items"]] == ["note.removed", "tag.set"]
    rest = either.ask("GET", f"/v1/webhooks/chat/deliveries?limit=2&after={listed['next']}").json
    assert [each["kind"] for each in rest["items"]] == ["note.set"]


def test_a_receiver_that_fails_is_asked_again_and_given_up_with_its_reason(
    space: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "TRIES", 3)

    def answer(handler: BaseHTTPRequestHandler, told: dict[str, Any]) -> None:
        reply(handler, 500 if told["type"] == "job.dead" else 200)

    receiver.answer = answer
    added(space, receiver.url)
    happen(space, "job.dead", "job.done")
    with sending(space):
        found = settled(space, 2 + 1)
    assert [(each["kind"], each["state"], each["tries"], each["reason"]) for each in found[-2:]] == [
        ("job.dead", "given-up", 3, "it answered 500"),
        ("job.done", "delivered", 1, None),
    ]
    ids = [headers["webhook-id"] for headers, _ in receiver.got.queue]
    assert len(ids) == 1 + 3 + 1  # the first told that the webhook was added
    assert len(set(ids)) == 3


def test_a_redirect_is_not_followed(space: Workspace, receiver: Receiver) -> None:
    with receiving(Receiver()) as elsewhere:
        receiver.answer = lambda handler, _: reply(handler, 302, Location=elsewhere.url)
        secret = added(space, receiver.url, "job.done")
        outcome = posting.post(receiver.url, b"{}", posting.signed(secret, "a", 1, b"{}"), HERE)
        assert (outcome.status, outcome.delivered) == (302, False)
        assert "redirects are not followed" in str(outcome.reason)
        assert elsewhere.got.empty()


def drips(handler: BaseHTTPRequestHandler, _: Any) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"x" * 10_000:
        handler.wfile.write(bytes([byte]))
        threading.Event().wait(0.02)


def hangs(*_: Any) -> None:
    threading.Event().wait(5)


def floods(handler: BaseHTTPRequestHandler, _: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"x: " + b"y" * 60_000 + b"\r\n")


def shouts(handler: BaseHTTPRequestHandler, _: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 " + b"z" * 1_000_000)


@pytest.mark.parametrize("answer", [drips, hangs, floods, shouts])
def test_a_receiver_that_hangs_drips_or_floods_costs_little(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., None]
) -> None:
    monkeypatch.setattr(posting, "DEADLINE_SECONDS", 0.4)
    receiver.answer = answer
    outcome = posting.post(receiver.url, b"{}", {}, HERE)
    assert not outcome.delivered
    assert outcome.status is None


def test_what_a_receiver_says_beyond_its_status_is_not_read(receiver: Receiver) -> None:
    def endless(handler: BaseHTTPRequestHandler, _: Any) -> None:
        reply(handler, 200, Content_Length=str(1 << 40))
        while True:
            handler.wfile.write(b"x" * 65_536)

    receiver.answer = endless
    assert posting.post(receiver.url, b"{}", {}, HERE).delivered


# --- whom nothing is told --------------------------------------------------------------------------

INWARD = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "0.0.0.0",  # noqa: S104
    "10.0.0.7",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "198.18.0.1",
    "240.0.0.1",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:1::1]",
    "[fe80::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fec0::1]",
    "[ff02::1]",
    "[2001:db8::1]",
]


@pytest.mark.parametrize("host", INWARD)
def test_no_address_that_is_not_public_is_told_anything(host: str, receiver: Receiver) -> None:
    url = f"http://{host}:{receiver.port}/"
    with pytest.raises(Exception, match="not an address of the public internet"):
        posting.checked(url, frozenset())
    outcome = posting.post(url, b"{}", {}, frozenset())
    assert "not an address of the public internet" in str(outcome.reason)
    assert receiver.got.empty()


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111"])
def test_public_addresses_are_public(address: str) -> None:
    assert posting.is_public(address)


def test_hostile_addresses_are_refused_and_nothing_is_kept(service: Service) -> None:
    hostile = [
        "",
        "ftp://chat.example/",
        "file:///etc/passwd",
        "gopher://chat.example/",
        "http://",
        "http:///x",
        "//chat.example/",
        "https://ann:secret@chat.example/",
        "https://chat.example/#part",
        "https://chat.example:99999/",
        "https://chat.example:0/",
        "https://chat.example/\r\nX-Evil: 1",
        "https://chat.example/a b",
        "https://chat.exämple/",
        "https://chat.example\\@127.0.0.1/",
        "https://[::1/",
        "https://chat.example/" + "a" * 3000,
        "http://localhost/",
        *(f"http://{host}/" for host in INWARD),
    ]
    for url in hostile:
        reply_ = service.ask("POST", "/v1/webhooks", {"name": "evil", "url": url})
        assert reply_.status == 422, (url, reply_.body)
    for change in ({"kinds": ["job.don e"]}, {"kinds": ["jop.done"]}, {"kinds": ["*"]}, {"name": "a/b"}):
        new = {"name": "evil", "url": "https://chat.example/"} | change
        assert service.ask("POST", "/v1/webhooks", new).status == 422, change
    assert service.count(Webhook) == 0


def entries(*places: tuple[str, int]) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]


def test_a_name_that_leads_inwards_by_one_of_its_addresses_is_refused(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = entries(("93.184.216.34", receiver.port), ("127.0.0.1", receiver.port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    outcome = posting.post(f"http://chat.example:{receiver.port}/", b"{}", {}, HERE)
    assert "leads to 127.0.0.1" in str(outcome.reason)
    assert receiver.got.empty()


def test_the_connection_goes_to_the_address_that_was_looked_at(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(Receiver(), "127.0.0.2", receiver.port) as inward:
        answers = [entries(("127.0.0.1", receiver.port)), *[entries(("127.0.0.2", inward.port))] * 5]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop(0))
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.2:{inward.port}")
        monkeypatch.setattr(posting, "is_public", lambda address: address == "127.0.0.1")
        outcome = posting.post(f"http://chat.example:{receiver.port}/", b"{}", {}, frozenset())
        assert outcome.delivered
        assert len(answers) == 5  # it was resolved once
        assert inward.got.empty()
    assert receiver.got.get(timeout=PATIENCE)[0]["host"] == f"chat.example:{receiver.port}"


def test_a_name_that_leads_nowhere_or_away_later_is_tried_again(
    space: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is looked at each time that it is told, not only when the webhook is added."""
    found: Iterator[Any] = iter([OSError("no such name"), entries(("10.0.0.7", 80))])
    here = entries(("127.0.0.1", receiver.port))

    def resolve(*_: Any, **__: Any) -> list[Any]:
        answer: list[Any] | OSError = next(found, here)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(posting, "is_public", lambda address: address == "127.0.0.1")
    added(space, f"http://chat.example:{receiver.port}/", "job.done")
    happen(space, "job.done")
    with sending(space):
        (told,) = settled(space, 1)
    assert (told["state"], told["tries"]) == ("delivered", 3)


# --- at least once, by one at a time ---------------------------------------------------------------


def test_two_services_tell_each_event_once_and_never_at_once(either: Service, receiver: Receiver) -> None:
    kinds = ["job.done"] * 20
    added(either.space, receiver.url, "job.*")
    with sending(either.space), sending(either.space):
        happen(either.space, *kinds)
        settled(either.space, len(kinds))
    told = [json.loads(body)["data"]["payload"]["number"] for _, body in receiver.got.queue]
    assert told == list(range(len(kinds)))
    assert receiver.most_at_once == 1


def test_one_receiver_that_hangs_does_not_keep_another_waiting(
    space: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    with receiving(Receiver()) as calm:
        receiver.answer = lambda *_: free.wait(PATIENCE)
        added(space, receiver.url, "job.done", name="slow")
        added(space, calm.url, "job.done", name="calm")
        happen(space, "job.done")
        with sending(space):
            try:
                receiver.next()
                calm.next()
                settled(space, 1, "calm")
            finally:
                free.set()


@pytest.mark.postgres
def test_an_event_that_is_committed_late_is_told_too(
    postgres_url: str, served_postgres: str, space: Workspace, receiver: Receiver
) -> None:
    """Its number was given before that of one that was told already."""
    from affinery_app.settings import Settings
    from tests.postgres import copy_of

    for url in copy_of(postgres_url, served_postgres):
        own = Workspace(space.folder, Settings(registry_url=url))
        added(own, receiver.url, "job.*")
        with own.sessions.engine.connect() as late, sending(own):
            row = "INSERT INTO event (at, kind, payload) VALUES (now(), 'job.lost', '{}') RETURNING id"
            number = late.execute(text(row)).scalar_one()
            happen(own, "job.done")
            assert receiver.next()[1]["data"]["id"] > number
            late.commit()
            assert receiver.next()[1]["data"]["id"] == number
            settled(own, 2)
        own.sessions.engine.dispose()


@pytest.mark.timeout(180)
def test_a_service_that_is_killed_while_it_tells_loses_nothing(space: Workspace, receiver: Receiver) -> None:
    (space.folder / settings.FILE).write_text(settings.HEADER + 'webhook_hosts = "127.0.0.1"\n')
    told, free = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler, _: Any) -> None:
        told.set()
        free.wait(PATIENCE)
        reply(handler, 204)

    receiver.answer = answer
    added(space, receiver.url, "job.done")
    happen(space, "job.done", "job.done")
    command = [sys.executable, "-m", "affinery_app.cli.main", "serve", "--port", "0"]
    process = subprocess.Popen([*command, "--workspace", str(space.folder)], stderr=subprocess.DEVNULL)
    try:
        assert told.wait(120)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    free.set()
    with space.sessions.begin() as session:
        held = session.scalars(update(Webhook).values(lease_expires_at=None).returning(Webhook.lease_owner))
        assert held.one() is not None  # it died holding it; a minute later the lease would have run out
    with sending(space):
        found = settled(space, 2)
    assert [(each["state"], each["tries"]) for each in found] == [("delivered", 1)] * 2
    ids = [headers["webhook-id"] for headers, _ in receiver.got.queue]
    assert len(ids) == 3
    assert ids[0] == ids[1] != ids[2]  # told twice, and known by its id


def test_what_a_sender_did_whose_lease_is_another_s_is_not_written_down(space: Workspace) -> None:
    added(space, "https://chat.example/", "job.done")
    happen(space, "job.done")
    with space.sessions.begin() as session:
        telling.spread(session)
        first = telling.claim(session, "first", lease_seconds=-1)
        second = telling.claim(session, "second")
        assert first is not None
        assert second is not None
        event = telling.following(session, second)
        assert event is not None
        assert telling.following(session, first) is None
        assert telling.claim(session, "third") is None
        assert telling.write_down(session, first, event.id, posting.Outcome(200)) is False
        telling.let_go(session, first)
        assert webhooks.deliveries(session, "chat")[0].state == "waiting"
        assert telling.write_down(session, second, event.id, posting.Outcome(200)) is True


def test_what_was_told_long_ago_is_forgotten_and_not_told_again(space: Workspace, receiver: Receiver) -> None:
    added(space, receiver.url, "job.*")
    happen(space, "job.done", "job.dead")
    with sending(space):
        settled(space, 2)
    with space.sessions.begin() as session:
        first = webhooks.deliveries(session, "chat")[-1].event
        old = update(WebhookDelivery).where(WebhookDelivery.event_id == first)
        session.execute(old.values(created_at=utc_now() - timedelta(days=8)))
        telling.sweep(session)
        telling.spread(session)
        assert [each.kind for each in webhooks.deliveries(session, "chat")] == ["job.dead"]


def test_delays_grow_and_end_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "RETRY_SECONDS", 5.0)
    assert 2.5 <= telling.delay(0) <= 5
    assert 1800 <= telling.delay(1000) <= telling.LONGEST_DELAY_SECONDS


# --- webhooks themselves ---------------------------------------------------------------------------


def test_a_webhook_is_added_tried_and_removed_over_http_and_its_secret_is_told_once(service: Service) -> None:
    new = {"name": "chat", "url": "https://chat.example/hook", "kinds": ["job.*"]}
    made = service.ask("POST", "/v1/webhooks", new)
    assert (made.status, made.headers["location"]) == (201, "/v1/webhooks/chat")
    secret = made.json["secret"]
    assert secret.startswith("whsec_")
    again = service.ask("POST", "/v1/webhooks", new)
    assert (again.status, again.json["type"]) == (409, "urn:affinery:webhook-exists")
    for place in ("/v1/webhooks", "/v1/webhooks/chat", "/v1/events?limit=500"):
        assert secret not in service.ask("GET", place).body.decode()
    tried = service.ask("POST", "/v1/webhooks/chat/test", Idempotency_Key="t")
    assert (tried.status, tried.json["kind"], tried.json["state"]) == (201, "webhook.tested", "waiting")
    replayed = service.ask("POST", "/v1/webhooks/chat/test", Idempotency_Key="t")
    assert (replayed.json, replayed.headers["idempotency-replayed"]) == (tried.json, "true")
    assert service.get("/v1/webhooks")["items"][0]["waiting"] == 1
    assert service.ask("DELETE", "/v1/webhooks/chat").json["waiting"] == 1
    assert service.ask("DELETE", "/v1/webhooks/chat").status == 404
    assert service.ask("POST", "/v1/webhooks", new).status == 201  # the name is free again


def test_the_command_line_adds_lists_tries_and_removes_webhooks(
    space: Workspace, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    (space.folder / settings.FILE).write_text(settings.HEADER)
    where = ("--workspace", space.folder)
    assert typed("webhook", "add", "chat", receiver.url, *where) == 2
    assert "webhook_hosts" in capsys.readouterr().err
    assert typed("config", "set", "webhook_hosts", "127.0.0.1, chat.lab", *where) == 0
    capsys.readouterr()
    assert typed("webhook", "add", "chat", receiver.url, "--kind", "job.done", *where) == 0
    assert capsys.readouterr().out.startswith("whsec_")
    assert typed("webhook", "test", "chat", *where) == 0
    with sending(space):
        assert receiver.next()[1]["type"] == "webhook.tested"
        settled(space, 1)
    capsys.readouterr()
    assert typed("webhook", "deliveries", "chat", "--json", *where) == 0
    assert [each["state"] for each in json.loads(capsys.readouterr().out)] == ["delivered"]
    assert typed("webhook", "list", "--json", *where) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["chat"]
    assert typed("webhook", "rm", "chat", *where) == 0
    assert typed("webhook", "rm", "chat", *where) == 2


def test_every_event_of_a_whole_world_is_of_a_noun_that_a_webhook_may_ask_for(space: Workspace) -> None:
    with space.sessions.read() as session:
        kinds = set(session.scalars(text("SELECT DISTINCT kind FROM event")))
    assert len(kinds) >= 10
    assert {kind.partition(".")[0] for kind in kinds} <= set(events.NOUNS)
