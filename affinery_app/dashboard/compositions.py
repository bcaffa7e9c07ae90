"""/compositions: tasks put together, and the bundles that were written of them, to be taken away."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from affinery_app.dashboard.visit import Visit
from orchestration import chores
from orchestration.additions import compose_tasks
from registry import adapters, compositions, exports, pages, retirement, search

A_PAGE, CHOICE = 50, 100


def listing(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        ids = pages.newest_of_kind(session, "composition", visit.number("before"), A_PAGE + 1)
        found = [compositions.by_id(session, node_id) for node_id in ids[:A_PAGE]]
        newest: dict[str, str] = {}
        for each in search.search(session, "state=usable", limit=CHOICE).adapters:
            newest.setdefault(each.task, each.ref)
    more = ids[A_PAGE - 1] if len(ids) > A_PAGE else None
    return visit.answer("compositions.html", compositions=found, more=more, choice=sorted(newest.values()))


def page(visit: Visit) -> Response:
    with visit.space.sessions.read() as session:
        found = compositions.get(session, visit.named())
        members = adapters.by_ids(session, found.member_ids)
        retired = retirement.of(session, found.member_ids)
        written = exports.list_all(session, composition_id=found.node_id)[::-1]
    here = {each.ref: Path(each.path).exists() for each in written}
    return visit.answer(
        "composition.html", composition=found, members=members, retired=retired, exports=written, here=here
    )


def compose(visit: Visit) -> Response:
    members = visit.chosen.get("member", [])
    made = compose_tasks(visit.space.sessions, visit.form.get("name", ""), members)
    return visit.on_to("compositions", made.ref, said="composed")


def export(visit: Visit) -> Response:
    """A job that writes a bundle."""
    asked = chores.Export(composition=visit.named(), unverified=visit.form.get("unverified") == "yes")
    job = chores.schedule(visit.space.sessions, asked, submitted_by=visit.by).job
    return visit.on_to("jobs", job.id, said="scheduled")
