"""Ten thousand inputs that nobody means well with: the server never fails, and nothing is written.

AFFINERY_HOSTILE=100000 sends more of them. They are drawn from a fixed seed, so a failure comes again.
"""

from __future__ import annotations

import io
import json
import os
import random
import socket
import string
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from registry.models import Base
from tests.integration.api.conftest import Service
from tests.integration.api.test_scheduling import bomb, uploaded

WANTED = int(os.environ.get("AFFINERY_HOSTILE", "10000"))
FILES = max(1, WANTED // 50)  # each is sent, unpacked and looked at
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
HEADERS = [
    "Accept",
    "Accept-Encoding",
    "Authorization",
    "Content-Type",
    "Cookie",
    "Expect",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Origin",
    "Prefer",
    "Range",
    "Sec-Fetch-Site",
    "Transfer-Encoding",
    "Upgrade",
    "X-Affinery-CSRF",
    "X-Forwarded-For",
]
RANGES = ["bytes=0-", "bytes=-1", "bytes=9-1", "bytes=0-0,2-3", "bytes=99999999999999999999-", "rows=1-2"]
LETTERS = (
    string.printable + "\x00\x7f\x85\u00ad\u0301\u200b\u202e\u2028\ufeff\ufffe\ud800\U0001f600\U000e0041"
)
BODIES: list[tuple[str, dict[str, Any]]] = [
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
PLACES = [
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
    "/v1/tasks/{}/report",
    "/v1/limits/{}/tiny",
    "/v1/limits/backbone/{}",
    "/v1/diff?left={}&right=shapes",
    "/v1/diff?left=shapes&right=shapes&tensors={}",
    "/v1/webhooks/{}",
    "/v1/webhooks/{}/deliveries",
    "/v1/webhooks/hook/deliveries?state={}",
    "/v1/tasks?after={}",
    "/v1/jobs?states={}",
]


def counts(service: Service) -> dict[str, int]:
    """Of all that is recorded, but of what is sent and of who asked."""
    beside = {"event", "request", "token", "browser_session", "upload", "blob"}
    tables = [table for table in Base.metadata.sorted_tables if table.name not in beside]
    return {table.name: service.count(table) for table in tables}


def text_of(rng: random.Random) -> str:
    """A hostile text: one that is known, pieces of several, or letters that nobody types."""
    way = rng.randrange(4)
    if way == 0:
        return rng.choice(HOSTILE)
    if way == 1:
        return "".join(rng.choice(HOSTILE)[:50] for _ in range(rng.randint(2, 4)))
    if way == 2:
        return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 60)))
    return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 20)))


def _filled(value: Any, text: str) -> Any:
    """The same with this text wherever a question mark stands."""
    if isinstance(value, dict):
        return {name: _filled(each, text) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, text) for each in value]
    return text if value == "?" else value


def values(service: Service, rng: random.Random) -> None:
    """A text in a body where a name, a number or a time belongs."""
    path, body = rng.choice(BODIES)
    sent = _filled(body, rng.choice(("", "no")) + text_of(rng))
    reply = service.ask("POST", path, sent)
    least = 200 if path == "/v1/tasks/estimate" else 400  # there a name may be as strange as it likes
    assert least <= reply.status < 500, (path, sent, reply.body[:300])


def addresses(service: Service, rng: random.Random) -> None:
    """A text in an address."""
    said = quote(text_of(rng).encode("utf-8", "surrogatepass"), safe=rng.choice(("", "/.;=&?")))[:3000]
    place = rng.choice(PLACES).format(said)
    reply = service.ask("GET", place)
    assert reply.status < 500, (place, reply.body[:300])


def bodies(service: Service, rng: random.Random) -> None:
    """Bytes that are no JSON, or JSON as no program writes it."""
    path, body = rng.choice([each for each in BODIES if each[0] != "/v1/tasks/estimate"])
    good = json.dumps(_filled(body, "nothing")).encode()
    at = rng.randrange(1, len(good))
    sent = rng.choice(
        (
            good[:at],
            good[:at] + rng.randbytes(rng.randint(1, 9)) + good[at:],
            b"[" * rng.choice((10, 2_000, 100_000)),
            b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
            b'{"name": ' + b"9" * rng.choice((20, 5_000)) + b"}",
            b'{"name": 1e999, "name": "twice"}',
            b"\xef\xbb\xbf" + good,
            good.decode().encode("utf-16"),
            rng.randbytes(rng.randint(0, 300)),
            rng.choice((b"null", b"true", b"[]", b'""', b"{}", b"NaN", b"-", b"\x00")),
        )
    )
    kinds = ("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "")
    reply = service.ask("POST", path, sent, Content_Type=rng.choice(kinds))
    assert 400 <= reply.status < 500, (path, sent[:300], reply.status, reply.body[:300])


def headers(service: Service, rng: random.Random) -> bool:
    """Headers as no client sends them, and requests that are none. → whether there was an answer"""
    method = rng.choice(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "\x00", "G E T"))
    path = rng.choice(
        ("/v1/tasks", "/v1/exports/both/download", "/v1/jobs/1", "/tasks", "/v1/events", "//", "*")
    )
    lines = [f"{method} {path} HTTP/{rng.choice(('1.1', '1.0', '9.9'))}".encode(), b"Host: localhost"]
    for _ in range(rng.randint(1, 5)):
        value = rng.choice((rng.choice(RANGES), text_of(rng)[:2_000]))
        lines.append(rng.choice(HEADERS).encode() + b": " + value.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.2:
        lines.append(b"Content-Length: " + rng.choice((b"-1", b"99999999999999999999", b"0, 5", b"x")))
    sent = b"\r\n".join(lines) + b"\r\nConnection: close\r\n\r\n"
    status = spoken(service.port, sent)
    assert status is None or status < 500, (sent[:500], status)
    return status is not None


def spoken(port: int, sent: bytes) -> int | None:
    """The status that a server answers these bytes with; None where it hangs up or waits for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        try:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            answer = line.recv(64)
        except ConnectionError:
            return None
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else None


def files(service: Service, rng: random.Random) -> None:
    """An archive, or pictures in one, that cannot be learnt from."""
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (rng.randrange(256), 0, 0)).save(held, rng.choice(("PNG", "JPEG", "GIF")))
    whole = held.getvalue()
    pictures = (
        whole[: rng.randrange(len(whole) // 2)],
        whole[:20] + rng.randbytes(40),
        b"\x89PNG\r\n\x1a\n" + rng.randbytes(200),
        b"GIF89a" + b"\xff" * 8 + rng.randbytes(50),
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        bomb(),
        rng.randbytes(500),
    )
    names = (
        "a/b.png",
        "../up.png",
        "/etc/x.png",
        "a/\u202egnp.png",
        "a/" + "n" * 250 + ".png",
        "con/nul.png",
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for _ in range(rng.randint(1, 3)):
            archive.writestr(rng.choice(names), rng.choice(pictures))
    content = packed.getvalue()
    content = rng.choice((content, content, content[: len(content) // 2], rng.randbytes(300)))
    came = uploaded(service, content)
    reply = service.ask("POST", "/v1/datasets", {"name": "evil", **came})
    assert 400 <= reply.status < 500, (content[:100], reply.body[:300])
    service.ask("DELETE", f"/v1/uploads/{came['upload']}")


KINDS: list[tuple[Callable[[Service, random.Random], bool | None], int]] = [
    (values, WANTED * 40 // 100),
    (addresses, WANTED * 28 // 100),
    (bodies, WANTED * 15 // 100),
    (headers, WANTED * 15 // 100),
    (files, FILES),
]


@pytest.mark.timeout(max(900, WANTED // 10))
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.slow
def test_ten_thousand_hostile_inputs_fail_nowhere_and_write_nothing(learnable: Service) -> None:
    before, rng, sent, unanswered = counts(learnable), random.Random(7), 0, 0
    kept = set(learnable.space.folder.parent.rglob("*.png"))
    for send, times in KINDS:
        for _ in range(times):
            unanswered += send(learnable, rng) is False
            sent += 1
    assert sent >= WANTED
    assert unanswered < sent // 100
    assert counts(learnable) == before
    assert not (learnable.space.data / "evil").exists()
    assert set(learnable.space.folder.parent.rglob("*.png")) == kept
    assert learnable.get("/healthz") == {"status": "ok"}
