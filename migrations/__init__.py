"""The migrations of the registry. upgrade(url) brings one up from empty or from any earlier revision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.config import Config


def upgrade(url: str) -> None:
    """Create or bring up the registry at a sqlite: or postgresql: URL, whole or not at all.

    A registry of a newer schema is refused (RegistryTooNew) and left as it is.
    """
    from alembic import command
    from sqlalchemy import Connection, text

    from affinery.version import __version__
    from registry import errors, session

    engine = session.connect(url, create=True)
    try:
        try:
            session.check_schema(engine)
        except (errors.RegistryMissing, errors.RegistryOutdated):
            pass  # what this function is for
        else:
            return
        settings = config()

        def run(connection: Connection) -> None:
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")
            connection.execute(text("DELETE FROM registry_info WHERE key = 'affinery_version'"))
            connection.execute(
                text("INSERT INTO registry_info (key, value) VALUES ('affinery_version', :version)"),
                {"version": __version__},
            )

        with session.speaking(session.where(engine)), engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                # Two processes that bring up the same database wait for each other here.
                connection.execute(text("SELECT pg_advisory_xact_lock(4702111)"))
            run(connection)
    finally:
        engine.dispose()


def config() -> Config:
    """Alembic's configuration, without a file."""
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent))
    settings.set_main_option("path_separator", "os")
    return settings
