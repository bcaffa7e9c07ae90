"""The triggers of revision 0006: on SQLite a row also answers to its rowid, whatever its key is called.

`UPDATE … SET rowid = …` names no column, so a trigger on columns does not fire; and a row that is written
`OR REPLACE` under a taken rowid deletes the one that has it, without a word to the triggers of deletion.
PostgreSQL has neither.
"""

from __future__ import annotations

# Rows whose key is not their rowid: nothing may be written over one by its number.
NUMBERED = (
    *("edge", "series", "blob", "job", "job_task", "job_dependency", "composition_member", "metric"),
    *("figure", "alias_move", "tag"),
)
# Rows of which some columns move, but never the place.
MOVING = ("backbone", "dataset", "task", "composition", "export", "series", "job", "job_task", "tag", "note")


def sqlite() -> dict[str, str]:
    """Trigger name → CREATE TRIGGER, for SQLite."""
    made: dict[str, str] = {}

    def refuse(name: str, moment: str, table: str, when: str, words: str) -> None:
        made[name] = (
            f"CREATE TRIGGER {name} {moment} ON {table} WHEN {when} BEGIN SELECT RAISE(ABORT, '{words}'); END"
        )

    for table in NUMBERED:
        # NEW.rowid is -1 where the statement names none.
        there = f"NEW.rowid <> -1 AND EXISTS (SELECT 1 FROM {table} WHERE rowid = NEW.rowid)"
        words = f"UNIQUE: there is a {table} row in this place already and it is never replaced"
        refuse(f"{table}_no_overwrite", "BEFORE INSERT", table, there, words)
    for table in MOVING:
        words = f"a {table} row never changes its place"
        refuse(f"{table}_keeps_place", "BEFORE UPDATE", table, "NEW.rowid <> OLD.rowid", words)
    # A connection can be told to leave checks out; a trigger it cannot.
    younger = "NEW.parent >= NEW.child"
    refuse("edge_no_cycle", "BEFORE INSERT", "edge", younger, "no_cycle: a parent is older than its child")
    return made


def postgresql() -> dict[str, tuple[str, str]]:
    """None."""
    return {}
