"""Notes: what people say about a thing. One text each; the database keeps what it was as events."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from registry.columns import utc_now
from registry.models import Note
from registry.names import checked_text
from registry.records import NoteRecord
from registry.tags import subject
from registry.upsert import insert_if_new

_MOST = 10_000  # characters


def write(session: Session, ref: str, text: str) -> NoteRecord:
    """Say this about what ref means, in place of what was said before."""
    node = subject(session, ref, "note")
    text = checked_text(f"The note on {node.full_ref}", text, _MOST, lines=True)
    held = session.get(Note, node.node_id, with_for_update=True)
    row = {"node_id": node.node_id, "text": text, "changed_at": utc_now()}
    if held is None and not insert_if_new(session, Note, row):
        held = session.get_one(Note, node.node_id, with_for_update=True)
    if held is not None and held.text != text:
        held.text, held.changed_at = text, utc_now()
        session.flush()
    return NoteRecord(ref=node.full_ref, text=text)


def remove(session: Session, ref: str) -> NoteRecord:
    """Take the note away; what it said is in the events."""
    node = subject(session, ref, "note")
    session.execute(delete(Note).where(Note.node_id == node.node_id))
    return NoteRecord(ref=node.full_ref, text=None)


def read(session: Session, ref: str) -> NoteRecord:
    """What is said about what ref means."""
    node = subject(session, ref, "note")
    return NoteRecord(ref=node.full_ref, text=of(session, node.node_id))


def of(session: Session, node_id: int) -> str | None:
    """A node's note."""
    held = session.get(Note, node_id)
    return None if held is None else held.text
