"""What is measured as a job: versions under one protocol, and what a backbone remembers."""

from __future__ import annotations

from starlette.responses import Response

from affinery_app.dashboard.amounts import number, wholes
from affinery_app.dashboard.visit import Visit
from orchestration import chores


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
    return visit.scheduled(asked)


def retention(visit: Visit) -> Response:
    """A job that measures every task of a backbone after every addition to it."""
    asked = chores.read(
        chores.Retention, {"backbone": visit.named(), **wholes(visit.form, "samples", "steps", "seed")}
    )
    return visit.scheduled(asked)
