"""What `affinery task add --dry-run` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from affinery_app.cli.output import emit, fields, say, table
from affinery_app.figures import size

if TYPE_CHECKING:
    from orchestration.rehearsal import Rehearsal


def show_rehearsal(rehearsal: Rehearsal, as_json: bool) -> None:
    """Every job as it would be, in the order in which it would run."""
    if as_json:
        emit({"jobs": rehearsal.jobs, "seconds": rehearsal.seconds, "kept": False})
        return
    table(
        ["", "tasks", "after", "strategy", "steps", "parameters", "memory", "time"],
        [
            (
                job["place"],
                job["tasks"],
                job["after"] or None,
                job["strategy"] if job["new"] else "there already",
                job["steps"],
                f"{job['parameters']:,}",
                size(job["memory_bytes"]),
                _time(job["seconds"]),
            )
            for job in rehearsal.jobs
        ],
        "",
        numbers=("steps", "parameters", "memory", "time"),
    )
    reasons = {job["strategy"]: f"{job['because']} (on this machine)" for job in rehearsal.jobs if job["new"]}
    macs = sum(job["macs"] for job in rehearsal.jobs if job["new"])
    fields(
        [
            *reasons.items(),
            ("multiplications", f"{macs:.3g} in all"),
            ("time", f"{_time(rehearsal.seconds)}, one after another{_whence(rehearsal)}"),
        ]
    )
    for job in rehearsal.jobs:
        if job["refused"]:
            say(f"{', '.join(job['tasks'])}: {job['refused']}")
    say("\nNothing was kept. Without --dry-run it is scheduled.")


def _whence(rehearsal: Rehearsal) -> str:
    if rehearsal.seconds is None:
        return "; no training on this backbone is done yet to measure it by"
    count = max((job["seconds_from_jobs"] for job in rehearsal.jobs), default=0)
    return f", measured by {count} {'training' if count == 1 else 'trainings'} on this backbone"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
