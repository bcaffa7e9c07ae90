"""Whether the database still protects its record: its revision, its triggers, its constraints, its file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from sqlalchemy import Connection, Table, text

from registry import guards, session
from registry.findings import RESTORE, Finding
from registry.models import Base

_MIGRATE = "Bring the registry up to this program's schema: affinery migrate"
# What only PostgreSQL has, and its migrations alone speak of.
_EXCLUSIONS = {"class_block": ("ex_class_block_no_overlap",)}
_CONSTRAINTS = text(
    "SELECT relname, conname FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid "
    "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE nspname = current_schema() AND convalidated"
)
_INDEXES = text("SELECT tablename, indexname FROM pg_indexes WHERE schemaname = current_schema()")
_SQLITE = text("SELECT tbl_name, name, coalesce(sql, '') FROM sqlite_master WHERE type IN ('table', 'index')")
_LONGEST_NAME = 63  # where PostgreSQL cuts


def at_head(connection: Connection) -> Iterator[Finding]:
    """The schema's revision is the one that this program knows."""
    found = list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
    if found != [session.HEAD]:
        shown = ", ".join(found) or "none"
        what = f"its schema is {shown}, and this program's is {session.HEAD}"
        yield Finding("migrations", "registry", what, _MIGRATE)


def protected(connection: Connection) -> Iterator[Finding]:
    """Every trigger, constraint and index is there and switched on; a SQLite file is whole."""
    dialect = connection.dialect.name
    for name in sorted(guards.EXPECTED[dialect] - guards.present(connection)):
        yield Finding("triggers", f"trigger {name}", "it is gone or switched off", RESTORE)
    constraints, indexes = _declared(dialect)
    there = _names_there(connection, dialect)
    for word, wanted in (("constraint", constraints), ("index", indexes)):
        for table, name in sorted(wanted):
            if (table, name[:_LONGEST_NAME]) not in there:
                yield Finding("constraints", f"{word} {name} of table {table}", "it is gone", RESTORE)
    if dialect == "sqlite":
        for line in connection.exec_driver_sql("PRAGMA integrity_check").scalars():
            if line != "ok":
                yield Finding("database file", "registry", str(line), RESTORE)


def _declared(dialect: str) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    tables = Base.metadata.tables.values()
    constraints = {
        (table.name, str(each.name))
        for table in tables
        for each in table.constraints
        if dialect != "sqlite" or each is not table.primary_key or not _counts_by_itself(table)
    }
    if dialect == "postgresql":
        constraints |= {(table, name) for table, names in _EXCLUSIONS.items() for name in names}
    return constraints, {(table.name, str(each.name)) for table in tables for each in table.indexes}


def _counts_by_itself(table: Table) -> bool:
    """SQLite's keys of this kind are written into the table without a name."""
    return bool(table.dialect_options["sqlite"]["autoincrement"])


def _names_there(connection: Connection, dialect: str) -> set[tuple[str, str]]:
    if dialect == "postgresql":
        rows = [*connection.execute(_CONSTRAINTS), *connection.execute(_INDEXES)]
        return {(str(table), str(name)) for table, name in rows}
    found: set[tuple[str, str]] = set()
    for table, name, made in connection.execute(_SQLITE):
        found.add((table, name[:_LONGEST_NAME]))
        words = made.replace('"', " ").split()
        found |= {
            (table, following[:_LONGEST_NAME])
            for word, following in pairwise(words)
            if word.upper() == "CONSTRAINT"
        }
    return found
