"""The database: whether it answers, its schema, its guards word by word, its clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from affinery_app.doctor.check import FAIL, OK, WARN, Check

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from affinery_app.wiring import Workspace

TOLERATED = timedelta(seconds=5)
REACH_SECONDS = 2


def check(space: Workspace) -> Iterator[Check]:
    """Three lines, or one where nothing answers."""
    from affinery.errors import AffineryError
    from registry.session import HEAD, where

    try:
        with reading(space) as session:
            told = where(session.get_bind().engine)
            yield Check("registry", OK, f"{told} answers; its schema is {HEAD}, the newest")
            yield _guarded(session.connection())
            yield _clock(session.connection())
    except AffineryError as error:
        yield Check("registry", FAIL, str(error))


@contextmanager
def reading(space: Workspace) -> Iterator[Session]:
    """Reads of the registry by somebody who waits for nobody. Raises what `check_schema` raises."""
    from registry.session import check_schema, sessions

    engine = space.unchecked_engine(patience_seconds=REACH_SECONDS)
    try:
        check_schema(engine)
        with sessions(engine).read() as session:
            yield session
    finally:
        engine.dispose()


def _guarded(connection: Connection) -> Check:
    from registry import guards

    found, expected = guards.found(connection), guards.EXPECTED[connection.dialect.name]
    changed = sorted(name for name, words in expected.items() if found.get(name) != words)
    past = guards.detours(connection)
    if changed or past:
        told = ", ".join([*changed, *past])
        mend = "restore the database from a backup taken before the change; affinery verify tells what it hid"
        return Check("guards", FAIL, f"not as they were written: {told}", mend)
    return Check("guards", OK, f"{len(expected)} triggers are as they were written")


def _clock(connection: Connection) -> Check:
    from sqlalchemy import select

    from orchestration.queue import clock

    if connection.dialect.name == "sqlite":
        return Check("clock", OK, "the registry's clock is this machine's")
    before = datetime.now(UTC)
    theirs = connection.execute(select(clock.now())).scalar_one()
    ours = before + (datetime.now(UTC) - before) / 2
    apart = abs(theirs - ours)
    told = f"{apart.total_seconds():.2f} s from the registry's"
    if apart <= TOLERATED:
        return Check("clock", OK, told)
    return Check("clock", WARN, told, "set both machines' clocks by NTP (timedatectl set-ntp true)")
