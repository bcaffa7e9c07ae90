"""The service answers from a real registry, to read only, and says when it cannot."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

import migrations
from affinery_app.service import LISTS, make_server
from affinery_app.settings import Settings
from affinery_app.wiring import Workspace


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, Settings())
    migrations.upgrade(made.registry_url)
    return made


@contextmanager
def serving(space: Workspace) -> Iterator[str]:
    with make_server(space, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def asked(address: str, path: str, method: str = "GET") -> tuple[int, Any]:
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        is_json = "json" in (answer.getheader("Content-Type") or "")
        return answer.status, json.loads(body) if is_json else body
    finally:
        connection.close()


def test_a_healthy_registry_answers_every_list(space: Workspace) -> None:
    with serving(space) as address:
        assert asked(address, "/healthz") == (200, {"status": "ok"})
        for path in LISTS:
            assert asked(address, f"{path}?page=1") == (200, [])


def test_what_is_not_there_says_what_is(space: Workspace) -> None:
    with serving(space) as address:
        status, problem = asked(address, "/../etc/passwd")
        assert status == 404
        assert "/v1/tasks" in problem["detail"]


def test_nothing_can_be_changed(space: Workspace) -> None:
    with serving(space) as address:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert asked(address, "/v1/tasks", method)[0] == 501


def test_a_registry_of_a_newer_schema_is_unhealthy_and_says_so(space: Workspace) -> None:
    with serving(space) as address:
        assert asked(address, "/healthz")[0] == 200
        with sqlite3.connect(space.folder / "registry.db") as store:
            store.execute("UPDATE alembic_version SET version_num = '9999'")
        status, problem = asked(address, "/healthz")
        assert status == 503
        assert "9999" in problem["detail"]
