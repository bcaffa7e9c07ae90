"""/v1/tasks: what is learnt, how its learning is scheduled, and the adapter versions that came of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from affinery.errors import words_of
from affinery_app.api.access import Who
from affinery_app.api.adapters import Adapter, found
from affinery_app.api.calls import After, Caller, Limit, Posting, Ref, Space, answer, attached, page
from affinery_app.api.etags import etag_of
from affinery_app.api.jobs import Job
from affinery_app.api.orders import Training
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Facts, Sent, Word, pages, shape
from affinery_app.report_page import page as report_page
from affinery_app.task_report import gather
from affinery_app.wiring import Workspace
from orchestration.scheduling import Wanted
from registry import tasks
from registry.records import TaskRecord

router = nouns("/v1/tasks", "tasks")
Task = shape(TaskRecord)
Threshold = Annotated[int, Field(ge=0, le=1_000_000)]


class Condition(Sent):
    """A picture that tells the task what to draw. low, high: the thresholds of canny."""

    name: Word = Field(examples=["canny"])
    low: Threshold | None = None
    high: Threshold | None = None


class PlannedTask(Sent):
    """One task. dataset: the one of its name where none is given; kind, config: those of all."""

    name: Word
    dataset: Word | None = None
    kind: Word | None = None
    config: Facts = Field(default={})
    condition: Condition | None = None


class NewTasks(Training):
    """Tasks to be learnt on a backbone. together: in one job; otherwise each in its own."""

    tasks: list[PlannedTask] = Field(min_length=1, max_length=200)
    backbone: Word
    kind: Word = "affiner"
    config: Facts = Field(default={})
    image_size: Annotated[int, Field(ge=1, le=100_000)] | None = None
    together: bool = True

    def wanted(self, by: str, key: str | None) -> list[Wanted]:
        """What is to be scheduled. Raises ConfigInvalid and UnknownName."""
        whole = Wanted(
            names=tuple(task.name for task in self.tasks),
            sources=tuple(task.dataset or task.name for task in self.tasks),
            backbone=self.backbone,
            kinds=tuple(task.kind or self.kind for task in self.tasks),
            configs=tuple(
                (self.config if (task.kind or self.kind) == self.kind else {}) | task.config
                for task in self.tasks
            ),
            recipe=self.recipe,
            conditions=tuple(_condition(task.condition) for task in self.tasks),
            image_size=self.image_size,
            after=tuple(self.after),
            key=self.key or key,
            job=self.order(by),
        )
        return [whole] if self.together else whole.apart()


class Ordered(Job):  # type: ignore[misc, valid-type]
    """A job. new: whether it was scheduled now; else it was there by its key."""

    new: bool


class Scheduled(BaseModel):
    """The jobs that learn the tasks; notes: what is worth knowing of it."""

    jobs: list[Ordered]
    notes: list[str]


class Estimate(BaseModel):
    """What would be scheduled, in the order in which it would run; nothing of it was kept."""

    jobs: list[dict[str, Any]]
    seconds: float | None
    notes: list[str]


@router.get("", response_model=pages(Task))
def list_tasks(space: Space, after: After = 0, limit: Limit = 50) -> JSONResponse:
    """Every task, in the order in which they were added."""
    return page(space, "task", tasks.by_id, after, limit)


@router.post("", status_code=201, response_model=Scheduled)
def create_tasks(space: Space, who: Caller, new: NewTasks, posting: Posting) -> JSONResponse:
    """Register tasks, each with its class rows, and schedule their training: all of it, or nothing."""
    from orchestration.scheduling import schedule_all

    wanted, notes = _checked(space, who, new, posting.job_key), list[str]()
    made = schedule_all(space.sessions, wanted, data=space.data, on_note=notes.append)
    jobs = [each.job.to_json() | {"new": each.new} for each in made]
    headers = {"Location": f"/v1/jobs/{jobs[0]['id']}"}
    if not any(each.new for each in made):
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse({"jobs": jobs, "notes": notes}, 201, headers)


@router.post("/estimate", response_model=Estimate)
def estimate_tasks(space: Space, who: Caller, new: NewTasks) -> JSONResponse:
    """What these tasks would cost in parameters, memory and time; nothing is kept."""
    from orchestration.rehearsal import Rehearsal
    from orchestration.scheduling import schedule_all

    rehearsal, notes = Rehearsal(words_of), list[str]()
    wanted = _checked(space, who, new, None)
    schedule_all(space.sessions, wanted, data=space.data, on_note=notes.append, rehearse=rehearsal)
    return answer({"jobs": rehearsal.jobs, "seconds": rehearsal.seconds, "notes": notes})


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


@router.get("/{ref}/report", response_class=HTMLResponse)
def get_report(space: Space, ref: Ref) -> HTMLResponse:
    """What is known of a task as one HTML file, which loads nothing: figures, curves, samples, proofs."""
    found = gather(space, ref)
    content = report_page(found)
    headers = attached(f"{found.task.name}.html") | {"ETag": etag_of(content)}
    return HTMLResponse(content, headers=headers)


def _checked(space: Workspace, who: Who, new: NewTasks, key: str | None) -> list[Wanted]:
    with space.sessions.read() as session:
        who.check_tasks(session, [task.name for task in new.tasks])
    return new.wanted(who.name, key)


def _condition(told: Condition | None) -> dict[str, Any] | None:
    """As a task keeps it. A model that draws it lies on a machine's disk: only its command line names one."""
    if told is None:
        return None
    from trainers.conditions import condition_record

    if told.name == "canny":
        return condition_record(told.name, told.low, told.high)
    return condition_record(told.name)
