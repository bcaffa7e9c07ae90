"""/v1/jobs: what is being learnt, what waits, what is done; and what is to become of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Body, Header, Path, Query
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from affinery_app.api.access import Who
from affinery_app.api.calls import (
    After,
    Caller,
    IfMatch,
    Limit,
    Once,
    Posting,
    Space,
    answer,
    paged,
    told,
)
from affinery_app.api.etags import etag_of, held
from affinery_app.api.following import Following
from affinery_app.api.orders import Priority, Sized, Terms, Training
from affinery_app.api.rights import nouns
from affinery_app.api.shapes import Facts, Sent, Word, pages, shape
from affinery_app.api.streams import LAST_EVENT, STREAM, stream
from affinery_app.wiring import Workspace
from orchestration import about, chores, queue
from orchestration.chores import Chore
from orchestration.jobs import AttemptRecord, JobRecord
from orchestration.obstacles import obstacles
from orchestration.planner import machine
from orchestration.scheduling import Scheduled
from registry import adapters
from registry.errors import NotFound

router = nouns("/v1/jobs", "jobs")
Job = shape(JobRecord)
Attempt = shape(AttemptRecord)
JobId = Annotated[
    str, Path(max_length=64, pattern="^[0-9a-zA-Z._-]+$", description="An id, how one begins, or a number.")
]
Extractor = Annotated[
    Literal["recogniser"] | None,
    Field(description="Others are files on a machine's disk, which only its command line names."),
]
Some = Annotated[list[Word], Query(max_length=20, description="Only these.")]
LOG_BYTES = 1 << 20


class Train(Training):
    """Tasks that are registered, to be trained again. warm: begin from their latest adapters."""

    kind: Literal["train"]
    tasks: list[Word] = Field(min_length=1, max_length=200)
    warm: bool = False


class Evaluate(Sized):
    """Adapters to be measured under one protocol; what is null is as usual.

    against: the dataset version whose images all are measured against; null for what each learnt from.
    """

    kind: Literal["evaluate"]
    adapters: list[Word] = Field(min_length=1, max_length=200)
    against: Word | None = None
    samples: chores.Samples | None = None
    seed: chores.Seed = 0
    steps: chores.Steps | None = None
    guidance: Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)] | None = None
    extractor: Extractor = None


class Retention(Sized):
    """Every task of a backbone to be measured after every addition to it; what is null is as usual."""

    kind: Literal["retention"]
    backbone: Word
    samples: chores.Samples | None = None
    seed: chores.Seed = 0
    steps: chores.Steps | None = None
    extractor: Extractor = None


class Export(Terms):
    """A composition to be written: affinery export --help says the formats."""

    kind: Literal["export"]
    composition: Word
    format: Word = "bundle"
    task: Word | None = None
    unverified: bool = False
    backbone: bool = True


class Rebase(Terms):
    """Tasks of a backbone to be learnt anew on another; all, where `only` names none."""

    kind: Literal["rebase"]
    old: Word
    new: Word
    only: list[Word] = Field(default=[], max_length=1000)
    recipe: Facts = Field(default={})
    warm: bool = True


class Verify(Terms):
    """Every blob to be read and every row to be asked; of ref and what it was made from, or of all."""

    kind: Literal["verify"]
    ref: Word | None = None


NewJob = Annotated[Train | Evaluate | Retention | Export | Rebase | Verify, Field(discriminator="kind")]


class Move(Sent):
    """Where in the queue."""

    priority: Priority = Field(description="Higher runs first; usual is 0.")


class Retry(Sent):
    """waiting: whether jobs that are dead because of it are taken up too."""

    waiting: bool = False


class ListedJob(Job):  # type: ignore[misc, valid-type]
    """A job. obstacle: what keeps it from ever being taken by a worker on the service's machine."""

    obstacle: str | None


class AboutJob(ListedJob):
    """A job with every try. asked: what it is to do, by the present names; null for a training."""

    asked: dict[str, Any] | None
    tries: list[Attempt]  # type: ignore[valid-type]


@router.get("", response_model=pages(ListedJob))
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
        ways = obstacles(session, found[:limit], machine())
    listed = [job.to_json() | {"obstacle": ways.get(job.id)} for job in found[:limit]]
    return paged(listed, found[limit - 1].number if len(found) > limit else None)


@router.post("", status_code=201, response_model=Job)
def create_job(space: Space, who: Caller, new: Annotated[NewJob, Body()], posting: Posting) -> JSONResponse:
    """Schedule a job. An Idempotency-Key is a key of the job: the same again gives the one that stands."""
    key = new.key or posting.job_key
    if isinstance(new, Train):
        return _train(space, who, new, key)
    made = ordered(space, who, _chore(new), after=new.after, key=key, **new.order(who.name))
    return _scheduled(made.job, made.new, key)


def ordered(space: Workspace, who: Who, chore: Chore, **order: Any) -> Scheduled:
    """A job for who may have it. Raises NotGranted, and what scheduling raises."""
    with space.sessions.read() as session:
        who.check_tasks(session, _tasks_of(session, chore) if who.tasks is not None else [])
    return chores.schedule(space.sessions, chore, **order)


@router.get("/{job}", response_model=AboutJob)
def get_job(space: Space, job: JobId) -> JSONResponse:
    """One job: what it is to do, where it stands and why, and every try."""
    with space.sessions.read() as session:
        told_whole = about.job(session, job).to_json()
    return answer(told_whole, etag=_etag(told_whole))


@router.get("/{job}/attempts", response_model=pages(Attempt))
def list_attempts(space: Space, job: JobId) -> JSONResponse:
    """Every try of a job, first to last."""
    with space.sessions.read() as session:
        return paged(queue.attempts(session, queue.get(session, job).id), None)


class Log(BaseModel):
    """What an attempt wrote. from_byte: where the text begins in it; more than a MiB is cut in front."""

    job: str
    attempt: int | None
    from_byte: int
    log: str


@router.get("/{job}/log", response_model=Log)
def get_job_log(
    space: Space,
    job: JobId,
    attempt: Annotated[
        int | None, Query(ge=1, lt=2**31, description="The last, where none is named.")
    ] = None,
) -> JSONResponse:
    """What an attempt of a job wrote on this machine: its errors in full, with the places that they name."""
    with space.sessions.read() as session:
        record = queue.get(session, job)
        tries = {each.number: each for each in queue.attempts(session, record.id)}
    if attempt is not None and attempt not in tries:
        raise NotFound("attempt", str(attempt), [str(each) for each in tries])
    number = attempt or max(tries, default=None)
    text, start = b"", 0
    if number is not None:
        path = space.runs / record.id / f"attempt-{tries[number].fence}" / "driver.log"
        if path.is_file():
            start = max(0, path.stat().st_size - LOG_BYTES)
            with path.open("rb") as file:
                file.seek(start)
                text = file.read(LOG_BYTES)
    said = {"job": record.id, "attempt": number, "from_byte": start, "log": text.decode(errors="replace")}
    return answer(said)


@router.get("/{job}/events", response_class=StreamingResponse, responses={200: STREAM})
def follow_job(
    space: Space,
    job: JobId,
    last_event_id: Annotated[float | None, Header(description=LAST_EVENT, allow_inf_nan=False)] = None,
) -> StreamingResponse:
    """A job as server-sent events: `state` when it moves, `loss` as it learns, `end` with which it closes."""
    with space.sessions.read() as session:
        record = queue.get(session, job)
    return stream(Following(space, record.id, last_event_id).look)


@router.post("/{job}/cancel", response_model=Job)
def cancel_job(
    space: Space, who: Caller, job: JobId, posting: Posting, if_match: IfMatch = None
) -> JSONResponse:
    """End a job: at once if it waits; one that runs is asked to stop, and is stopped where it does not."""
    asked = _Asked(job, posting, if_match)
    return asked.do(space, who, lambda session, id_: queue.cancel(session, id_, who.name))


@router.post("/{job}/pause", response_model=Job)
def pause_job(
    space: Space, who: Caller, job: JobId, posting: Posting, if_match: IfMatch = None
) -> JSONResponse:
    """Hold a job back; one that runs keeps its checkpoint and makes room."""
    asked = _Asked(job, posting, if_match)
    return asked.do(space, who, lambda session, id_: queue.pause(session, id_, who.name))


@router.post("/{job}/resume", response_model=Job)
def resume_job(
    space: Space, who: Caller, job: JobId, posting: Posting, if_match: IfMatch = None
) -> JSONResponse:
    """Let a paused job go on where it stopped."""
    asked = _Asked(job, posting, if_match)
    return asked.do(space, who, lambda session, id_: queue.resume(session, id_, who.name))


@router.post("/{job}/retry", response_model=Job)
def retry_job(
    space: Space,
    who: Caller,
    job: JobId,
    posting: Posting,
    how: Retry | None = None,
    if_match: IfMatch = None,
) -> JSONResponse:
    """Take a job up again that is dead or cancelled."""
    waiting = how is not None and how.waiting

    def retry(session: Session, id_: str) -> JobRecord:
        return queue.retry(session, id_, who.name, with_waiting=waiting)[0]

    return _Asked(job, posting, if_match, waiting).do(space, who, retry)


@router.post("/{job}/priority", response_model=Job)
def prioritise_job(
    space: Space, who: Caller, job: JobId, to: Move, posting: Posting, if_match: IfMatch = None
) -> JSONResponse:
    """Move a job forward or back in the queue."""
    asked = _Asked(job, posting, if_match, to.priority)
    return asked.do(space, who, lambda session, id_: queue.prioritise(session, id_, to.priority, who.name))


@dataclass(frozen=True)
class _Asked:
    """A change of a job, if it still stands as it was read. how: what else was asked."""

    job: str
    posting: Once
    if_match: str | None
    how: int | None = None

    def do(self, space: Workspace, who: Who, change: Callable[[Session, str], JobRecord]) -> JSONResponse:
        """Raises PreconditionFailed, and what the change raises."""

        def write(session: Session) -> dict[str, Any]:
            record = queue.hold(session, self.job)
            who.check_tasks(session, record.tasks)
            held(f"job {record.number}", _etag(record.to_json()), self.if_match)
            return change(session, record.id).to_json()

        return self.posting.do(space, [self.job, self.if_match, self.how], "", write, etag=_etag)


def _etag(job: Mapping[str, Any]) -> str:
    """Of what changes of a job are decided by; not of how far it is."""
    return etag_of([job[name] for name in ("id", "state", "generation", "fence", "priority", "request")])


def _train(space: Workspace, who: Who, new: Train, key: str | None) -> JSONResponse:
    from orchestration.scheduling import schedule_again

    with space.sessions.read() as session:
        who.check_tasks(session, new.tasks)
        there = key is not None and key in queue.by_keys(session, [key])
    warm = () if new.warm else None
    order = new.order(who.name) | {"after": new.after}
    job = schedule_again(space.sessions, new.tasks, new.recipe, warm, key=key, **order)
    return _scheduled(job, not there, key)


def _scheduled(job: JobRecord, new: bool, key: str | None) -> JSONResponse:
    done = told(job.to_json(), "/v1/jobs/{id}", new=new, key=key)
    done.headers["ETag"] = _etag(job.to_json())
    return done


def _chore(new: Evaluate | Retention | Export | Rebase | Verify) -> Chore:
    return chores.read(chores.kinds()[new.kind], new.model_dump(exclude={"kind", *Sized.model_fields}))


def _tasks_of(session: Session, chore: Chore) -> list[str]:
    """The tasks that alone a job concerns; none where it concerns more."""
    if isinstance(chore, chores.Evaluation):
        return [adapters.get(session, ref).task for ref in chore.adapters]
    return []
