"""Waiting for work without asking for it again and again.

On PostgreSQL, whoever makes a job ready rings at its commit, and who waits listens. On SQLite, who waits
glances at a counter that every commit of another connection moves: that takes microseconds and no lock.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

GLANCE_SECONDS = 0.05
_RING = text("NOTIFY affinery_jobs")


def ring(session: Session) -> None:
    """There may be work, once this transaction is committed. A bell that nobody hears costs a second."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_RING)


class Bell:
    """What one worker hears; it keeps a connection of its own while it is used."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._connection: Any = None
        self._commits: int | None = None

    def wait(self, seconds: float) -> None:
        """Until there may be work, or so long. Where the database is away, so long."""
        until = time.monotonic() + seconds
        try:
            if self._connection is None:
                self._connection = self.engine.raw_connection()
                self._begin()
            if self.engine.dialect.name == "postgresql":
                self._listen(seconds)
            else:
                self._glance(until)
        except (self.engine.dialect.loaded_dbapi.Error, OSError) as error:
            log.debug("The queue's bell is not heard: %s", error)
            self.close()
            time.sleep(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """Gives the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # it listens: nobody else is to have it

    def _begin(self) -> None:
        driver = self._connection.driver_connection
        if self.engine.dialect.name == "postgresql":
            driver.autocommit = True
            driver.execute("LISTEN affinery_jobs")
        else:
            self._commits = None

    def _listen(self, seconds: float) -> None:
        for _ in self._connection.driver_connection.notifies(timeout=seconds, stop_after=1):
            pass

    def _glance(self, until: float) -> None:
        driver = self._connection.driver_connection
        while True:
            (commits,) = driver.execute("PRAGMA data_version").fetchone()
            seen, self._commits = self._commits, commits
            if seen is not None and seen != commits:
                return
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(GLANCE_SECONDS, left))
