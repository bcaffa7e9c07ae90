"""/search: whatever is called so, and adapters that a filter finds."""

from __future__ import annotations

from contextlib import suppress

from starlette.responses import Response

from affinery.errors import UserError
from affinery_app.dashboard.visit import Visit
from orchestration import queue
from orchestration.errors import JobNotFound
from registry import pages, refs, search, tasks

MOST = 20
PREFERRED = ("adapter", "composition", "backbone", "dataset", "task")


def page(visit: Visit) -> Response:
    wanted, meant, versions, job = visit.asked("q").strip()[:400], None, [], None
    with visit.space.sessions.read() as session:
        found = tasks.page(session, limit=MOST, containing=wanted) if wanted else []
        named = pages.named(session, wanted, MOST) if wanted else []
        with suppress(UserError):  # no reference: then it is a part of a name, or a filter
            meant = refs.resolve(session, wanted, prefer=PREFERRED) if wanted else None
        with suppress(UserError):
            versions = list(search.search(session, wanted, limit=MOST).adapters) if wanted else []
        with suppress(JobNotFound):
            job = queue.get(session, wanted) if len(wanted) >= 4 or wanted.isdecimal() else None
    others = [each for each in named if meant is None or each.node_id != meant.node_id]
    return visit.answer(
        "search.html", wanted=wanted, meant=meant, tasks=found, others=others, versions=versions, job=job
    )
