"""The triggers of the second schema: aliases, tags, notes and metrics.

Aliases are a list of moves that is only appended to. Tags and notes may change, and then the database itself
appends the event, whoever changes them. Metrics are written by the database out of the adapter's row.

This file belongs to its revision and never changes; a later revision brings its own.
"""

from __future__ import annotations

WRITTEN_ONCE = ("alias_move", "metric")
LABELS = {"tag": ("node_id, key", "value"), "note": ("node_id", "text")}  # table: (its key, what may change)
LABELLED = "('backbone', 'dataset', 'task', 'adapter', 'composition', 'export')"

_NUMBER = (
    "NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM alias_move "
    "WHERE task_id = NEW.task_id AND name = NEW.name)"
)
_POINTS = (
    "(SELECT adapter_id FROM alias_move WHERE task_id = NEW.task_id AND name = NEW.name "
    "ORDER BY number DESC LIMIT 1)"
)
_AWAY = f"NEW.adapter_id IS NULL AND {_POINTS} IS NULL"


def sqlite() -> dict[str, str]:
    """Trigger name → CREATE TRIGGER, for SQLite."""
    made: dict[str, str] = {}

    def act(name: str, moment: str, table: str, when: str, statement: str) -> None:
        condition = f" WHEN {when}" if when else ""
        made[name] = f"CREATE TRIGGER {name} {moment} ON {table}{condition} BEGIN {statement}; END"

    def refuse(name: str, moment: str, table: str, when: str, words: str) -> None:
        act(name, moment, table, when, f"SELECT RAISE(ABORT, '{words}')")

    for table, key in (("alias_move", "task_id, name, number"), ("metric", "adapter_id, name")):
        refuse(f"{table}_no_update", "BEFORE UPDATE", table, "", _unchangeable(table))
        refuse(f"{table}_no_delete", "BEFORE DELETE", table, "", _undeletable(table))
        refuse(f"{table}_no_replace", "BEFORE INSERT", table, _there(table, key), _taken(table))
    refuse("alias_move_next", "BEFORE INSERT", "alias_move", _NUMBER, _next())
    refuse("alias_move_away", "BEFORE INSERT", "alias_move", _AWAY, _nothing_to_remove())
    # A bare SQLite connection has foreign keys off.
    target = (
        "NOT EXISTS (SELECT 1 FROM task WHERE node_id = NEW.task_id AND backbone_id = NEW.backbone_id) "
        "OR (NEW.adapter_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM adapter "
        "WHERE node_id = NEW.adapter_id AND task_id = NEW.task_id AND backbone_id = NEW.backbone_id))"
    )
    refuse("alias_move_target", "BEFORE INSERT", "alias_move", target, _target())
    payload = (
        f"json_object('alias', NEW.name, 'number', NEW.number, 'ref', {_ref('NEW.adapter_id')}, "
        f"'was', {_ref(_before())}, 'gate', json(NEW.gate))"
    )
    act("alias_move_event", "AFTER INSERT", "alias_move", "", _event(_ALIAS, _SUBJECT, payload, "NEW.at"))

    act("adapter_metrics", "AFTER INSERT", "adapter", "", fill_metrics("sqlite", "NEW.node_id"))
    refuse("metric_true", "BEFORE INSERT", "metric", _untrue("sqlite"), _metric_words())

    for table, (key, content) in LABELS.items():
        refuse(f"{table}_no_replace", "BEFORE INSERT", table, _there(table, key), _taken(table))
        subject = f"coalesce((SELECT kind FROM node WHERE id = NEW.node_id), '') NOT IN {LABELLED}"
        refuse(f"{table}_subject", "BEFORE INSERT", table, subject, _subject(table))
        refuse(f"{table}_no_move", f"BEFORE UPDATE OF {key}", table, "", _no_move(table))
        for name, moment, when, kind, at in _changes(table, content):
            at = at or "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"
            owner = "OLD.node_id" if kind.endswith("removed") else "NEW.node_id"
            payload = f"json_object({_payload(table, content, kind)})"
            act(name, moment, table, when, _event(f"'{kind}'", owner, payload, at))
    return made


def postgresql() -> dict[str, tuple[str, str]]:
    """Trigger name → (its function, CREATE TRIGGER), for PostgreSQL."""
    made: dict[str, tuple[str, str]] = {}

    def act(name: str, moment: str, table: str, body: str, each: str = "ROW", when: str = "") -> None:
        condition = f" WHEN ({when})" if when else ""
        row = "NULL" if moment.startswith("AFTER") else "NEW"
        function = (
            f"CREATE FUNCTION affinery_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} "
            f"RETURN {row}; END $$"
        )
        create = (
            f"CREATE TRIGGER {name} {moment} ON {table} FOR EACH {each}{condition} "
            f"EXECUTE FUNCTION affinery_{name}()"
        )
        made[name] = (function, create)

    def refuse(name: str, moment: str, table: str, when: str, words: str, each: str = "ROW") -> None:
        said = f"RAISE EXCEPTION '{words}' USING ERRCODE = 'integrity_constraint_violation';"
        act(name, moment, table, f"IF {when} THEN {said} END IF;" if when else said, each)

    for table in WRITTEN_ONCE:
        refuse(f"{table}_no_update", "BEFORE UPDATE", table, "", _unchangeable(table))
        refuse(f"{table}_no_delete", "BEFORE DELETE", table, "", _undeletable(table))
    for table in (*WRITTEN_ONCE, *LABELS):
        refuse(f"{table}_no_truncate", "BEFORE TRUNCATE", table, "", _undeletable(table), "STATEMENT")
    refuse("alias_move_next", "BEFORE INSERT", "alias_move", _NUMBER, _next())
    refuse("alias_move_away", "BEFORE INSERT", "alias_move", _AWAY, _nothing_to_remove())
    payload = (
        f"jsonb_build_object('alias', NEW.name, 'number', NEW.number, 'ref', {_ref('NEW.adapter_id')}, "
        f"'was', {_ref(_before())}, 'gate', NEW.gate)"
    )
    act("alias_move_event", "AFTER INSERT", "alias_move", _event(_ALIAS, _SUBJECT, payload, "NEW.at") + ";")

    act("adapter_metrics", "AFTER INSERT", "adapter", fill_metrics("postgresql", "NEW.node_id") + ";")
    refuse("metric_true", "BEFORE INSERT", "metric", _untrue("postgresql"), _metric_words())

    for table, (key, content) in LABELS.items():
        subject = f"coalesce((SELECT kind FROM node WHERE id = NEW.node_id), '') NOT IN {LABELLED}"
        refuse(f"{table}_subject", "BEFORE INSERT", table, subject, _subject(table))
        refuse(f"{table}_no_move", f"BEFORE UPDATE OF {key}", table, "", _no_move(table))
        for name, moment, when, kind, at in _changes(table, content):
            owner = "OLD.node_id" if kind.endswith("removed") else "NEW.node_id"
            payload = f"jsonb_build_object({_payload(table, content, kind)})"
            event = _event(f"'{kind}'", owner, payload, at or "clock_timestamp()")
            act(name, moment, table, event + ";", when=when)
    return made


def fill_metrics(dialect: str, adapter: str | None = None) -> str:
    """Write the metrics of one adapter, or of all: the numbers of its metrics, two levels deep."""
    return (
        "INSERT INTO metric (adapter_id, name, value) "
        f"SELECT adapter_id, name, max(value) FROM ({_measured(dialect, adapter)}) AS measured "
        "GROUP BY adapter_id, name"
    )


def _untrue(dialect: str) -> str:
    return (
        f"NOT EXISTS (SELECT 1 FROM ({_measured(dialect, 'NEW.adapter_id')}) AS measured "
        "WHERE name = NEW.name AND value = NEW.value)"
    )


def _measured(dialect: str, adapter: str | None) -> str:
    """(adapter_id, name, value) of every number; the adapter's metrics stay an object, or count as none."""
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
    top = f"{each}(CASE WHEN {kind}(adapter.metrics) = 'object' THEN adapter.metrics ELSE {empty} END) AS top"
    deep = f"{each}(CASE WHEN {part} THEN top.value ELSE {empty} END) AS part"
    this = "" if adapter is None else f" AND adapter.node_id = {adapter}"
    return (
        f"SELECT adapter.node_id AS adapter_id, top.key AS name, {value.format('top')} AS value "
        f"FROM adapter, {top} WHERE {number.format('top')}{this} "
        f"UNION ALL SELECT adapter.node_id, top.key || '.' || part.key, {value.format('part')} "
        f"FROM adapter, {top}, {deep} WHERE {number.format('part')}{this}"
    )


_ALIAS = "CASE WHEN NEW.adapter_id IS NULL THEN 'alias.removed' ELSE 'alias.set' END"
_SUBJECT = "coalesce(NEW.adapter_id, NEW.task_id)"


def _changes(table: str, content: str) -> tuple[tuple[str, str, str, str, str], ...]:
    """(trigger, moment, condition, event, its instant or '' for now) of each change that is remembered."""
    return (
        (f"{table}_set", "AFTER INSERT", "", f"{table}.set", "NEW.changed_at"),
        (
            f"{table}_changed",
            f"AFTER UPDATE OF {content}",
            f"OLD.{content} <> NEW.{content}",
            f"{table}.changed",
            "NEW.changed_at",
        ),
        (f"{table}_removed", "AFTER DELETE", "", f"{table}.removed", ""),
    )


def _payload(table: str, content: str, kind: str) -> str:
    row = "OLD" if kind.endswith("removed") else "NEW"
    parts = [f"'key', {row}.key"] if table == "tag" else []
    if not kind.endswith("removed"):
        parts.append(f"'{content}', NEW.{content}")
    if not kind.endswith("set"):
        parts.append(f"'was', OLD.{content}")
    return ", ".join(parts)


def _event(kind: str, subject: str, payload: str, at: str) -> str:
    return f"INSERT INTO event (at, kind, subject, payload) VALUES ({at}, {kind}, {subject}, {payload})"


def _ref(adapter: str) -> str:
    return (
        "(SELECT task.name || '@' || adapter.version FROM adapter "
        f"JOIN task ON task.node_id = adapter.task_id WHERE adapter.node_id = {adapter})"
    )


def _before() -> str:
    return (
        "(SELECT adapter_id FROM alias_move WHERE task_id = NEW.task_id AND name = NEW.name "
        "AND number = NEW.number - 1)"
    )


def _there(table: str, key: str) -> str:
    same = " AND ".join(f"{column.strip()} = NEW.{column.strip()}" for column in key.split(","))
    return f"EXISTS (SELECT 1 FROM {table} WHERE {same})"


def _unchangeable(table: str) -> str:
    return f"a published {table} row is never changed"


def _undeletable(table: str) -> str:
    return f"a published {table} row is never deleted"


def _taken(table: str) -> str:
    return f"UNIQUE: there is such a {table} row already and it is never replaced"


def _next() -> str:
    return "the moves of an alias are counted one by one"


def _target() -> str:
    return "an alias points at an adapter version of its own task"


def _nothing_to_remove() -> str:
    return "an alias that points at nothing cannot be taken away"


def _metric_words() -> str:
    return "a metric says what the metrics of its adapter say"


def _subject(table: str) -> str:
    return f"a {table} belongs to a backbone, dataset, task, adapter, composition or export"


def _no_move(table: str) -> str:
    return f"a {table} stays where it is: take it away and set another"
