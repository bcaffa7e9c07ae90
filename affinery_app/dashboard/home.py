"""/ : what is being learnt now, what waits, the newest of each task that learnt lately."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from affinery_app.dashboard.jobs import subjects
from affinery_app.dashboard.learning import learning
from affinery_app.dashboard.losses import chart
from affinery_app.dashboard.pictures import samples_of
from affinery_app.dashboard.visit import Visit
from orchestration import queue
from registry import adapters, pages, retirement

NEWEST, WAITING, LATELY = 8, 8, 30
COUNTED = (
    ("task", "task", "/tasks"),
    ("adapter", "adapter version", "/adapters"),
    ("dataset", "dataset version", "/datasets"),
    ("backbone", "backbone", "/backbones"),
    ("composition", "composition", "/compositions"),
)


def page(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        counts = pages.counts(session)
        found = adapters.newest_of_tasks(session, NEWEST)
        retired = retirement.of(session, [each.node_id for each in found])
        newest = [(each, samples_of(visit.space, session, each), each.node_id in retired) for each in found]
    counted = [(name, counts.get(kind, 0), where) for kind, name, where in COUNTED]
    return visit.answer("home.html", counted=counted, newest=newest, **_now(visit))


def live(visit: Visit) -> Response:
    """What of the page changes by itself."""
    return visit.answer("live/home.html", **_now(visit))


def _now(visit: Visit) -> dict[str, Any]:
    with visit.space.sessions.read() as session:
        running = queue.page(session, states=["running"], limit=WAITING)
        waiting = queue.page(session, states=["queued", "paused"], limit=WAITING + 1)
        lately = queue.page(session, limit=LATELY)
        of = subjects(session, waiting[:WAITING])
        any_task = bool(pages.newest_of_kind(session, "task", None, 1))
    learnt = [learning(visit.space, job) for job in running]
    shown = [(each, chart(each.curves, key=each.job.number)) for each in learnt]
    return {
        "running": shown,
        "waiting": waiting[:WAITING],
        "of": of,
        "any_task": any_task,
        "more_waiting": len(waiting) > WAITING,
        "dead": [job for job in lately if job.state == "dead"][:3],
    }
