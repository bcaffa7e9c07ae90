"""What the schema declares, asked anew of the rows: every check, every reference, every key.

Whoever went round the database's guards left rows that they would have refused. Each question is one query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    and_,
    exists,
    func,
    not_,
    select,
    text,
)
from sqlalchemy.orm import Session

from registry import lineage
from registry.findings import RESTORE, Finding
from registry.models import Base

# What a broken check, key or reference means; others are named as they are declared.
_MEANS = {
    "ck_edge_no_cycle": "its parent is not older than it: the lineage could run in a circle",
    "ck_class_block_half_open": "[lo, hi) is no range of rows",
    "ck_class_block_own_rows_first": "row 0 and its backbone's own rows do not go together",
    "ck_adapter_fenced": "it names a job without a fence, or a fence without a job",
    "fk_adapter_task_id_backbone_id": "it is not on the backbone of its task",
    "fk_adapter_job_id_task_id": "its job does not train its task",
    "fk_adapter_blob_digest_size_bytes": "the registry has no such blob of that size",
    "fk_backbone_blob_digest_size_bytes": "the registry has no such blob of that size",
    "fk_adapter_golden_blob": "the registry has no blob of its golden images",
    "fk_task_node_id_backbone_id_lo_hi": "it has not the class block that it names",
    "fk_composition_node_id_last_pos": "its last member is missing",
    "fk_composition_member_composition_id_backbone_id": "a member is of another backbone",
    "fk_composition_member_adapter_id_task_id_backbone_id": (
        "a member is no adapter of that task on the composition's backbone"
    ),
    "uq_composition_member_composition_id_task_id": "it holds two versions of one task",
    "uq_job_task_live": "a task has two live jobs",
}


def disobeyed(session: Session) -> Iterator[Finding]:
    """Every row that breaks what its table declares."""
    for table in Base.metadata.sorted_tables:
        yield from _checks(session, table)
        yield from _references(session, table)
        yield from _keys(session, table)


class Names:
    """What nodes are called, looked up when asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, node_id: int | None) -> str:
        if node_id is None:
            return "nothing"
        known = lineage.describe(self._session, [node_id])
        return known[node_id].full_ref if node_id in known else f"node {node_id}, which does not exist"


def _row(session: Session, table: Table, values: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """How a person knows a row, and the nodes that it concerns."""
    name = Names(session)
    if table.name == "edge":
        child, parent = values["child"], values["parent"]
        return f"edge {name(child)} from {name(parent)} ({values['role']})", (child, parent)
    for column in ("node_id", "owner_id", "composition_id", "task_id"):
        if column in values:
            node_id = values[column]
            what = "" if column == "node_id" else f"{table.name} of "
            return what + name(node_id), (node_id,)
    if table.name == "node":
        return name(values["id"]), (values["id"],)
    key = ", ".join(f"{column} {value}" for column, value in values.items())
    return f"{table.name} ({key})", ()


def _columns(table: Table) -> list[Column[Any]]:
    return list(table.primary_key.columns)


def _found(session: Session, table: Table, check: str, rows: Iterable[Any], what: str) -> Iterator[Finding]:
    for row in rows:
        where, nodes = _row(session, table, dict(row._mapping))
        yield Finding(check, where, what, RESTORE, nodes)


def _checks(session: Session, table: Table) -> Iterator[Finding]:
    for check in sorted(
        (each for each in table.constraints if isinstance(each, CheckConstraint)), key=lambda c: str(c.name)
    ):
        name, rule = str(check.name), str(check.sqltext)
        rows = session.execute(select(*_columns(table)).where(text(f"NOT ({rule})")))
        yield from _found(session, table, name, rows, _MEANS.get(name, f"it breaks the rule: {rule}"))


def _references(session: Session, table: Table) -> Iterator[Finding]:
    keys = sorted(
        (each for each in table.constraints if isinstance(each, ForeignKeyConstraint)),
        key=lambda c: str(c.name),
    )
    for key in keys:
        target = key.referred_table.alias()
        pairs = [(element.parent, target.c[element.column.name]) for element in key.elements]
        given = and_(*(column.is_not(None) for column, _ in pairs))
        there = exists().where(*(theirs == ours for ours, theirs in pairs))
        name = str(key.name)
        columns = " and ".join(str(element.parent.name) for element in key.elements)
        means = _MEANS.get(name, f"its {columns} names a {key.referred_table.name} that does not exist")
        rows = session.execute(select(*_columns(table)).where(given, not_(there)))
        yield from _found(session, table, name, rows, means)


def _keys(session: Session, table: Table) -> Iterator[Finding]:
    wanted: list[tuple[str, list[Any], Any]] = [
        (str(each.name), list(each.columns), None)
        for each in table.constraints
        if isinstance(each, UniqueConstraint | PrimaryKeyConstraint)
    ]
    for index in table.indexes:
        if index.unique:
            where = index.dialect_options["sqlite"]["where"]
            wanted.append((str(index.name), list(index.columns), where))
    for name, columns, where in sorted(wanted, key=lambda entry: entry[0]):
        # NULL is equal to nothing, not even to NULL.
        given = [column.is_not(None) for column in columns if column.nullable]
        query = select(*columns).where(*given).group_by(*columns).having(func.count() > 1)
        if where is not None:
            query = query.where(where)
        what = _MEANS.get(name, f"two rows share its {', '.join(column.name for column in columns)}")
        yield from _found(session, table, name, session.execute(query), what)
