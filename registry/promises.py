"""What the tables promise, said by the database itself: columns, checks, keys and indexes, word by word.

The words are compared with those of tables that are made beside it out of the models and never kept: in
memory for SQLite; on PostgreSQL as temporary tables of a transaction that is taken back. So each server says
both in its own spelling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, Inspector, MetaData, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from registry.models import Base

Promises = dict[tuple[str, str, str], str]  # (what, its name, its table) → its words

# Only PostgreSQL has it, and its migration alone speaks of it.
_NO_OVERLAP = (
    "ALTER TABLE class_block ADD CONSTRAINT ex_class_block_no_overlap EXCLUDE USING gist "
    "(int8range(backbone_id * 2147483648 + lo, backbone_id * 2147483648 + hi) WITH &&)"
)
_EXCLUSIONS = text(
    "SELECT conname, relname, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint "
    "JOIN pg_class ON pg_class.oid = conrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE contype = 'x' AND nspname = :schema"
)


def broken(engine: Engine) -> Iterator[tuple[str, str, str, str]]:
    """(what, name, table, what is wrong) of each promise that this database does not make as it should."""
    with engine.connect() as connection:
        made = _of_tables(connection, None)
        wanted = _in_memory() if engine.dialect.name == "sqlite" else _beside(connection)
        connection.rollback()
    for key in sorted(wanted):
        if key not in made:
            yield (*key, "it is gone")
        elif made[key] != wanted[key]:
            yield (*key, f"it says {made[key][:200]!r}, and should say {wanted[key][:200]!r}")


def _in_memory() -> Promises:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            Base.metadata.create_all(connection, checkfirst=False)
            return _of_tables(connection, None)
    finally:
        engine.dispose()


def _beside(connection: Connection) -> Promises:
    """Nothing where this user may make no temporary table: then only what is gone by name is found."""
    passing = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.tables.values():
        copy = table.to_metadata(passing)
        copy._prefixes = ["TEMPORARY"]
        for index in copy.indexes:
            index.dialect_options["postgresql"]["where"] = index.dialect_options["sqlite"]["where"]
    try:
        passing.create_all(connection, checkfirst=False)
        connection.execute(text(_NO_OVERLAP))
    except DBAPIError:
        return {}
    name = connection.scalar(text("SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()"))
    return _of_tables(connection, str(name))


def _of_tables(connection: Connection, schema: str | None) -> Promises:
    inspector, found = inspect(connection), Promises()
    for table in Base.metadata.tables:
        if inspector.has_table(table, schema=schema):
            found |= _of_table(inspector, table, schema)
    if connection.dialect.name == "postgresql":
        where = schema or connection.scalar(text("SELECT current_schema()"))
        for name, table, words in connection.execute(_EXCLUSIONS, {"schema": where}):
            found["constraint", name, table] = words
    return found


def _of_table(inspector: Inspector, table: str, schema: str | None) -> Promises:
    found = Promises()
    for column in inspector.get_columns(table, schema=schema):
        nullable = "NULL" if column["nullable"] else "NOT NULL"
        found["column", column["name"], table] = f"{column['type']} {nullable}"
    for check in inspector.get_check_constraints(table, schema=schema):
        found["constraint", str(check["name"]), table] = f"CHECK {_even(check['sqltext'])}"
    key: Any = inspector.get_pk_constraint(table, schema=schema)
    found["constraint", f"pk_{table}", table] = f"PRIMARY KEY {', '.join(key['constrained_columns'])}"
    for unique in inspector.get_unique_constraints(table, schema=schema):
        found["constraint", str(unique["name"]), table] = f"UNIQUE {', '.join(unique['column_names'])}"
    for foreign in inspector.get_foreign_keys(table, schema=schema):
        ends = ", ".join(foreign["constrained_columns"]), ", ".join(foreign["referred_columns"])
        options = " ".join(f"{name} {value}" for name, value in sorted(foreign.get("options", {}).items()))
        words = f"FOREIGN KEY {ends[0]} REFERENCES {foreign['referred_table']} ({ends[1]}) {options}"
        # SQLite forgets the name of a key that was added with its column; all are named alike.
        found["constraint", f"fk_{table}_{'_'.join(foreign['constrained_columns'])}", table] = words
    for index in inspector.get_indexes(table, schema=schema):
        columns = ", ".join(str(each) for each in index.get("expressions", index["column_names"]))
        told = index.get("dialect_options", {})
        only = next((str(value) for name, value in told.items() if name.endswith("_where")), "")
        words = f"{'UNIQUE ' if index['unique'] else ''}INDEX {columns} {_even(only)}"
        found["index", str(index["name"]), table] = words
    return found


def _even(words: str) -> str:
    return " ".join(words.replace('"', "").split())
