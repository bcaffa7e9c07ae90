"""Whether the database still protects its record: its revision, its triggers, its constraints, its file."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Engine, text

from registry import guards, promises, session
from registry.findings import RESTORE, Finding

_MIGRATE = "Bring the registry up to this program's schema: affinery migrate"
_DROP = "Take it away, and look at what it has done meanwhile."


def at_head(connection: Connection) -> Iterator[Finding]:
    """The schema's revision is the one that this program knows."""
    found = list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
    if found != [session.HEAD]:
        shown = ", ".join(found) or "none"
        what = f"its schema is {shown}, and this program's is {session.HEAD}"
        known = set(found) <= set(session.KNOWN)
        mend = _MIGRATE if known else session.too_new(connection, shown).mend
        yield Finding("migrations", "registry", what, mend)


def protected(engine: Engine) -> Iterator[Finding]:
    """Every trigger, constraint and index is there and says what it should; a SQLite file is whole."""
    dialect = engine.dialect.name
    with engine.connect() as connection:
        there, words = guards.present(connection), guards.found(connection)
        detours = guards.detours(connection)
    for name, digest in sorted(guards.EXPECTED[dialect].items()):
        if name not in there:
            yield Finding("triggers", f"trigger {name}", "it is gone or switched off", RESTORE)
        elif words[name] != digest:
            yield Finding("triggers", f"trigger {name}", "it was changed: it says something else", RESTORE)
    for name in sorted(words.keys() - guards.EXPECTED[dialect].keys()):
        yield Finding(
            "triggers", f"trigger {name}", "no Affinery made it: nobody knows what it changes", _DROP
        )
    for name in detours:
        yield Finding("triggers", name, "statements go round the triggers by it", _DROP)
    for what, name, table, wrong in promises.broken(engine):
        yield Finding("constraints", f"{what} {name} of table {table}", wrong, RESTORE)
    if dialect == "sqlite":
        with engine.connect() as connection:
            for line in connection.exec_driver_sql("PRAGMA integrity_check").scalars():
                if line != "ok":
                    yield Finding("database file", "registry", str(line), RESTORE)
