"""/v1/schedules: trainings that come again by themselves."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.orm import Session

from affinery_app.api.access import Who
from affinery_app.api.calls import Caller, IfMatch, Once, Posting, Space, answer, paged
from affinery_app.api.etags import etag_of, held
from affinery_app.api.orders import Priority
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Facts, Sent, Word, pages, shape
from affinery_app.wiring import Workspace
from orchestration.queue import schedules
from orchestration.queue.schedules import ScheduleRecord

router = nouns("/v1/schedules", "schedules")
Schedule = shape(ScheduleRecord)
Name = Annotated[str, Path(max_length=200, description="A schedule's name.")]


class NewSchedule(Sent):
    """When which tasks are trained again. cron: minute hour day month weekday, in this time zone."""

    name: Word
    cron: Word = Field(examples=["0 3 * * *"])
    tasks: list[Word] = Field(min_length=1, max_length=200)
    recipe: Facts = Field(default={})
    timezone: Word = "UTC"
    when_changed: bool = Field(default=False, description="Only tasks whose dataset has a newer version.")
    together: bool = Field(default=False, description="Train them in one job.")
    priority: Priority = 0


@router.get("", response_model=pages(Schedule))
def list_schedules(space: Space) -> JSONResponse:
    """All schedules, by name, and when they fire next."""
    with space.sessions.read() as session:
        return paged(schedules.list_all(session), None)


@router.get("/{name}", response_model=Schedule)
def get_schedule(space: Space, name: Name) -> JSONResponse:
    """One schedule. Its ETag is for If-Match."""
    with space.sessions.read() as session:
        told = schedules.get(session, name).to_json()
    return answer(told, etag=etag_of(told))


@router.post("", status_code=201, response_model=Schedule)
def create_schedule(space: Space, who: Caller, new: NewSchedule, posting: Posting) -> JSONResponse:
    """Train tasks again and again; workers see to it."""
    from orchestration.scheduling import repeated_recipe

    asked = new.model_dump()
    with space.sessions.read() as session:
        who.check_tasks(session, new.tasks)
    again = posting.answered(space, asked, "/v1/schedules/{name}")
    if again is not None:
        return again
    full, takes = repeated_recipe(space.sessions, new.tasks, new.recipe, together=new.together)

    def write(session: Session) -> dict[str, object]:
        return schedules.add(
            session,
            new.name,
            new.cron,
            new.tasks,
            full,
            timezone=new.timezone,
            when_changed=new.when_changed,
            together=new.together,
            memory_bytes=takes,
            priority=new.priority,
            submitted_by=who.name,
        ).to_json()

    return posting.do(space, asked, "/v1/schedules/{name}", write, etag=etag_of)


@router.post("/{name}/pause", response_model=Schedule)
def pause_schedule(
    space: Space, who: Caller, name: Name, posting: Posting, if_match: IfMatch = None
) -> JSONResponse:
    """Fire no more, until it is resumed."""
    return _paused(space, who, name, posting, if_match, paused=True)


@router.post("/{name}/resume", response_model=Schedule)
def resume_schedule(
    space: Space, who: Caller, name: Name, posting: Posting, if_match: IfMatch = None
) -> JSONResponse:
    """Go on with the next time after now."""
    return _paused(space, who, name, posting, if_match, paused=False)


@router.delete("/{name}", response_model=Schedule)
def delete_schedule(space: Space, who: Caller, name: Name, if_match: IfMatch = None) -> JSONResponse:
    """Remove a schedule; the jobs that it made stay."""
    with space.sessions.begin() as session:
        there = _held(session, who, name, if_match)
        schedules.remove(session, name)
    return answer(there)


def _paused(
    space: Workspace, who: Who, name: str, posting: Once, if_match: str | None, *, paused: bool
) -> JSONResponse:
    def write(session: Session) -> dict[str, object]:
        _held(session, who, name, if_match)
        return schedules.pause(session, name, paused).to_json()

    return posting.do(space, [name, if_match], "", write, etag=etag_of)


def _held(session: Session, who: Who, name: str, if_match: str | None) -> dict[str, object]:
    """A schedule that is still as it was read, and stays so until this transaction ends."""
    record = schedules.hold(session, name)
    who.check_tasks(session, record.tasks)
    held(f"schedule {record.name}", etag_of(record.to_json()), if_match)
    return record.to_json()
