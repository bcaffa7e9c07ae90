"""/events: what happened. /health: whether everything that a workspace stands on answers."""

from __future__ import annotations

from starlette.responses import Response

from affinery_app.dashboard.visit import Visit
from affinery_app.doctor import FAIL, OK, WARN, Check, examine
from affinery_app.wiring import Workspace
from orchestration import queue
from registry import events, lineage

A_PAGE = 100


def events_page(visit: Visit) -> Response:
    kind = visit.asked("kind")[:100]
    with visit.space.sessions.read() as session:
        found = events.newest(session, visit.number("before"), limit=A_PAGE + 1, kind=kind or None)
        subjects = {each.subject for each in found if each.subject is not None}
        nodes = lineage.describe(session, sorted(subjects))
    more = found[A_PAGE - 1].id if len(found) > A_PAGE else None
    kinds = sorted({each.kind for each in found})
    return visit.answer("events.html", events=found[:A_PAGE], nodes=nodes, kind=kind, kinds=kinds, more=more)


def health(visit: Visit) -> Response:
    """What `affinery doctor` says in a moment, and whether somebody works."""
    checks = [*examine(visit.space.folder), _queue(visit.space)]
    return visit.answer("health.html", checks=checks, sound=all(each.state != FAIL for each in checks))


def _queue(space: Workspace) -> Check:
    """Waiting work that nobody takes is the commonest reason why nothing happens."""
    with space.sessions.read() as session:
        running = queue.page(session, states=["running"], limit=100)
        waiting = [job for job in queue.page(session, states=["queued"], limit=100) if not job.waits]
    told = f"{len(running)} running, {len(waiting)} ready to run"
    idle = bool(waiting) and not running
    return Check("queue", WARN if idle else OK, told, "Start a worker: affinery worker" if idle else None)
