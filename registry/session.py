"""Connections and transactions, alike on SQLite and PostgreSQL.

engine = connect("sqlite:////path/registry.db")
check_schema(engine)
Sessions = sessions(engine)
with Sessions.begin() as session: ...     # one use case, committed whole or not at all
with Sessions.read() as session: ...      # a consistent view; cannot write
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidatePoolError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session, sessionmaker

from affinery.version import __version__
from registry import asking, errors, guards
from registry.digests import canonical
from registry.turns import Turns

HEAD = "0013"
KNOWN = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
    "0010",
    "0011",
    "0012",
    "0013",
)
BUSY_SECONDS = 30
RESTED_SECONDS = 1.0
_READ = "affinery_read"


def connect(url: str, *, create: bool = False, patience_seconds: int = BUSY_SECONDS) -> Engine:
    """An engine for a sqlite: or postgresql: URL.

    A missing SQLite file is made only with create, as the migrations do; otherwise the first use raises
    RegistryMissing, and nothing is created by looking. patience_seconds: how long a server that says nothing
    is waited for.
    """
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite(parsed, create)
    if backend == "postgresql":
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            json_serializer=_dumps,
            connect_args={
                "options": f"-c lock_timeout={BUSY_SECONDS * 1000}",
                "connect_timeout": patience_seconds,
            },
        )
        _try_rested(engine)
        return engine
    raise errors.RegistryUnreachable(url, f"{backend!r} is neither sqlite nor postgresql")


def _try_rested(engine: Engine) -> None:
    """A connection that lay idle is tried before it is used: its server may be another by now."""

    @event.listens_for(engine, "checkin")
    def rests(_: Any, record: Any) -> None:
        record.info["since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def tried(connection: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("since", math.inf) > RESTED_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error


def _dumps(value: Any) -> str:
    return canonical(value).decode()


def _sqlite(url: URL, create: bool) -> Engine:
    path = Path(url.database).absolute() if url.database and url.database != ":memory:" else None
    if path is None:
        raise errors.RegistryUnreachable(
            str(url), "a registry lives in a file; write sqlite:///path/registry.db"
        )
    engine = create_engine(
        f"sqlite:///{path}", creator=lambda: _open_sqlite(path, create), json_serializer=_dumps
    )
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _open_sqlite(path: Path, create: bool) -> sqlite3.Connection:
    if not path.exists():
        _check_creatable(path, create)
    writable = all(os.access(each, os.W_OK) for each in (path, path.parent) if each.exists())
    mode = ("rwc" if create else "rw") if writable else "ro"
    if not writable and not path.with_name(path.name + "-wal").exists():
        # The folder takes no -shm file, and no writer has left a log: the file alone is the whole truth.
        mode += "&immutable=1"
    # isolation_level=None: SQLAlchemy's begin event below says BEGIN; the driver would say it late or never.
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if writable:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Without this, INSERT OR REPLACE deletes rows behind the back of the delete triggers.
        connection.execute("PRAGMA recursive_triggers = ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _check_creatable(path: Path, create: bool) -> None:
    if not create:
        raise errors.RegistryMissing(str(path))
    if not path.parent.is_dir():
        raise errors.RegistryUnreachable(str(path), "its folder does not exist")
    if not os.access(path.parent, os.W_OK):
        raise errors.RegistryReadOnly(str(path))


def _begin_sqlite(connection: Connection) -> None:
    reading = bool(connection.get_execution_options().get(_READ))
    if connection.info.get(_READ) is not reading:  # it is the connection's until it is said otherwise
        connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if reading else 'OFF'}")
        connection.info[_READ] = reading
    # Reading first and writing later fails at once as locked, whatever the time-out: writers say so first.
    # To the driver itself: it is said so often that the way there counts.
    driver: Any = connection.connection.dbapi_connection
    driver.execute("BEGIN" if reading else "BEGIN IMMEDIATE")


class Sessions:
    """Where transactions begin: once a use case, at the edge. Inner functions never commit."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._where = where(engine)
        reader = engine.execution_options(**{_READ: True})
        if engine.dialect.name == "postgresql":
            reader = reader.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        alone = engine.dialect.name == "postgresql"
        self._alone = engine.execution_options(isolation_level="AUTOCOMMIT") if alone else engine
        self._write = sessionmaker(engine, expire_on_commit=False)
        self._read = sessionmaker(reader, expire_on_commit=False)
        self._writers = Turns()

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A writing transaction: committed when the block ends, rolled back when it raises."""
        with asking.noted() as note, self._turn(), speaking(self._where), self._write.begin() as session:
            yield session
            note(session)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A reading transaction over one consistent view."""
        with speaking(self._where), self._read() as session:
            yield session

    @contextmanager
    def at_once(self) -> Iterator[Connection]:
        """For one statement that is all there is to a use case: on PostgreSQL one trip, not three."""
        with self._turn(), speaking(self._where), self._alone.begin() as connection:
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Those who write to SQLite wait here: it has one writer, and lets them in as luck has it."""
        if self.engine.dialect.name != "sqlite":
            yield
            return
        with self._writers.turn(BUSY_SECONDS) as came:
            if not came:
                raise errors.RegistryBusy(self._where, BUSY_SECONDS)
            yield


def sessions(engine: Engine) -> Sessions:
    """The registry's transactions on this engine."""
    return Sessions(engine)


def where(engine: Engine) -> str:
    """The registry's address without its password: the path of a SQLite file, else the URL."""
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    return engine.url.render_as_string(hide_password=True)


@contextmanager
def speaking(address: str) -> Iterator[None]:
    """Turn a driver's errors into ours: what happened, why, how to mend it."""
    try:
        yield
    except IntegrityError as error:
        raise errors.Refused(_words(error)) from error
    except DBAPIError as error:
        ours = _operational(address, error)
        if ours is None:
            raise
        raise ours from error
    except sqlite3.Error as error:
        ours = _sqlite_error(address, error)
        if ours is None:
            raise
        raise ours from error


def _words(error: DBAPIError) -> str:
    return str(error.orig).splitlines()[0].rstrip(".")


def _operational(address: str, error: DBAPIError) -> errors.RegistryError | None:
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_error(address, error.orig)
    state = getattr(error.orig, "sqlstate", None) or ""
    if state in ("55P03", "40P01", "40001"):
        return errors.RegistryBusy(address, BUSY_SECONDS)
    if state == "25006":
        return errors.RegistryReadOnly(address)
    if state == "53100":
        return errors.RegistryFull(address)
    if state[:2] in ("08", "57", "28", "3D") or (not state and isinstance(error, OperationalError)):
        return errors.RegistryUnreachable(address, _words(error))
    return None


def _sqlite_error(address: str, error: sqlite3.Error) -> errors.RegistryError | None:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_READONLY"):
        return errors.RegistryReadOnly(address)
    if name == "SQLITE_FULL" or name.startswith("SQLITE_IOERR_WRITE"):
        return errors.RegistryFull(address)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return errors.RegistryBusy(address, BUSY_SECONDS)
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return errors.RegistryDamaged(address, f"its file is not a whole SQLite database ({error})")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PERM", "SQLITE_AUTH")):
        return errors.RegistryUnreachable(address, str(error))
    return None


def check_schema(engine: Engine) -> None:
    """Refuse a registry that this program does not know, or that cannot guard its record.

    Raises RegistryMissing, RegistryOutdated, RegistryTooNew or RegistryDamaged.
    """
    with speaking(where(engine)), engine.execution_options(**{_READ: True}).connect() as connection:
        found = _revision(connection)
        if found is None:
            raise errors.RegistryMissing(where(engine))
        if found not in KNOWN:
            raise too_new(connection, found)
        if found != HEAD:
            raise errors.RegistryOutdated(found, HEAD)
        missing = sorted(guards.EXPECTED[engine.dialect.name].keys() - guards.present(connection))
        if missing:
            reason = f"{len(missing)} of the triggers that guard its record are gone, {missing[0]!r} first"
            raise errors.RegistryDamaged(where(engine), reason)


def _revision(connection: Connection) -> str | None:
    try:
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except (OperationalError, ProgrammingError) as error:
        if "no such table" in str(error.orig) or getattr(error.orig, "sqlstate", "") == "42P01":
            return None
        raise
    return None if revision is None else str(revision)


def too_new(connection: Connection, found: str) -> errors.RegistryTooNew:
    """What is said of a registry with this schema, which this program does not know."""
    made_by = _made_by(connection)
    # Between two releases a schema may be newer and the version the same: to name it would help nobody.
    return errors.RegistryTooNew(found, HEAD, "" if made_by == __version__ else made_by)


def _made_by(connection: Connection) -> str:
    from registry.models import RegistryInfo

    query = select(RegistryInfo.value).where(RegistryInfo.key == "affinery_version")
    try:
        return connection.execute(query).scalar() or ""
    except (OperationalError, ProgrammingError):
        return ""  # a schema so new that even this table is gone: the message then names no version
