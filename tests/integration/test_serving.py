"""`affinery serve-model` as a process of its own, asked over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from affinery.adapters.files import adapter_bytes
from affinery.backbones.files import inspect_backbone, save_backbone
from affinery.bundle_writing import BundleTask, write_bundle
from tests import tiny_models as tiny

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
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    save_backbone(tiny.backbone(), folder / "backbone")
    fingerprint = inspect_backbone(folder / "backbone").fingerprint
    tasks = []
    for seed, (name, block) in enumerate({"digits": (4, 6), "letters": (6, 9)}.items()):
        meta = tiny.meta(name, block, 2, backbone=fingerprint)
        (folder / name).write_bytes(adapter_bytes(tiny.adapter(meta, seed)))
        tasks.append(
            BundleTask(name, f"{name}@1", "affiner", meta.class_names, block, folder / name, None, "d@1")
        )
    facts = {"ref": "tiny@1", "fingerprint": fingerprint}
    write_bundle(folder / "bundle", "both@1", folder / "backbone", facts, tasks, "# both\n")
    return folder / "bundle"


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
    process.wait(60)


def test_pictures_come_as_pngs_one_a_seed_and_the_same_seeds_give_them_again(server: Server) -> None:
    status, drawn = server.generate(label=["digits 0", 1], n=2, seed=5, steps=3)
    assert (status, drawn["seeds"]) == (200, [5, 6, 7, 8])
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
    assert tasks == {"digits": ["digits 0", "digits 1"], "letters": [f"letters {i}" for i in range(3)]}
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
