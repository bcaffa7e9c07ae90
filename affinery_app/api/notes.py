"""/v1/notes: what people say about a thing, in words."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.orm import Session

from affinery_app.api.calls import IfMatch, Ref, Space, answer
from affinery_app.api.etags import etag_of, held
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Sent, shape
from registry import nodes, notes, tags
from registry.records import NoteRecord

router = nouns("/v1/notes", "notes")
Note = shape(NoteRecord)


class Text(Sent):
    """What is to be said."""

    text: str = Field(min_length=1, max_length=10_000)


@router.get("/{ref}", response_model=Note)
def get_note(space: Space, ref: Ref) -> JSONResponse:
    """What is said about something; null where nothing is."""
    with space.sessions.read() as session:
        return _told(notes.read(session, ref))


@router.put("/{ref}", response_model=Note)
def put_note(space: Space, ref: Ref, new: Text, if_match: IfMatch = None) -> JSONResponse:
    """Say this, in place of what was said before."""
    with space.sessions.begin() as session:
        _hold(session, ref, if_match)
        return _told(notes.write(session, ref, new.text))


@router.delete("/{ref}", response_model=Note)
def delete_note(space: Space, ref: Ref, if_match: IfMatch = None) -> JSONResponse:
    """Take the note away; the events remember it."""
    with space.sessions.begin() as session:
        _hold(session, ref, if_match)
        return _told(notes.remove(session, ref))


def _hold(session: Session, ref: str, if_match: str | None) -> None:
    nodes.hold(session, tags.subject(session, ref, "note").node_id)
    there = notes.read(session, ref)
    held(f"the note on {there.ref}", etag_of(there.to_json()), if_match)


def _told(note: NoteRecord) -> JSONResponse:
    return answer(note.to_json(), etag=etag_of(note.to_json()))
