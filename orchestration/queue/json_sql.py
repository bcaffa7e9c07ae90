"""JSON that the database writes: a list gathered from rows, the facts of an event."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Select, literal_column, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from registry.columns import Json


class _Gathered(FunctionElement[Any]):
    name = "gathered"
    type = Json()
    inherit_cache = True


class _Facts(FunctionElement[Any]):
    name = "facts"
    type = Json()
    inherit_cache = True


def gathered(query: Select[Any]) -> ScalarSelect[Any]:
    """The one column of a query, in its order, as a list."""
    rows = query.subquery()
    return select(_Gathered(next(iter(rows.c)))).scalar_subquery()


def facts(**values: ColumnElement[Any]) -> _Facts:
    """An object of these."""
    pairs: list[ColumnElement[Any]] = []
    for name, value in values.items():
        pairs += [literal_column(f"'{name}'"), value]
    return _Facts(*pairs)


@compiles(_Gathered, "sqlite")
def _gathered_sqlite(element: _Gathered, compiler: Any, **given: Any) -> str:
    return f"json_group_array({compiler.process(element.clauses, **given)})"


@compiles(_Gathered, "postgresql")
def _gathered_postgresql(element: _Gathered, compiler: Any, **given: Any) -> str:
    return f"coalesce(jsonb_agg({compiler.process(element.clauses, **given)}), '[]')"


@compiles(_Facts, "sqlite")
def _facts_sqlite(element: _Facts, compiler: Any, **given: Any) -> str:
    return f"json_object({compiler.process(element.clauses, **given)})"


@compiles(_Facts, "postgresql")
def _facts_postgresql(element: _Facts, compiler: Any, **given: Any) -> str:
    return f"jsonb_build_object({compiler.process(element.clauses, **given)})"
