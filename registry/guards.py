"""The triggers without which the registry could be made to lie, by name; checked at every start."""

from __future__ import annotations

from sqlalchemy import Connection

_WRITTEN_ONCE = (
    *("adapter", "backbone", "certificate", "class_block", "composition", "composition_member", "dataset"),
    *("edge", "evaluation", "event", "export", "job", "job_task", "node", "run", "series", "task"),
)
_DETAILS = (
    *("adapter", "backbone", "certificate", "composition", "dataset", "evaluation", "export", "run", "task"),
)
_APPENDED = ("alias_move", "figure", "metric", "renaming")
_LABELS = ("note", "tag")
_NAMED = ("backbone", "composition", "dataset", "export", "series", "task")

_BOTH = frozenset(
    {f"{table}_no_{verb}" for table in _WRITTEN_ONCE for verb in ("update", "delete")}
    | {f"{table}_kind" for table in _DETAILS}
    | {f"{table}_edges" for table in (*_DETAILS, "composition_member")}
    | {f"{table}_numbered" for table in ("adapter", "backbone", "composition", "dataset", "export")}
    | {"adapter_fence", "blob_no_update", "class_block_next", "composition_member_sealed", "edge_sealed"}
    | {"job_fence", "job_live", "job_task_live_insert", "job_task_live_update"}
    | {"series_counts_up", "task_counts_up"}
    | {f"{table}_no_{verb}" for table in _APPENDED for verb in ("update", "delete")}
    | {"alias_move_away", "alias_move_event", "alias_move_next", "adapter_metrics", "metric_true"}
    | {f"{table}_named" for table in _NAMED}
    | {f"renaming_{each}" for each in ("done", "held", "kind", "of", "origin", "past", "to")}
    | {"series_new_name", "task_new_name", "task_successor", "adapter_dataset"}
    | {f"job_task_{each}" for each in ("begins", "dataset", "moved")}
    | {"evaluation_fence", "evaluation_figures", "evaluation_subjects", "figure_true"}
    | {"job_dependency_no_cycle", "job_dependency_no_update"}
    | {f"{table}_{each}" for table in _LABELS for each in ("subject", "no_move", "set", "changed", "removed")}
)

EXPECTED: dict[str, frozenset[str]] = {
    # A bare SQLite connection has foreign keys off and lets REPLACE go round triggers: more is guarded there.
    "sqlite": _BOTH
    | {f"{table}_no_replace" for table in (*_WRITTEN_ONCE, *_APPENDED, *_LABELS, "blob")}
    | {"adapter_backbone", "blob_in_use", "composition_member_backbone", "edge_ends", "task_block"}
    | {"alias_move_target", "job_task_one_insert", "job_task_one_update"},
    "postgresql": _BOTH | {f"{table}_no_truncate" for table in (*_WRITTEN_ONCE, *_APPENDED, *_LABELS)},
}

_PRESENT = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": (
        "SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
        "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE NOT tgisinternal AND tgenabled <> 'D' AND nspname = current_schema()"
    ),
}


def present(connection: Connection) -> frozenset[str]:
    """The names of the triggers that this database has, and that are switched on."""
    return frozenset(connection.exec_driver_sql(_PRESENT[connection.dialect.name]).scalars())
