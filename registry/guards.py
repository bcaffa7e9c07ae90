"""The triggers without which the registry could be made to lie: their names at every start, their words at a
verification.

`guards.json` holds the digest of each one's words; `python -m migrations.guards` writes it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sqlalchemy import Connection

FILE = Path(__file__).with_name("guards.json")
EXPECTED: dict[str, dict[str, str]] = json.loads(FILE.read_bytes())

_PRESENT = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": (
        "SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
        "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND nspname = current_schema()"
    ),
}
# A function that looks where its caller says could be shown other tables, such as temporary ones.
_PATH = (
    "CASE WHEN proconfig = ARRAY['search_path=' || quote_ident(current_schema()) || ', pg_temp'] THEN '' "
    "ELSE ' looking in ' || coalesce(proconfig::text, 'its caller''s path') END"
)
_WORDS = {
    "sqlite": "SELECT name, sql, '' FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": _PRESENT["postgresql"]
    .replace("SELECT tgname", f"SELECT tgname, pg_get_triggerdef(pg_trigger.oid), prosrc || {_PATH}")
    .replace("WHERE", "JOIN pg_proc ON pg_proc.oid = tgfoid WHERE"),
}
# How PostgreSQL spells a trigger's own words beyond what was written.
_SPELT = ("(", ")", '"', "::text", "public.")
# What goes round triggers on PostgreSQL: rules that rewrite statements, sessions that play a replica, tables
# whose rows are read with another's, references that are switched off, rows that are hidden.
_DETOURS = (
    "SELECT 'rule ' || rulename || ' of table ' || tablename FROM pg_rules "
    "WHERE schemaname = current_schema() "
    "UNION ALL SELECT 'setting session_replication_role' "
    "WHERE current_setting('session_replication_role') <> 'origin' "
    "UNION ALL SELECT 'table ' || heir.relname || ' inherits ' || pg_class.relname FROM pg_inherits "
    "JOIN pg_class ON pg_class.oid = inhparent JOIN pg_class AS heir ON heir.oid = inhrelid "
    "JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace "
    "WHERE nspname = current_schema() AND pg_class.relkind = 'r' "
    "UNION ALL SELECT DISTINCT 'references of table ' || relname || ', switched off' FROM pg_trigger "
    "JOIN pg_class ON pg_class.oid = tgrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE tgisinternal AND tgenabled NOT IN ('O', 'A') AND nspname = current_schema() "
    "UNION ALL SELECT 'row security of table ' || relname FROM pg_class "
    "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
    "WHERE relrowsecurity AND nspname = current_schema()"
)


def present(connection: Connection) -> frozenset[str]:
    """The names of the triggers that this database has, and that are switched on."""
    return frozenset(connection.exec_driver_sql(_PRESENT[connection.dialect.name]).scalars())


def found(connection: Connection) -> dict[str, str]:
    """By name, the digest of each trigger's words in this database."""
    rows = connection.exec_driver_sql(_WORDS[connection.dialect.name])
    return {name: digest(trigger, function) for name, trigger, function in rows}


def detours(connection: Connection) -> list[str]:
    """What lets statements past the triggers of this database, for whoever connects as we do."""
    if connection.dialect.name == "sqlite":
        return []
    return sorted(connection.exec_driver_sql(_DETOURS).scalars())


def digest(trigger: str, function: str = "") -> str:
    """Of a trigger's words and those of its function, however they are set."""
    said = "".join(trigger.lower().split())
    for spelling in _SPELT:
        said = said.replace(spelling, "")
    words = f"{said} {' '.join(function.split())}"
    return hashlib.sha256(words.encode()).hexdigest()[:16]
