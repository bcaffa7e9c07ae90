"""`affinery serve`: a process that listens where it may, says so, and says when it cannot."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from affinery_app import settings
from affinery_app.wiring import Workspace
from tests.command_line import typed
from tests.integration.api.conftest import Service

SECRET = "sesame-sesame-sesame"


@pytest.fixture
def folder(space: Workspace) -> Path:
    (space.folder / settings.FILE).write_text(settings.HEADER)
    return space.folder


def test_it_says_where_it_listens_answers_and_ends_when_told(folder: Path) -> None:
    command = [sys.executable, "-m", "affinery_app.cli.main", "serve", "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--workspace", str(folder)],
        env=os.environ | {"PYTHONUNBUFFERED": ""},  # as it is for everybody else
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = json.loads("".join(process.stdout.readline() for _ in range(3)))["address"]
        service = Service(int(address.rpartition(":")[2]), Workspace(folder, settings.read(folder)))
        assert service.get("/v1/adapters/digits@1")["ref"] == "digits@1"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "this machine only" in said
    assert said.endswith("\nstopped, as it was told to.\n")
    assert process.returncode == 0  # systemd and docker ask so, and that is no failure


@pytest.mark.parametrize(
    ("host", "token", "words"),
    [
        ("0.0.0.0", "", "AFFINERY_TOKEN"),  # noqa: S104
        ("::", "", "AFFINERY_TOKEN"),
        ("127.0.0.1", "short", "16 visible ASCII characters"),
    ],
)
def test_nothing_listens_beyond_this_machine_without_a_token_worth_the_name(
    folder: Path,
    host: str,
    token: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AFFINERY_TOKEN", token)
    before = signal.getsignal(signal.SIGTERM)
    code = typed("serve", "--workspace", folder, "--port", "0", "--host", host)
    signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert words in told.err


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("command", ["serve", "serve-model"])
@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid", "203.0.113.7", "é" * 80])
def test_an_address_that_cannot_be_listened_on_is_named_with_what_to_do(
    folder: Path,
    command: str,
    host: str,
    taken: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AFFINERY_TOKEN", "long-enough-to-be-one")
    before = signal.getsignal(signal.SIGTERM)
    source = ["bundle"] if command == "serve-model" else []
    code = typed(command, *source, "--workspace", folder, "--port", taken, "--host", host)
    signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert told.err.startswith(f"error: Nothing can listen on {host}, port {taken}: ")
    assert "(while" not in told.err
    assert told.err.endswith("--port; 0 takes a free one.\n" if host == "127.0.0.1" else "as 127.0.0.1.\n")


def test_a_registry_of_a_newer_schema_is_unhealthy_and_says_so(service: Service) -> None:
    assert service.get("/healthz") == {"status": "ok"}
    with sqlite3.connect(service.space.folder / "registry.db") as store:
        store.execute("UPDATE alembic_version SET version_num = '9999'")
    reply = service.ask("GET", "/healthz")
    assert (reply.status, reply.json["type"]) == (503, "urn:affinery:registry-too-new")
    assert "9999" in reply.json["detail"]


def test_commands_that_serve_nothing_load_nothing_that_serves_and_what_serves_no_torch() -> None:
    code = (
        "import sys, typer.main; from affinery_app.cli.commands import command_line;"
        "typer.main.get_command(command_line());"
        "heavy = {'torch', 'ray', 'mlflow', 'dvc'}; web = {'fastapi', 'uvicorn', 'starlette'};"
        "found = [sorted((heavy | web) & sys.modules.keys())]; import affinery_app.api.application;"
        "print([*found, sorted(heavy & sys.modules.keys())])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[[], []]"
