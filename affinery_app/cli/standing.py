"""Where a job stands, in a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from affinery.counting import counted

if TYPE_CHECKING:
    from orchestration.jobs import JobRecord


def progress(job: JobRecord) -> str:
    """How many of its steps are done; nothing for a job without steps."""
    step, of = (job.progress or {}).get("step"), (job.progress or {}).get("of")
    return f"{step} / {of}" if step is not None and of else ""


def standing(job: JobRecord, obstacle: str | None = None) -> str:
    """Why a job is where it is. obstacle: what keeps it from ever being taken."""
    from datetime import UTC, datetime

    if obstacle is not None:
        return obstacle
    if job.state == "running":
        asked = f", asked to {job.request} by {job.requested_by}" if job.request else ""
        return ", ".join(filter(None, (job.doing, f"by {job.owner}{asked}")))
    if job.state == "queued":
        if job.waits:
            return f"waits for {counted(job.waits, 'job')}"
        if job.run_at > datetime.now(UTC):
            again = f" after: {job.why}" if job.why else ""
            return f"from {job.run_at:%Y-%m-%d %H:%M:%S} UTC on{again}"
        return "may run"
    return (job.why or "") if job.state in ("dead", "cancelled") else ""
