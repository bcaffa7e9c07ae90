"""/jobs: the queue, each job with its losses, its attempts and what can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session
from starlette.responses import Response

from affinery_app.dashboard.amounts import whole
from affinery_app.dashboard.learning import learning
from affinery_app.dashboard.losses import chart
from affinery_app.dashboard.visit import Visit
from orchestration import chores, queue
from orchestration.jobs import LIVE, STATES, JobRecord, without_places
from registry import search
from registry.errors import NotFound

A_PAGE = 50


def listing(visit: Visit) -> Response:
    state = visit.asked("state")
    states = LIVE if state == "live" else [state] if state in STATES else []
    with visit.space.sessions.read() as session:
        found = queue.page(session, before=visit.number("before"), limit=A_PAGE + 1, states=states)
        of = subjects(session, found)
    more = found[A_PAGE - 1].number if len(found) > A_PAGE else None
    known = ("live", *STATES)
    return visit.answer("jobs.html", jobs=found[:A_PAGE], of=of, more=more, state=state, states=known)


def subjects(session: Session, jobs: Sequence[JobRecord]) -> dict[str, list[str]]:
    """By job, what it is of where it trains nothing."""
    return {job.id: chores.named(session, job.kind, job.payload) for job in jobs if job.kind != "train"}


def page(visit: Visit) -> Response:
    return visit.answer("job.html", **_now(visit))


def live(visit: Visit) -> Response:
    """What of the page changes by itself."""
    return visit.answer("live/job.html", **_now(visit))


def _now(visit: Visit) -> dict[str, Any]:
    with visit.space.sessions.read() as session:
        job = queue.get(session, visit.named())
        tries = queue.attempts(session, job.id)
        payload = without_places(job.kind, chores.told(session, job.kind, job.payload))
        made = search.search(session, f"job={job.id}", limit=20).adapters if job.state == "done" else ()
    now = learning(visit.space, job)
    return {
        "job": job,
        "now": now,
        "attempts": tries,
        "payload": payload,
        "made": made,
        "chart": chart(now.curves),
        "now_at": datetime.now(UTC),
    }


def change(visit: Visit) -> Response:
    """Cancel, pause, resume, retry, prioritise."""
    verb, by = visit.named("verb"), visit.by
    with visit.space.sessions.read() as session:
        visit.check_tasks(*queue.get(session, visit.named()).tasks)
    with visit.space.sessions.begin() as session:
        job = queue.get(session, visit.named())
        said = _changed(session, visit, job.id, verb, by)
    return visit.on_to("jobs", job.id, said=said)


def _changed(session: Session, visit: Visit, job_id: str, verb: str, by: str) -> str:
    match verb:
        case "cancel":
            queue.cancel(session, job_id, by)
            return "cancelled"
        case "pause":
            queue.pause(session, job_id, by)
            return "paused"
        case "resume":
            queue.resume(session, job_id, by)
            return "resumed"
        case "retry":
            queue.retry(session, job_id, by)
            return "retried"
        case "prioritise":
            queue.prioritise(session, job_id, whole(visit.form, "priority"), by)
            return "moved"
        case _:
            raise NotFound("action", verb, ["cancel", "pause", "resume", "retry", "prioritise"])
