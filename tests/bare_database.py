"""A connection as the bare driver gives it, round all of our own code: on SQLite without foreign keys."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

WRITTEN_ONCE = [
    *("node", "edge", "event", "backbone", "class_block", "dataset", "run", "adapter", "certificate"),
    *("composition", "composition_member", "export", "metric", "evaluation", "figure", "renaming"),
]
NOW = "2026-01-02 12:00:00"


class Bare:
    """One plain connection, whose transactions are those that it is told to begin."""

    def __init__(self, url: str) -> None:
        self.sqlite = url.startswith("sqlite")
        self.connection: Any = (
            sqlite3.connect(str(make_url(url).database), isolation_level=None)
            if self.sqlite
            else psycopg.connect(url, autocommit=True)
        )

    def do(self, *statements: str) -> None:
        """Execute, as one transaction."""
        self.connection.execute("BEGIN")
        try:
            for statement in statements:
                self.connection.execute(statement)
            self.connection.execute("COMMIT")
        except Exception:
            self.connection.execute("ROLLBACK")
            raise

    def one(self, query: str) -> Any:
        """The first column of the first row."""
        return self.connection.execute(query).fetchone()[0]

    def columns(self, table: str) -> list[str]:
        """Those that can be written, on SQLite."""
        return [row[1] for row in self.connection.execute(f'PRAGMA table_info("{table}")')]

    def dump(self) -> dict[str, list[Any]]:
        """Every row of every table of the record."""
        tables = [*WRITTEN_ONCE, "task", "series", "job", "job_task", "blob", "tag", "note", "alias_move"]
        return {
            table: sorted(map(str, self.connection.execute(f'SELECT * FROM "{table}"').fetchall()))
            for table in tables
        }

    def refused(self, *statements: str, words: str | None = None) -> None:
        """The database refuses these statements as an integrity error, and nothing changed."""
        before = self.dump()
        with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError, psycopg.DataError), match=words):
            self.do(*statements)
        assert self.dump() == before

    def node(self, kind: str) -> str:
        """A statement that writes a node of its own; new_id is then its id."""
        return f"INSERT INTO node (kind, digest, created_at) VALUES ('{kind}', '{'5' * 64}', '{NOW}')"

    @property
    def new_id(self) -> str:
        """The id of the node written last."""
        return "(SELECT max(id) FROM node)"


def node_of(bare: Bare, table: str, where: str) -> int:
    return int(bare.one(f"SELECT node_id FROM {table} WHERE {where}"))


def adapter_of(bare: Bare, task: str, version: int = 1) -> int:
    owner = node_of(bare, "task", f"name = '{task}'")
    return node_of(bare, "adapter", f"task_id = {owner} AND version = {version}")
