"""Registries in which everything is recorded at least once, on both engines, copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import certificates, compositions, renaming
from registry.session import connect, sessions
from registry.storage.local import LocalStore
from tests import registry_world as world
from tests import stored_world
from tests.postgres import copy_of, named, on_server

_TEMPLATE = "affinery_recorded"
_STORED_TEMPLATE = "affinery_stored"


@pytest.fixture(scope="session")
def recorded_sqlite(sqlite_template: Path) -> Path:
    """A file that holds such a registry."""
    path = sqlite_template.with_name("recorded.db")
    shutil.copy(sqlite_template, path)
    _record(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def recorded_postgres(postgres_url: str, postgres_template: str) -> str:
    """The name of a database that holds such a registry."""
    on_server(postgres_url, f"CREATE DATABASE {_TEMPLATE} TEMPLATE {postgres_template}")
    _record(named(postgres_url, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def recorded_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A registry in which everything is recorded, on one engine and then on the other."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("recorded_sqlite"), tmp_path / "recorded.db")
        yield f"sqlite:///{tmp_path / 'recorded.db'}"
    else:
        server = request.getfixturevalue("postgres_url")
        yield from copy_of(server, request.getfixturevalue("recorded_postgres"))


@pytest.fixture(scope="session")
def stored_files(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """A folder with a registry in a SQLite file, and the store of its blobs."""
    folder = tmp_path_factory.mktemp("stored")
    shutil.copy(sqlite_template, folder / "registry.db")
    stored_world.fill(f"sqlite:///{folder / 'registry.db'}", LocalStore(folder / "blobs"), folder)
    return folder


@pytest.fixture(scope="session")
def stored_postgres(postgres_url: str, postgres_template: str, stored_files: Path) -> str:
    """The name of a database that holds the same."""
    on_server(postgres_url, f"CREATE DATABASE {_STORED_TEMPLATE} TEMPLATE {postgres_template}")
    # The files come out the same, and stand there already.
    stored_world.fill(named(postgres_url, _STORED_TEMPLATE), LocalStore(stored_files / "blobs"), stored_files)
    return _STORED_TEMPLATE


@pytest.fixture
def store(stored_files: Path, tmp_path: Path) -> LocalStore:
    """The blobs of the stored world, to be spoilt."""
    shutil.copytree(stored_files / "blobs", tmp_path / "blobs")
    return LocalStore(tmp_path / "blobs")


@pytest.fixture
def stored_sqlite_url(stored_files: Path, tmp_path: Path) -> str:
    """A registry in a SQLite file, whose blobs are in store."""
    shutil.copy(stored_files / "registry.db", tmp_path / "stored.db")
    return f"sqlite:///{tmp_path / 'stored.db'}"


@pytest.fixture
def stored_postgresql_url(postgres_url: str, stored_postgres: str) -> Iterator[str]:
    """A registry on PostgreSQL, whose blobs are in store."""
    yield from copy_of(postgres_url, stored_postgres)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def stored_url(request: pytest.FixtureRequest) -> str:
    """A registry whose blobs are in store, on one engine and then on the other."""
    return str(request.getfixturevalue(f"stored_{request.param}_url"))


def _record(url: str) -> None:
    engine = connect(url)
    with sessions(engine).begin() as session:
        world.backbone(session, "dit")
        world.backbone(session, "unet")
        world.learnt(session, "digits", 1)
        world.learnt(session, "digits", 2)
        world.learnt(session, "faces", 1)
        world.learnt(session, "birds", 1, on="unet")
        certificates.record(session, stage_adapter="faces", results={}, level="bit-exact")
        compositions.register(
            session, name="both", backbone="dit", mode="routed", recipe={}, members=["digits@1", "faces"]
        )
        compositions.record_export(
            session, composition="both", format="bundle", digest=world.sha("x"), path="/x", size_bytes=1
        )
        world.evaluated(session, "faces")
        world.dataset(session, "snaps")
        renaming.rename(session, "dataset:snaps", "photos")
    engine.dispose()
