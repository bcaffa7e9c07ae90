"""/v1/tasks: what is learnt, and the adapter versions that came of it."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from affinery_app.api.adapters import Adapter, found
from affinery_app.api.calls import After, Limit, Ref, Space, answer, page
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import pages, shape
from registry import tasks
from registry.records import TaskRecord

router = nouns("/v1/tasks", "tasks")
Task = shape(TaskRecord)


@router.get("", response_model=pages(Task))
def list_tasks(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every task, in the order in which they were added."""
    return page(space, "task", tasks.by_id, after, limit)


@router.get("/{ref}", response_model=Task)
def get_task(space: Space, ref: Ref) -> JSONResponse:
    """One task, by its name or digest."""
    with space.sessions.read() as session:
        return answer(tasks.get(session, ref).to_json())


@router.get("/{ref}/versions", response_model=pages(Adapter))
def list_versions(space: Space, ref: Ref, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """The adapter versions of a task, the newest first."""
    with space.sessions.read() as session:
        task = tasks.get(session, ref)
        return found(session, f"task={task.digest}", after, limit)
