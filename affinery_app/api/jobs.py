"""/v1/jobs: what is being learnt, what waits, what is done."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from fastapi.responses import JSONResponse

from affinery_app.api.calls import After, Limit, Space, answer, paged
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Word, pages, shape
from orchestration import queue
from orchestration.jobs import AttemptRecord, JobRecord

router = nouns("/v1/jobs", "jobs")
Job = shape(JobRecord)
Attempt = shape(AttemptRecord)
JobId = Annotated[
    str, Path(max_length=64, pattern="^[0-9a-zA-Z._-]+$", description="An id, how one begins, or a number.")
]
Some = Annotated[list[Word], Query(max_length=20, description="Only these.")]


@router.get("", response_model=pages(Job))
def list_jobs(
    space: Space,
    after: After = 0,
    limit: Limit = 50,
    states: Some = [],  # noqa: B006 - FastAPI copies it
    kinds: Some = [],  # noqa: B006
    task: Annotated[Word | None, Query(description="Those of this task.")] = None,
) -> JSONResponse:
    """The jobs, the newest first."""
    with space.sessions.read() as session:
        found = queue.page(
            session, before=after or None, limit=limit + 1, states=states, kinds=kinds, task=task
        )
    return paged(found[:limit], found[limit - 1].number if len(found) > limit else None)


@router.get("/{job}", response_model=Job)
def get_job(space: Space, job: JobId) -> JSONResponse:
    """One job."""
    with space.sessions.read() as session:
        return answer(queue.get(session, job).to_json())


@router.get("/{job}/attempts", response_model=pages(Attempt))
def list_attempts(space: Space, job: JobId) -> JSONResponse:
    """Every try of a job, first to last."""
    with space.sessions.read() as session:
        return paged(queue.attempts(session, queue.get(session, job).id), None)
