"""/v1/jobs: what is being learnt, what waits, what is done."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse

from affinery_app.api.calls import Space, answer, paged
from affinery_app.api.shapes import pages, shape
from orchestration import queue
from orchestration.jobs import JobRecord

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
Job = shape(JobRecord, without="fence")
JobId = Annotated[
    str, Path(max_length=64, pattern="^[0-9a-zA-Z._-]+$", description="An id, or how one begins.")
]


@router.get("", response_model=pages(Job))
def list_jobs(space: Space) -> JSONResponse:
    """Every job, in the order in which they were accepted."""
    with space.sessions.read() as session:
        return paged(queue.list_all(session), None)


@router.get("/{job}", response_model=Job)
def get_job(space: Space, job: JobId) -> JSONResponse:
    """One job."""
    with space.sessions.read() as session:
        return answer(queue.get(session, job).to_json())
