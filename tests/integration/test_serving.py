"""`affinery serve-model` as a process of its own, asked over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from affinery.serving.engine import Engine
from affinery_app.api.application import bound
from affinery_app.api.application import server as server_of
from affinery_app.serving.application import Figures, guarded
from tests import tiny_models as tiny
from tests import tiny_unets
from tests.shipped import told_model

AFFINERY = [sys.executable, "-m", "affinery_app.cli.main"]


@dataclass(frozen=True)
class Server:
    port: int

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, bytes]:
        """→ status, content type, body"""
        connection = self.connection()
        sent = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): v for name, v in headers.items()
        }
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        found = answer.status, answer.headers.get("Content-Type", ""), answer.read()
        connection.close()
        return found

    def generate(self, **asked: Any) -> tuple[int, dict[str, Any]]:
        status, _, body = self.ask("POST", "/v1/generate", {"task": "digits", "label": "digits 0"} | asked)
        return status, json.loads(body)

    def figure(self, line: str) -> float:
        _, _, body = self.ask("GET", "/metrics")
        found = [each for each in body.decode().splitlines() if each.startswith(line)]
        return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    environment = {k: v for k, v in os.environ.items() if k != "AFFINERY_TOKEN"} | {"OMP_NUM_THREADS": "1"}
    command = [
        *AFFINERY,
        "serve-model",
        str(bundle),
        "--port",
        "0",
        "--batch",
        "4",
        "--waiting",
        "12",
        "--json",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line == "}\n":
            break
    yield Server(int(json.loads(said)["url"].rpartition(":")[2]))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_pictures_come_as_pngs_one_a_seed_and_the_same_seeds_give_them_again(server: Server) -> None:
    status, drawn = server.generate(label=["digits 0", 1], n=2, seed=5, steps=3)
    assert (status, drawn["version"], drawn["seeds"]) == (200, 1, [5, 6, 7, 8])
    pictures = [Image.open(io.BytesIO(base64.b64decode(png))) for png in drawn["images"]]
    assert [(picture.format, picture.size) for picture in pictures] == [("PNG", (8, 8))] * 4
    assert server.generate(label="digits 0", n=1, seed=6, steps=3)[1]["images"] == [drawn["images"][1]]


def test_a_grid_is_one_png(server: Server) -> None:
    asked = {"task": "letters", "label": [0, 1, 2], "n": 3, "steps": 2}
    status, kind, body = server.ask("POST", "/v1/generate", asked, Accept="image/png")
    assert (status, kind) == (200, "image/png")
    assert Image.open(io.BytesIO(body)).size == (3 * 10 + 2, 3 * 10 + 2)


def test_progress_is_told_while_it_is_drawn(server: Server) -> None:
    asked = {"task": "letters", "label": 0, "n": 2, "steps": 200}
    status, kind, body = server.ask("POST", "/v1/generate", asked, Accept="text/event-stream")
    events = [event.splitlines() for event in body.decode().strip().split("\n\n")]
    assert status == 200
    assert kind.startswith("text/event-stream")
    told = [json.loads(data.removeprefix("data: ")) for name, data in events if name == "event: progress"]
    assert told[-1] == {"done": 400, "of": 400}
    assert [each["done"] for each in told] == sorted(each["done"] for each in told)
    assert events[-1][0] == "event: done"
    assert len(json.loads(events[-1][1].removeprefix("data: "))["images"]) == 2


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"task": "numbers"}, 404),
        ({"label": "digits 9"}, 404),
        ({"task": "digits@2"}, 404),
        ({"prompt": "a boot"}, 422),
        ({"condition": "AAAA"}, 422),
        ({"label": 7}, 404),
        ({"n": 0}, 422),
        ({"steps": 5000}, 422),
        ({"seed": -1}, 422),
        ({"colour": "red"}, 422),
        ({"n": 13}, 429),
        ({"n": 12, "steps": 1000, "deadline_seconds": 0.001}, 504),
    ],
)
def test_what_cannot_be_is_a_problem_that_says_so(asked: dict[str, Any], status: int, server: Server) -> None:
    found, problem = server.generate(**asked)
    assert (found, problem["status"]) == (status, status)
    assert problem["detail"]


def test_a_client_that_leaves_takes_its_request_along(server: Server) -> None:
    before = server.figure('affinery_requests_total{end="left"}')
    connection = server.connection()
    body = json.dumps({"task": "digits", "label": 0, "n": 12, "steps": 1000})
    connection.request("POST", "/v1/generate", body, {"Content-Type": "application/json"})
    while not server.figure("affinery_waiting_images"):
        time.sleep(0.02)
    connection.close()
    while server.figure("affinery_waiting_images"):
        time.sleep(0.02)
    assert server.figure('affinery_requests_total{end="left"}') == before + 1


def test_it_tells_its_tasks_its_health_and_its_figures(server: Server) -> None:
    assert json.loads(server.ask("GET", "/healthz")[2]) == {"status": "ok"}
    tasks = json.loads(server.ask("GET", "/v1/tasks")[2])["tasks"]
    digits = {
        "version": 1,
        "versions": [1],
        "classes": ["digits 0", "digits 1"],
        "image_size": 8,
        "condition": None,
    }
    assert tasks["digits"] == digits
    assert tasks["letters"]["classes"] == [f"letters {i}" for i in range(3)]
    before = server.figure('affinery_images_total{task="letters"}')
    server.ask("POST", "/v1/generate", {"task": "letters", "label": 0, "n": 2, "steps": 1})
    assert server.figure('affinery_images_total{task="letters"}') == before + 2
    assert server.figure("affinery_batch_images_count") > 0


def test_beyond_this_machine_it_wants_a_token(bundle: Path, server: Server) -> None:
    command = [*AFFINERY, "serve-model", str(bundle), "--host", "::", "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "AFFINERY_TOKEN"}
    refused = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert refused.returncode == 2
    assert "AFFINERY_TOKEN" in refused.stderr
    assert server.ask("GET", "/v1/tasks", Host="elsewhere.example")[0] == 421


@pytest.fixture(scope="module")
def telling() -> Iterator[tuple[Server, Engine]]:
    """A server in a thread: a task that is told edges, and one of classes, on a U-Net that takes captions."""
    engine = Engine(told_model(), numbers={"edges": 1, "digits": 1})
    with bound("127.0.0.1", 0, known=False) as listening:
        running = server_of(guarded(engine, None, Figures()))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield Server(listening.getsockname()[1]), engine
        running.should_exit = True
        thread.join(60)
    engine.stop()


def png(side: int = 16, mode: str = "L") -> bytes:
    picture = Image.new(mode, (side, side))
    picture.paste(255 if mode == "L" else (255, 255, 255), (0, 0, side // 2, side // 2))
    body = io.BytesIO()
    picture.save(body, "PNG")
    return body.getvalue()


def in_words(content: bytes) -> str:
    return base64.b64encode(content).decode()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header says that it is so large."""
    body = png()
    header = b"IHDR" + struct.pack(">II", width, height) + body[24:29]
    return body[:12] + header + struct.pack(">I", zlib.crc32(header)) + body[33:]


def test_a_picture_and_a_caption_are_told_and_a_newer_version_is_taken_in(
    telling: tuple[Server, Engine],
) -> None:
    server, engine = telling
    edges = {"task": "edges", "label": 0, "steps": 2, "condition": in_words(png())}
    status, drawn = server.generate(**edges)
    assert (status, drawn["version"]) == (200, 1)
    assert server.generate(**edges | {"condition": in_words(png(mode="RGB"))})[1]["images"] == drawn["images"]
    for other in ({"condition": in_words(png(8))}, {"prompt": "abc ab"}, {"condition_from": in_words(png())}):
        asked = edges | other
        if "condition_from" in other:
            del asked["condition"]
        assert server.generate(**asked)[0] == 200, other
    newer = tiny.meta("digits", (5, 7), kind="bitfit", config={})
    before = server.generate(label=0, steps=2)[1]
    engine.take(tiny.adapter(newer, 41, tiny_unets.built(tiny_unets.text_spec())), 2)
    after = server.generate(label=0, steps=2)[1]
    assert (before["version"], after["version"]) == (1, 2)
    assert after["images"] != before["images"]
    assert server.generate(task="digits@1", label=0, steps=2)[1] == before
    tasks = json.loads(server.ask("GET", "/v1/tasks")[2])
    assert tasks["tasks"]["digits"]["versions"] == [1, 2]
    assert tasks["tasks"]["edges"]["condition"] == {"name": "canny", "channels": 1}
    assert tasks["captions"]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, "give its map"),
        ({"condition": "no base64!"}, "no base64"),
        ({"condition": in_words(b"GIF89a")}, "cannot be read as a PNG"),
        ({"condition": in_words(png()[:50])}, "cannot be read as a PNG"),
        ({"condition": in_words(claiming(60_000, 60_000))}, "more than 16,777,216 pixels|cannot be read"),
        ({"condition": in_words(claiming(5_000, 5_000))}, "more than 16,777,216 pixels"),
        ({"condition": in_words(claiming(0, 7))}, "cannot be read as a PNG"),
        ({"task": "digits", "condition": in_words(png())}, "'digits' is told none"),
    ],
)
def test_a_picture_that_cannot_be_told_is_refused_by_what_is_wrong(
    asked: dict[str, Any], reason: str, telling: tuple[Server, Engine]
) -> None:
    status, problem = telling[0].generate(**{"task": "edges", "label": 0, "steps": 2} | asked)
    assert status == 422
    assert re.search(reason, problem["detail"]), problem
