"""Registries in which everything is recorded at least once, on both engines, copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import certificates, compositions
from registry.session import connect, sessions
from tests import registry_world as world
from tests.postgres import copy_of, named, on_server

_TEMPLATE = "affinery_recorded"


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
    engine.dispose()
