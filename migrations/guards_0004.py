"""The triggers of revision 0004, in place of those of the first: a paused job still holds its tasks.

What a job is asked to do is its payload, and never changes. This file belongs to its revision and never
changes either; a later revision brings its own.
"""

from __future__ import annotations

FIXED = (
    "id, number, kind, strategy, payload, submitted_by, backbone_id, schedule_id, created_at, idempotency_key"
)
KEYS = ("id", "number", "idempotency_key")
LIVE = "IN ('queued', 'running', 'paused')"

_UNCHANGEABLE = "a published job row is never changed"
_UNDELETABLE = "a published job row is never deleted"
_TAKEN = "UNIQUE: there is such a job row already and it is never replaced"
_FENCE = "a job's fence never falls"
_FOLLOWS = "whether a job is live follows its state"


def sqlite() -> dict[str, str]:
    """Trigger name → CREATE TRIGGER: those of the table job, which is written anew, and two of job_task."""
    made: dict[str, str] = {}

    def refuse(name: str, moment: str, table: str, when: str, words: str) -> None:
        condition = f" WHEN {when}" if when else ""
        words = words.replace("'", "''")
        made[name] = (
            f"CREATE TRIGGER {name} {moment} ON {table}{condition} BEGIN SELECT RAISE(ABORT, '{words}'); END"
        )

    there = " OR ".join(f"EXISTS (SELECT 1 FROM job WHERE {key} = NEW.{key})" for key in KEYS)
    refuse("job_no_update", f"BEFORE UPDATE OF {FIXED}", "job", "", _UNCHANGEABLE)
    refuse("job_no_delete", "BEFORE DELETE", "job", "", _UNDELETABLE)
    refuse("job_no_replace", "BEFORE INSERT", "job", there, _TAKEN)
    refuse("job_fence", "BEFORE UPDATE OF fence", "job", "NEW.fence < OLD.fence", _FENCE)
    made["job_live"] = (
        f"CREATE TRIGGER job_live AFTER UPDATE OF state ON job WHEN OLD.state <> NEW.state BEGIN "
        f"UPDATE job_task SET live = (NEW.state {LIVE}) WHERE job_id = NEW.id "
        f"AND live <> (NEW.state {LIVE}); END"
    )
    untrue = f"NEW.live IS NOT (SELECT state {LIVE} FROM job WHERE id = NEW.job_id)"
    refuse("job_task_live_insert", "BEFORE INSERT", "job_task", untrue, _FOLLOWS)
    refuse("job_task_live_update", "BEFORE UPDATE OF live", "job_task", untrue, _FOLLOWS)
    return made


def postgresql() -> dict[str, tuple[str, str]]:
    """Trigger name → (its function, CREATE TRIGGER), for those that change."""
    made: dict[str, tuple[str, str]] = {}

    def trigger(name: str, moment: str, table: str, body: str) -> None:
        function = (
            f"CREATE FUNCTION affinery_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} "
            "RETURN NEW; END $$"
        )
        made[name] = (
            function,
            f"CREATE TRIGGER {name} {moment} ON {table} FOR EACH ROW EXECUTE FUNCTION affinery_{name}()",
        )

    def refusal(words: str) -> str:
        return f"RAISE EXCEPTION '{words}' USING ERRCODE = 'integrity_constraint_violation';"

    trigger("job_no_update", f"BEFORE UPDATE OF {FIXED}", "job", refusal(_UNCHANGEABLE))
    live = (
        f"IF OLD.state <> NEW.state THEN UPDATE job_task SET live = (NEW.state {LIVE}) "
        f"WHERE job_id = NEW.id AND live <> (NEW.state {LIVE}); END IF;"
    )
    trigger("job_live", "AFTER UPDATE OF state", "job", live)
    untrue = f"NEW.live IS DISTINCT FROM (SELECT state {LIVE} FROM job WHERE id = NEW.job_id)"
    for moment, name in (
        ("BEFORE INSERT", "job_task_live_insert"),
        ("BEFORE UPDATE OF live", "job_task_live_update"),
    ):
        trigger(name, moment, "job_task", f"IF {untrue} THEN {refusal(_FOLLOWS)} END IF;")
    return made
