"""The triggers of revision 0001: what the database itself refuses, whoever asks.

This file belongs to its revision and never changes; a later revision brings its own. Every refusal is an
integrity error whose text says what was refused. On SQLite the guards also hold where a connection has
foreign keys and recursive triggers off, as a bare one has.
"""

from __future__ import annotations

# Rows that are written once: no UPDATE, no DELETE, and (SQLite) no INSERT OR REPLACE over any of these keys.
IMMUTABLE: dict[str, tuple[str, ...]] = {
    "node": ("id",),
    "edge": ("child, parent, role",),
    "event": ("id",),
    "class_block": ("owner_id", "backbone_id, lo"),
    "backbone": ("node_id", "name, version"),
    "dataset": ("node_id", "name, version"),
    "run": ("node_id", "job_id, task_id, mlflow_run_id"),
    "adapter": ("node_id", "task_id, version"),
    "certificate": ("node_id",),
    "composition": ("node_id", "name, version"),
    "composition_member": ("composition_id, pos", "composition_id, task_id"),
    "export": ("node_id", "name, version"),
}

# Rows of which some columns move: (columns that never change, keys).
MOVING: dict[str, tuple[str, tuple[str, ...]]] = {
    "task": ("node_id, name, backbone_id, dataset_id, kind, config, classes, lo, hi", ("node_id", "name")),
    "series": ("kind, name", ("kind, name",)),
    "job": ("id, kind, strategy, recipe, created_at, idempotency_key", ("id", "idempotency_key")),
    "job_task": ("job_id, task_id", ("job_id, task_id",)),
}

# The details of a node, and the edges without which they would contradict its lineage.
DETAILS: dict[str, tuple[tuple[str, str], ...]] = {
    "backbone": (("parent_id", "parent"),),
    "dataset": (),
    "task": (("backbone_id", "backbone"), ("dataset_id", "dataset")),
    "run": (("task_id", "task"),),
    "adapter": (
        ("task_id", "task"),
        ("backbone_id", "backbone"),
        ("dataset_id", "dataset"),
        ("run_id", "run"),
        ("warm_start_id", "warm-start"),
    ),
    "certificate": (("adapter_id", "adapter"),),
    "composition": (("backbone_id", "backbone"),),
    "export": (("composition_id", "composition"),),
}

COUNTERS = ("task", "series")
LIVE = "IN ('queued', 'running')"


def sqlite() -> dict[str, str]:
    """Trigger name → CREATE TRIGGER, for SQLite."""
    made: dict[str, str] = {}

    def refuse(name: str, moment: str, table: str, when: str, words: str) -> None:
        condition = f" WHEN {when}" if when else ""
        words = words.replace("'", "''")
        made[name] = (
            f"CREATE TRIGGER {name} {moment} ON {table}{condition} BEGIN SELECT RAISE(ABORT, '{words}'); END"
        )

    for table, keys in IMMUTABLE.items():
        refuse(f"{table}_no_update", "BEFORE UPDATE", table, "", _unchangeable(table))
        refuse(f"{table}_no_delete", "BEFORE DELETE", table, "", _undeletable(table))
        refuse(f"{table}_no_replace", "BEFORE INSERT", table, _taken(table, keys), _taken_words(table))
    for table, (columns, keys) in MOVING.items():
        refuse(f"{table}_no_update", f"BEFORE UPDATE OF {columns}", table, "", _unchangeable(table))
        refuse(f"{table}_no_delete", "BEFORE DELETE", table, "", _undeletable(table))
        refuse(f"{table}_no_replace", "BEFORE INSERT", table, _taken(table, keys), _taken_words(table))
    refuse("blob_no_update", "BEFORE UPDATE", "blob", "", _unchangeable("blob"))
    refuse("blob_no_replace", "BEFORE INSERT", "blob", _taken("blob", ("digest",)), _taken_words("blob"))
    in_use = " OR ".join(
        f"EXISTS (SELECT 1 FROM {table} WHERE {column} = OLD.digest)"
        for table, column in (
            ("backbone", "blob_digest"),
            ("adapter", "blob_digest"),
            ("adapter", "golden_blob"),
        )
    )
    refuse("blob_in_use", "BEFORE DELETE", "blob", in_use, "a published row needs this blob")
    for table in COUNTERS:
        moment = "BEFORE UPDATE OF next_version"
        refuse(f"{table}_counts_up", moment, table, "NEW.next_version <> OLD.next_version + 1", _counting())

    for table, edges in DETAILS.items():
        kind = f"(SELECT kind FROM node WHERE id = NEW.node_id) IS NOT '{table}'"
        refuse(f"{table}_kind", "BEFORE INSERT", table, kind, f"this node is not a {table}")
        if edges:
            lacking = " OR ".join(_lacks_edge(column, role) for column, role in edges)
            refuse(f"{table}_edges", "BEFORE INSERT", table, lacking, _edges_words(table))
    ends = "(SELECT count(*) FROM node WHERE id IN (NEW.parent, NEW.child)) <> 2"
    refuse("edge_ends", "BEFORE INSERT", "edge", ends, "an edge joins two recorded nodes")
    published = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE node_id = NEW.child)" for table in DETAILS)
    refuse("edge_sealed", "BEFORE INSERT", "edge", published, _sealed())

    last = "(SELECT coalesce(max(hi), 0) FROM class_block WHERE backbone_id = NEW.backbone_id)"
    refuse("class_block_next", "BEFORE INSERT", "class_block", f"NEW.lo <> {last}", _block_words())
    refuse("backbone_numbered", "BEFORE INSERT", "backbone", _not_given("backbone"), _number_words())
    refuse("dataset_numbered", "BEFORE INSERT", "dataset", _not_given("dataset"), _number_words())
    refuse("composition_numbered", "BEFORE INSERT", "composition", _not_given("composition"), _number_words())
    refuse("export_numbered", "BEFORE INSERT", "export", _not_given("export"), _number_words())
    number = "NEW.version IS NOT (SELECT next_version - 1 FROM task WHERE node_id = NEW.task_id)"
    refuse("adapter_numbered", "BEFORE INSERT", "adapter", number, _number_words())
    own = "NEW.backbone_id IS NOT (SELECT backbone_id FROM task WHERE node_id = NEW.task_id)"
    refuse(
        "adapter_backbone", "BEFORE INSERT", "adapter", own, "an adapter belongs to the backbone of its task"
    )
    block = (
        "NOT EXISTS (SELECT 1 FROM class_block WHERE owner_id = NEW.node_id "
        "AND backbone_id = NEW.backbone_id AND lo = NEW.lo AND hi = NEW.hi)"
    )
    refuse("task_block", "BEFORE INSERT", "task", block, "a task needs its class block, written before it")
    fenced = (
        "NEW.job_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM job JOIN job_task ON job_task.job_id = job.id "
        "WHERE job.id = NEW.job_id AND job_task.task_id = NEW.task_id "
        "AND job.fence = NEW.fence AND job.state = 'running')"
    )
    refuse("adapter_fence", "BEFORE INSERT", "adapter", fenced, _fence_words())
    member = (
        "NOT EXISTS (SELECT 1 FROM adapter WHERE node_id = NEW.adapter_id AND task_id = NEW.task_id "
        "AND backbone_id = NEW.backbone_id) OR NEW.backbone_id IS NOT "
        "(SELECT backbone_id FROM composition WHERE node_id = NEW.composition_id)"
    )
    refuse("composition_member_backbone", "BEFORE INSERT", "composition_member", member, _member_words())
    edge = _lacks_edge("adapter_id", "member").replace("NEW.node_id", "NEW.composition_id")
    refuse("composition_member_edges", "BEFORE INSERT", "composition_member", edge, _edges_words("member"))
    sealed = (
        "NEW.pos <> (SELECT count(*) FROM composition_member WHERE composition_id = NEW.composition_id) "
        "OR NEW.pos > (SELECT last_pos FROM composition WHERE node_id = NEW.composition_id)"
    )
    refuse("composition_member_sealed", "BEFORE INSERT", "composition_member", sealed, _composed())

    moment = "BEFORE UPDATE OF fence"
    refuse("job_fence", moment, "job", "NEW.fence < OLD.fence", "a job's fence never falls")
    made["job_live"] = (
        f"CREATE TRIGGER job_live AFTER UPDATE OF state ON job WHEN OLD.state <> NEW.state BEGIN "
        f"UPDATE job_task SET live = (NEW.state {LIVE}) WHERE job_id = NEW.id "
        f"AND live <> (NEW.state {LIVE}); END"
    )
    untrue = f"NEW.live IS NOT (SELECT state {LIVE} FROM job WHERE id = NEW.job_id)"
    other = (
        "(NEW.live AND EXISTS (SELECT 1 FROM job_task WHERE task_id = NEW.task_id AND live "
        "AND job_id <> NEW.job_id))"
    )
    for moment, name in (
        ("BEFORE INSERT", "job_task_live_insert"),
        ("BEFORE UPDATE OF live", "job_task_live_update"),
    ):
        refuse(name, moment, "job_task", untrue, "whether a job is live follows its state")
    for moment, name in (
        ("BEFORE INSERT", "job_task_one_insert"),
        ("BEFORE UPDATE OF live", "job_task_one_update"),
    ):
        refuse(name, moment, "job_task", other, "this task already has a live job")
    return made


def postgresql() -> dict[str, tuple[str, str]]:
    """Trigger name → (its function, CREATE TRIGGER), for PostgreSQL."""
    made: dict[str, tuple[str, str]] = {}

    def trigger(name: str, moment: str, table: str, body: str, each: str = "ROW") -> None:
        function = (
            f"CREATE FUNCTION affinery_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} "
            "RETURN NEW; END $$"
        )
        create = (
            f"CREATE TRIGGER {name} {moment} ON {table} FOR EACH {each} EXECUTE FUNCTION affinery_{name}()"
        )
        made[name] = (function, create)

    def refuse(name: str, moment: str, table: str, when: str, words: str, each: str = "ROW") -> None:
        trigger(
            name, moment, table, f"IF {when} THEN {_raise(words)} END IF;" if when else _raise(words), each
        )

    for table in IMMUTABLE:
        refuse(f"{table}_no_update", "BEFORE UPDATE", table, "", _unchangeable(table))
        refuse(f"{table}_no_delete", "BEFORE DELETE", table, "", _undeletable(table))
        refuse(f"{table}_no_truncate", "BEFORE TRUNCATE", table, "", _undeletable(table), "STATEMENT")
    for table, (columns, _keys) in MOVING.items():
        refuse(f"{table}_no_update", f"BEFORE UPDATE OF {columns}", table, "", _unchangeable(table))
        refuse(f"{table}_no_delete", "BEFORE DELETE", table, "", _undeletable(table))
        refuse(f"{table}_no_truncate", "BEFORE TRUNCATE", table, "", _undeletable(table), "STATEMENT")
    refuse("blob_no_update", "BEFORE UPDATE", "blob", "", _unchangeable("blob"))
    for table in COUNTERS:
        moment = "BEFORE UPDATE OF next_version"
        refuse(f"{table}_counts_up", moment, table, "NEW.next_version <> OLD.next_version + 1", _counting())

    for table, edges in DETAILS.items():
        kind = f"(SELECT kind FROM node WHERE id = NEW.node_id) IS DISTINCT FROM '{table}'"
        refuse(f"{table}_kind", "BEFORE INSERT", table, kind, f"this node is not a {table}")
        if edges:
            lacking = " OR ".join(_lacks_edge(column, role) for column, role in edges)
            refuse(f"{table}_edges", "BEFORE INSERT", table, lacking, _edges_words(table))
    published = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE node_id = NEW.child)" for table in DETAILS)
    refuse("edge_sealed", "BEFORE INSERT", "edge", published, _sealed())

    last = "(SELECT coalesce(max(hi), 0) FROM class_block WHERE backbone_id = NEW.backbone_id)"
    refuse("class_block_next", "BEFORE INSERT", "class_block", f"NEW.lo <> {last}", _block_words())
    for table in ("backbone", "dataset", "composition", "export"):
        given = _not_given(table).replace("IS NOT (", "IS DISTINCT FROM (")
        refuse(f"{table}_numbered", "BEFORE INSERT", table, given, _number_words())
    number = "NEW.version IS DISTINCT FROM (SELECT next_version - 1 FROM task WHERE node_id = NEW.task_id)"
    refuse("adapter_numbered", "BEFORE INSERT", "adapter", number, _number_words())
    # The row lock holds off a new claim of the job until this publication is committed or gone.
    fence = (
        "IF NEW.job_id IS NOT NULL THEN PERFORM 1 FROM job WHERE id = NEW.job_id AND fence = NEW.fence "
        f"AND state = 'running' FOR NO KEY UPDATE; IF NOT FOUND THEN {_raise(_fence_words())} END IF; END IF;"
    )
    trigger("adapter_fence", "BEFORE INSERT", "adapter", fence)
    edge = _lacks_edge("adapter_id", "member").replace("NEW.node_id", "NEW.composition_id")
    refuse("composition_member_edges", "BEFORE INSERT", "composition_member", edge, _edges_words("member"))
    sealed = (
        "NEW.pos <> (SELECT count(*) FROM composition_member WHERE composition_id = NEW.composition_id) "
        "OR NEW.pos > (SELECT last_pos FROM composition WHERE node_id = NEW.composition_id)"
    )
    refuse("composition_member_sealed", "BEFORE INSERT", "composition_member", sealed, _composed())

    refuse("job_fence", "BEFORE UPDATE OF fence", "job", "NEW.fence < OLD.fence", "a job's fence never falls")
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
        refuse(name, moment, "job_task", untrue, "whether a job is live follows its state")
    return made


def _raise(words: str) -> str:
    escaped = words.replace("'", "''")
    return f"RAISE EXCEPTION '{escaped}' USING ERRCODE = 'integrity_constraint_violation';"


def _taken(table: str, keys: tuple[str, ...]) -> str:
    tests = []
    for key in keys:
        same = " AND ".join(f"{column.strip()} = NEW.{column.strip()}" for column in key.split(","))
        tests.append(f"EXISTS (SELECT 1 FROM {table} WHERE {same})")
    return " OR ".join(tests)


def _lacks_edge(column: str, role: str) -> str:
    return (
        f"(NEW.{column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM edge WHERE child = NEW.node_id "
        f"AND parent = NEW.{column} AND role = '{role}'))"
    )


def _not_given(table: str) -> str:
    return (
        f"NEW.version IS NOT (SELECT next_version - 1 FROM series WHERE kind = '{table}' AND name = NEW.name)"
    )


def _unchangeable(table: str) -> str:
    return f"a published {table} row is never changed"


def _undeletable(table: str) -> str:
    return f"a published {table} row is never deleted"


def _taken_words(table: str) -> str:
    return f"UNIQUE: there is such a {table} row already and it is never replaced"


def _counting() -> str:
    return "version numbers go up by one and are never given out twice"


def _number_words() -> str:
    return "this version number was not the last one given out"


def _edges_words(table: str) -> str:
    return f"the lineage of this {table} must be written before it and agree with it"


def _sealed() -> str:
    return "the lineage of a published thing is never added to"


def _block_words() -> str:
    return "a class block starts where the last one ends; the first is the own one of its backbone"


def _fence_words() -> str:
    return "the job is no longer held under this fence"


def _member_words() -> str:
    return "a composition holds adapters of one backbone only"


def _composed() -> str:
    return "the members of a composition are written with it, in order, and never added to"
