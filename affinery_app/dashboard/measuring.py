"""What is measured as a job: versions under one protocol, and what a backbone remembers."""

from __future__ import annotations

from starlette.responses import Response

from affinery_app.dashboard.amounts import number, wholes
from affinery_app.dashboard.visit import Visit
from orchestration import chores
from registry import adapters


def evaluate(visit: Visit) -> Response:
    """A job that measures the versions that were named, alike."""
    asked = chores.read(
        chores.Evaluation,
        {
            "adapters": visit.chosen.get("adapter", []),
            "against": visit.form.get("against") or None,
            **wholes(visit.form, "samples", "steps", "seed"),
            "guidance": number(visit.form, "guidance") if visit.form.get("guidance") else None,
        },
    )
    with visit.space.sessions.read() as session:
        learners = [adapters.get(session, ref).task for ref in asked.adapters]
    visit.check_tasks(*learners)
    job = chores.schedule(visit.space.sessions, asked, submitted_by=visit.by).job
    return visit.on_to("jobs", job.id, said="scheduled")


def retention(visit: Visit) -> Response:
    """A job that measures every task of a backbone after every addition to it."""
    asked = chores.read(
        chores.Retention, {"backbone": visit.named(), **wholes(visit.form, "samples", "steps", "seed")}
    )
    job = chores.schedule(visit.space.sessions, asked, submitted_by=visit.by).job
    return visit.on_to("jobs", job.id, said="scheduled")
