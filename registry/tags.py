"""Tags: keys and values on what people name. They change; the database keeps what they were as events."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.orm import Session

from registry import refs
from registry.columns import utc_now
from registry.errors import NotFound, RecordInvalid
from registry.models import Tag
from registry.names import checked_text
from registry.records import AdapterRecord, NodeRecord
from registry.upsert import insert_new

SUBJECTS: tuple[str, ...] = ("backbone", "dataset", "task", "adapter", "composition", "export")
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_MOST = 500  # characters of a value
_tag = Tag.__table__.c
_OF = (
    select(_tag.node_id, _tag.key, _tag.value)
    .where(_tag.node_id.in_(bindparam("ids", expanding=True)))
    .order_by(_tag.node_id, _tag.key)
)
_OF_ONE = select(_tag.key, _tag.value).where(_tag.node_id == bindparam("of")).order_by(_tag.key)
_HELD = _OF_ONE.with_for_update()
_CHANGE = update(Tag.rows()).where(_tag.node_id == bindparam("of"), _tag.key == bindparam("which"))


def subject(session: Session, ref: str, what: Literal["tag", "note"]) -> NodeRecord:
    """The node that a tag or a note is to stand on; RecordInvalid for a run or a certificate."""
    node = refs.resolve(session, ref, prefer=("adapter", "composition", "task", "backbone", "dataset"))
    if node.kind not in SUBJECTS:
        raise RecordInvalid(f"A {what} of {node.full_ref}", f"only {', '.join(SUBJECTS)} have one")
    return node


def put(session: Session, ref: str | AdapterRecord, tags: Mapping[str, str]) -> dict[str, str]:
    """Set these tags on what ref means, whatever they were; all its tags now."""
    node = subject(session, ref, "tag") if isinstance(ref, str) else ref
    wanted = {key: _checked(key, value) for key, value in tags.items()}
    held = _held(session, node.node_id)
    now = utc_now()
    while missing := sorted(wanted.keys() - held.keys()):
        rows = [
            {"node_id": node.node_id, "key": key, "value": wanted[key], "changed_at": now} for key in missing
        ]
        if insert_new(session, Tag, rows) == len(rows):
            break
        held = _held(session, node.node_id)  # others were faster
    for key, value in wanted.items():
        if held.get(key, value) != value:
            changed = {"of": node.node_id, "which": key, "value": value, "changed_at": now}
            session.execute(_CHANGE, changed)
    return dict(sorted((held | wanted).items()))


def remove(session: Session, ref: str, keys: Iterable[str]) -> dict[str, str]:
    """Take tags away; what is left. NotFound for a key that is not there, and then nothing is taken."""
    node = subject(session, ref, "tag")
    held = of(session, node.node_id)
    for key in keys:
        if held.pop(key, None) is None:
            raise NotFound("tag", key, sorted(held))
        session.execute(delete(Tag).where(Tag.node_id == node.node_id, Tag.key == key))
    return held


def of(session: Session, node_id: int) -> dict[str, str]:
    """A node's tags, by key."""
    return {row.key: row.value for row in session.execute(_OF_ONE, {"of": node_id})}


def _held(session: Session, node_id: int) -> dict[str, str]:
    """A node's tags, which others then change only after this transaction's end (PostgreSQL)."""
    return {row.key: row.value for row in session.execute(_HELD, {"of": node_id})}


def of_each(session: Session, node_ids: Sequence[int]) -> dict[int, dict[str, str]]:
    """The tags of several nodes, by node and key."""
    found: dict[int, dict[str, str]] = {}
    for chunk in refs.chunks(node_ids):
        for row in session.execute(_OF, {"ids": chunk}):
            found.setdefault(row.node_id, {})[row.key] = row.value
    return found


def _checked(key: str, value: str) -> str:
    if not _KEY.fullmatch(key):
        reason = "a key is 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', and starts with a letter"
        raise RecordInvalid(f"The tag {key[:80]!r}", reason)
    return checked_text(f"The tag {key!r}", value, _MOST)
