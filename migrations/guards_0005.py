"""The triggers of revision 0005: evaluations, names that change, successors, what a job trains from.

A name is changed by one row of `renaming`: the database then changes every row that bears the name, and takes
no other change of it. A name that something had is never given to anything else.

This file belongs to its revision and never changes; a later revision brings its own. A trigger of an earlier
revision that stands here too is replaced.
"""

from __future__ import annotations

WRITTEN_ONCE = {"evaluation": "node_id", "figure": "evaluation_id, name", "renaming": "id"}

# Rows that are written once but for their names: what never changes of each.
NAMED = {
    "backbone": "node_id, version, blob_digest, size_bytes, num_classes, null_index, spec, parent_id",
    "dataset": (
        "node_id, version, dvc_md5, dvc_path, size_bytes, image_count, classes, class_counts, licence, "
        "source, parent_id"
    ),
    "task": "node_id, backbone_id, dataset_id, kind, config, classes, lo, hi, predecessor_id",
    "composition": "node_id, version, backbone_id, mode, recipe, last_pos",
    "export": "node_id, composition_id, version, format, path, size_bytes",
    "series": "kind",
}
KINDS = "('backbone', 'dataset', 'task', 'composition')"
EDGES = {
    "dataset": (("parent_id", "parent"),),
    "task": (("backbone_id", "backbone"), ("dataset_id", "dataset"), ("predecessor_id", "predecessor")),
    "evaluation": (("adapter_id", "adapter"), ("dataset_id", "reference")),
}
DETAILS = (
    *("backbone", "dataset", "task", "run", "adapter", "certificate", "composition", "export", "evaluation"),
)

_LAST = "(SELECT max(id) FROM renaming WHERE kind = {kind})"
_OWN_ORIGIN = (
    "coalesce((SELECT origin FROM renaming WHERE kind = NEW.kind AND name = NEW.was ORDER BY id DESC "
    "LIMIT 1), NEW.was)"
)
_ORIGIN = f"NEW.origin <> {_OWN_ORIGIN}"
_BORNE = (
    "EXISTS (SELECT 1 FROM series WHERE kind = NEW.kind AND name = {name}) "
    "OR (NEW.kind = 'task' AND EXISTS (SELECT 1 FROM task WHERE name = {name}))"
)
_HELD = (
    "NEW.kind = 'task' AND EXISTS (SELECT 1 FROM job_task JOIN task ON task.node_id = job_task.task_id "
    "WHERE task.name = NEW.was AND live)"
)
_PAST = "EXISTS (SELECT 1 FROM renaming WHERE kind = NEW.kind AND was = NEW.name AND origin <> NEW.origin)"
_CYCLE = (
    "NEW.job_id IN (WITH RECURSIVE needed(id) AS (SELECT NEW.needs_job_id UNION "
    "SELECT job_dependency.needs_job_id FROM job_dependency JOIN needed "
    "ON job_dependency.job_id = needed.id) SELECT id FROM needed)"
)
_SUBJECTS = (
    "NOT EXISTS (SELECT 1 FROM adapter WHERE node_id = NEW.adapter_id) "
    "OR NOT EXISTS (SELECT 1 FROM dataset WHERE node_id = NEW.dataset_id)"
)
_SUCCEEDS = (
    "NEW.predecessor_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM task AS followed "
    "WHERE followed.node_id = NEW.predecessor_id AND followed.backbone_id <> NEW.backbone_id "
    "AND followed.classes = NEW.classes AND followed.hi - followed.lo = NEW.hi - NEW.lo)"
)
_OTHER_CLASSES = (
    "NEW.dataset_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM dataset JOIN task "
    "ON task.classes = dataset.classes WHERE dataset.node_id = NEW.dataset_id AND task.node_id = NEW.task_id)"
)
_BEGINS = "dataset_id, warm_start_id"
_BEGUN = "NOT EXISTS (SELECT 1 FROM job WHERE id = NEW.job_id AND fence = 0)"
_OTHER_DATA = (
    "NEW.dataset_id <> coalesce((SELECT dataset_id FROM job_task WHERE job_id = NEW.job_id "
    "AND task_id = NEW.task_id), (SELECT dataset_id FROM adapter WHERE task_id = NEW.task_id "
    "ORDER BY version DESC LIMIT 1), (SELECT dataset_id FROM task "
    "WHERE node_id = NEW.task_id), NEW.dataset_id)"
)


def sqlite() -> dict[str, str]:
    """Trigger name → CREATE TRIGGER, for SQLite."""
    made: dict[str, str] = {}

    def act(name: str, moment: str, table: str, when: str, statements: str) -> None:
        condition = f" WHEN {when}" if when else ""
        made[name] = f"CREATE TRIGGER {name} {moment} ON {table}{condition} BEGIN {statements}; END"

    def refuse(name: str, moment: str, table: str, when: str, words: str) -> None:
        quoted = words.replace("'", "''")
        act(name, moment, table, when, f"SELECT RAISE(ABORT, '{quoted}')")

    for table, key in WRITTEN_ONCE.items():
        refuse(f"{table}_no_update", "BEFORE UPDATE", table, "", _unchangeable(table))
        refuse(f"{table}_no_delete", "BEFORE DELETE", table, "", _undeletable(table))
        refuse(f"{table}_no_replace", "BEFORE INSERT", table, _there(table, key), _taken(table))
    act("evaluation_figures", "AFTER INSERT", "evaluation", "", _fill("sqlite"))
    refuse("figure_true", "BEFORE INSERT", "figure", _untrue("sqlite"), _figure())
    for name, moment, table, when, words in _refusals("IS NOT"):
        refuse(name, moment, table, when, words)
    fenced = f"NEW.job_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM job WHERE {_holds()})"
    refuse("evaluation_fence", "BEFORE INSERT", "evaluation", fenced, _fence())
    act("renaming_done", "AFTER INSERT", "renaming", "", "; ".join(_rename("json_object")))
    return made


def postgresql() -> dict[str, tuple[str, str]]:
    """Trigger name → (its function, CREATE TRIGGER), for PostgreSQL."""
    made: dict[str, tuple[str, str]] = {}

    def act(name: str, moment: str, table: str, body: str, each: str = "ROW") -> None:
        function = (
            f"CREATE OR REPLACE FUNCTION affinery_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ "
            f"BEGIN {body} RETURN NEW; END $$"
        )
        create = (
            f"CREATE TRIGGER {name} {moment} ON {table} FOR EACH {each} EXECUTE FUNCTION affinery_{name}()"
        )
        made[name] = (function, create)

    def refuse(name: str, moment: str, table: str, when: str, words: str, each: str = "ROW") -> None:
        said = _raise(words)
        act(name, moment, table, f"IF {when} THEN {said} END IF;" if when else said, each)

    for table in WRITTEN_ONCE:
        refuse(f"{table}_no_update", "BEFORE UPDATE", table, "", _unchangeable(table))
        refuse(f"{table}_no_delete", "BEFORE DELETE", table, "", _undeletable(table))
        refuse(f"{table}_no_truncate", "BEFORE TRUNCATE", table, "", _undeletable(table), "STATEMENT")
    act("evaluation_figures", "AFTER INSERT", "evaluation", _fill("postgresql") + ";")
    refuse("figure_true", "BEFORE INSERT", "figure", _untrue("postgresql"), _figure())
    for name, moment, table, when, words in _refusals("IS DISTINCT FROM"):
        refuse(name, moment, table, when, words)
    # The row lock holds off a new claim of the job until this is committed or gone.
    fence = (
        f"IF NEW.job_id IS NOT NULL THEN PERFORM 1 FROM job WHERE {_holds()} FOR NO KEY UPDATE; "
        f"IF NOT FOUND THEN {_raise(_fence())} END IF; END IF;"
    )
    act("evaluation_fence", "BEFORE INSERT", "evaluation", fence)
    act("renaming_done", "AFTER INSERT", "renaming", "; ".join(_rename("jsonb_build_object")) + ";")
    # Two who each write half of a circle do not see each other's half: they take turns.
    turns = "PERFORM pg_advisory_xact_lock(4702112);"
    circle = f"{turns} IF {_CYCLE} THEN {_raise(_cycle())} END IF;"
    act("job_dependency_no_cycle", "BEFORE INSERT", "job_dependency", circle)
    return made


def _refusals(differs: str) -> list[tuple[str, str, str, str, str]]:
    """(trigger, moment, table, condition, words) of what both databases spell alike."""
    found = []
    for table, columns in NAMED.items():
        found.append((f"{table}_no_update", f"BEFORE UPDATE OF {columns}", table, "", _unchangeable(table)))
        found.append(
            (f"{table}_named", "BEFORE UPDATE OF name", table, _unrecorded(table, differs), _renamed())
        )
    past = "EXISTS (SELECT 1 FROM renaming WHERE kind = {kind} AND was = NEW.name)"
    for table, kind in (("series", "NEW.kind"), ("task", "'task'")):
        found.append((f"{table}_new_name", "BEFORE INSERT", table, past.format(kind=kind), _was_given()))
    found += [
        ("renaming_kind", "BEFORE INSERT", "renaming", f"NEW.kind NOT IN {KINDS}", _no_kind()),
        ("renaming_of", "BEFORE INSERT", "renaming", f"NOT ({_BORNE.format(name='NEW.was')})", _no_such()),
        ("renaming_to", "BEFORE INSERT", "renaming", _BORNE.format(name="NEW.name"), _name_taken()),
        ("renaming_origin", "BEFORE INSERT", "renaming", _ORIGIN, _no_origin()),
        ("renaming_past", "BEFORE INSERT", "renaming", _PAST, _was_given()),
        ("renaming_held", "BEFORE INSERT", "renaming", _HELD, _job_holds()),
    ]
    for table, edges in EDGES.items():
        lacking = " OR ".join(_lacks_edge(column, role) for column, role in edges)
        found.append((f"{table}_edges", "BEFORE INSERT", table, lacking, _edges(table)))
    published = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE node_id = NEW.child)" for table in DETAILS)
    kind = f"(SELECT kind FROM node WHERE id = NEW.node_id) {differs} 'evaluation'"
    found += [
        ("edge_sealed", "BEFORE INSERT", "edge", published, _sealed()),
        ("evaluation_kind", "BEFORE INSERT", "evaluation", kind, "this node is not an evaluation"),
        ("evaluation_subjects", "BEFORE INSERT", "evaluation", _SUBJECTS, _evaluates()),
        ("task_successor", "BEFORE INSERT", "task", _SUCCEEDS, _succeeds()),
        ("job_task_begins", f"BEFORE UPDATE OF {_BEGINS}", "job_task", _BEGUN, _has_begun()),
        ("job_task_dataset", "BEFORE INSERT", "job_task", _OTHER_CLASSES, _other_classes()),
        ("job_task_moved", "BEFORE UPDATE OF dataset_id", "job_task", _OTHER_CLASSES, _other_classes()),
        ("adapter_dataset", "BEFORE INSERT", "adapter", _OTHER_DATA, _other_data()),
        ("job_dependency_no_cycle", "BEFORE INSERT", "job_dependency", _CYCLE, _cycle()),
        ("job_dependency_no_update", "BEFORE UPDATE", "job_dependency", "", _unchangeable("job_dependency")),
    ]
    return found


def _unrecorded(table: str, differs: str) -> str:
    """A change of name that is not the renaming written last of its kind."""
    kind = f"'{table}'"
    if table == "export":
        kind = "'composition'"
    elif table == "series":
        kind = "replace(NEW.kind, 'export', 'composition')"
    return (
        f"NEW.name {differs} OLD.name AND NOT EXISTS (SELECT 1 FROM renaming WHERE kind = {kind} "
        f"AND was = OLD.name AND name = NEW.name AND id = {_LAST.format(kind=kind)})"
    )


def _rename(json: str) -> list[str]:
    """What bears the name has the new one; the counter first: whoever gives it a version now waits there."""
    kinds = "(NEW.kind, CASE NEW.kind WHEN 'composition' THEN 'export' ELSE NEW.kind END)"
    changed = [f"UPDATE series SET name = NEW.name WHERE kind IN {kinds} AND name = NEW.was"]
    borne = []
    for table in ("backbone", "dataset", "task", "composition", "export"):
        kind = "composition" if table == "export" else table
        changed.append(f"UPDATE {table} SET name = NEW.name WHERE NEW.kind = '{kind}' AND name = NEW.was")
        if table == kind:
            borne.append(f"SELECT node_id FROM {table} WHERE NEW.kind = '{kind}' AND name = NEW.name")
    subject = f"(SELECT max(node_id) FROM ({' UNION ALL '.join(borne)}) AS borne)"
    payload = f"{json}('was', NEW.was, 'name', NEW.name)"
    changed.append(
        "INSERT INTO event (at, kind, subject, payload) "
        f"VALUES (NEW.at, NEW.kind || '.renamed', {subject}, {payload})"
    )
    return changed


def _holds() -> str:
    return "id = NEW.job_id AND fence = NEW.fence AND state = 'running'"


def _fill(dialect: str) -> str:
    return (
        "INSERT INTO figure (evaluation_id, name, value) "
        f"SELECT evaluation_id, name, max(value) FROM ({_measured(dialect, 'NEW.node_id')}) AS measured "
        "GROUP BY evaluation_id, name"
    )


def _untrue(dialect: str) -> str:
    return (
        f"NOT EXISTS (SELECT 1 FROM ({_measured(dialect, 'NEW.evaluation_id')}) AS measured "
        "WHERE name = NEW.name AND value = NEW.value)"
    )


def _measured(dialect: str, evaluation: str) -> str:
    """(evaluation_id, name, value) of every number in its results, two levels deep."""
    each, kind, empty = ("json_each", "json_type", "'{}'")
    number = "{0}.type IN ('integer', 'real') AND abs({0}.value) < 1e308"
    part, value = "top.type = 'object'", "{0}.value"
    if dialect == "postgresql":
        each, kind, empty = ("jsonb_each", "jsonb_typeof", "'{}'::jsonb")
        number = (
            "CASE WHEN jsonb_typeof({0}.value) = 'number' THEN abs({0}.value::numeric) < 1e308 ELSE false END"
        )
        # Within a CASE: PostgreSQL may work out a value before it has looked at its kind.
        value = "CASE WHEN jsonb_typeof({0}.value) = 'number' THEN {0}.value::float8 END"
        part = "jsonb_typeof(top.value) = 'object'"
    results = f"CASE WHEN {kind}(evaluation.results) = 'object' THEN evaluation.results ELSE {empty} END"
    top = f"{each}({results}) AS top"
    deep = f"{each}(CASE WHEN {part} THEN top.value ELSE {empty} END) AS part"
    return (
        f"SELECT evaluation.node_id AS evaluation_id, top.key AS name, {value.format('top')} AS value "
        f"FROM evaluation, {top} WHERE {number.format('top')} AND evaluation.node_id = {evaluation} "
        f"UNION ALL SELECT evaluation.node_id, top.key || '.' || part.key, {value.format('part')} "
        f"FROM evaluation, {top}, {deep} WHERE {number.format('part')} AND evaluation.node_id = {evaluation}"
    )


def _raise(words: str) -> str:
    quoted = words.replace("'", "''")
    return f"RAISE EXCEPTION '{quoted}' USING ERRCODE = 'integrity_constraint_violation';"


def _there(table: str, key: str) -> str:
    same = " AND ".join(f"{column.strip()} = NEW.{column.strip()}" for column in key.split(","))
    return f"EXISTS (SELECT 1 FROM {table} WHERE {same})"


def _lacks_edge(column: str, role: str) -> str:
    return (
        f"(NEW.{column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM edge WHERE child = NEW.node_id "
        f"AND parent = NEW.{column} AND role = '{role}'))"
    )


def _unchangeable(table: str) -> str:
    return f"a published {table} row is never changed"


def _undeletable(table: str) -> str:
    return f"a published {table} row is never deleted"


def _taken(table: str) -> str:
    return f"UNIQUE: there is such a {table} row already and it is never replaced"


def _edges(table: str) -> str:
    return f"the lineage of this {table} must be written before it and agree with it"


def _sealed() -> str:
    return "the lineage of a published thing is never added to"


def _figure() -> str:
    return "a figure says what the results of its evaluation say"


def _fence() -> str:
    return "the job is no longer held under this fence"


def _evaluates() -> str:
    return "an evaluation is of an adapter version, against a dataset version"


def _renamed() -> str:
    return "a name is never changed otherwise than by a row of renaming"


def _was_given() -> str:
    return "this name belonged to something else, whose old references must not come to mean another thing"


def _no_kind() -> str:
    return "only backbones, datasets, tasks and compositions change their names"


def _no_such() -> str:
    return "nothing of this kind has this name"


def _name_taken() -> str:
    return "UNIQUE: this name is taken"


def _no_origin() -> str:
    return "the origin of a name is the first that its bearer had"


def _job_holds() -> str:
    return "a task keeps its name while a job holds it"


def _succeeds() -> str:
    return "a successor has the classes of its predecessor, on another backbone"


def _other_classes() -> str:
    return "a task is trained on a dataset version of the same classes only"


def _other_data() -> str:
    return "an adapter was made from the dataset version that its task is on, or that its job moves it to"


def _has_begun() -> str:
    return "what a job begins from is said before it is claimed"


def _cycle() -> str:
    return "jobs never wait for each other in a circle"
