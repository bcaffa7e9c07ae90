"""The triggers of revision 0007: on PostgreSQL a name is changed alone, while nobody gives or changes names.

Without it, two who rename one thing at once both wrote their row, of which one changed nothing; and who took
a name in the moment in which it was being given up got it. On SQLite writers take turns.
"""

from __future__ import annotations

_TURN = 4702113
# They sort before the other triggers of their tables, which then see what those before them committed.
ALONE, BESIDE = ("renaming",), ("series", "task")


def sqlite() -> dict[str, str]:
    """None."""
    return {}


def postgresql() -> dict[str, tuple[str, str]]:
    """Trigger name → (its function, CREATE TRIGGER), for PostgreSQL."""
    made = {}
    for table in (*ALONE, *BESIDE):
        how = "pg_advisory_xact_lock" if table in ALONE else "pg_advisory_xact_lock_shared"
        name = f"{table}_by_turns"
        function = (
            f"CREATE FUNCTION affinery_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ "
            f"BEGIN PERFORM {how}({_TURN}); RETURN NEW; END $$"
        )
        create = (
            f"CREATE TRIGGER {name} BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION affinery_{name}()"
        )
        made[name] = (function, create)
    return made
