"""A real server on loopback, over a registry in which everything is recorded and whose blobs are there."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from affinery_app.api.access import Registered, Token
from affinery_app.api.application import bound, guarded, server
from affinery_app.api.guard import Limits
from affinery_app.settings import Settings
from affinery_app.wiring import Workspace
from registry.storage.local import LocalStore
from tests import learning_world, stored_world
from tests.postgres import copy_of, named, on_server

_TEMPLATE = "affinery_served"
FREELY = Limits(burst=1_000_000, wrong_burst=1_000_000)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Service:
    """What speaks to a server, a connection a request; headers are sent with every one."""

    port: int
    space: Workspace
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, sent)
            got = connection.getresponse()
            return Reply(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        reply = self.ask("GET", path)
        assert reply.status == 200, reply.body
        return reply.json

    def count(self, table: Any) -> int:
        from sqlalchemy import func, select

        with self.space.sessions.read() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0


@contextmanager
def serving(space: Workspace, token: str | None = None, limits: Limits | None = None) -> Iterator[Service]:
    """The service of a workspace, in a thread of this process. token: as AFFINERY_TOKEN has it."""
    own = None if token is None else Token.of(token)
    with bound("127.0.0.1", 0, known=True) as listening:
        running = server(guarded(space, Registered(space.sessions, own, loopback=True), limits or FREELY))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield Service(listening.getsockname()[1], space)
        finally:
            running.should_exit = True
            thread.join(timeout=20)
            space.sessions.engine.dispose()
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """A workspace's folder: registry.db, and blobs/ with every blob."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copy(sqlite_template, folder / "registry.db")
    stored_world.fill(f"sqlite:///{folder / 'registry.db'}", LocalStore(folder / "blobs"), folder)
    return folder


@pytest.fixture(scope="session")
def served_postgres(postgres_url: str, postgres_template: str, served_folder: Path) -> str:
    """The name of a database that holds the same."""
    on_server(postgres_url, f"CREATE DATABASE {_TEMPLATE} TEMPLATE {postgres_template}")
    stored_world.fill(named(postgres_url, _TEMPLATE), LocalStore(served_folder / "blobs"), served_folder)
    return _TEMPLATE


@pytest.fixture
def space(served_folder: Path, tmp_path: Path) -> Workspace:
    """A workspace of its own, on SQLite."""
    shutil.copytree(served_folder, tmp_path / "space")
    return Workspace(tmp_path / "space", Settings())


@pytest.fixture
def service(space: Workspace) -> Iterator[Service]:
    """The service of a workspace on SQLite."""
    with serving(space) as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def either(request: pytest.FixtureRequest, space: Workspace) -> Iterator[Service]:
    """The service of a workspace, on one engine and then on the other."""
    if request.param == "sqlite":
        with serving(space) as made:
            yield made
        return
    template = request.getfixturevalue("served_postgres")
    for url in copy_of(request.getfixturevalue("postgres_url"), template):
        with serving(Workspace(space.folder, Settings(registry_url=url))) as made:
            yield made


@pytest.fixture(scope="session")
def learnable_folder(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
) -> Path:
    """A workspace with a backbone and two datasets of two classes."""
    folder = tmp_path_factory.mktemp("learnable")
    services = learning_world.make_space(folder / "space", sqlite_template, mlflow_template, tiny_backbone)
    for seed, name in enumerate(("shapes", "shades")):
        learning_world.add_dataset(
            services, learning_world.image_folder(folder / name, "x", "y", seed=seed), name
        )
    services.sessions.engine.dispose()
    return folder / "space"


@pytest.fixture
def learnable(learnable_folder: Path, tmp_path: Path) -> Iterator[Service]:
    """The service of such a workspace."""
    shutil.copytree(learnable_folder, tmp_path / "space", symlinks=True)
    with serving(Workspace(tmp_path / "space", Settings())) as made:
        yield made
