"""How long jobs took, from those that are done."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.models import Attempt, Job, JobTask

NEWEST = 50


@dataclass(frozen=True)
class Pace:
    """Seconds that a training took a task and step, the median over so many jobs that are done."""

    seconds: float
    jobs: int


def pace(session: Session, backbone_id: int) -> Pace | None:
    """Of trainings on a backbone that one attempt brought to their end; None where there is none."""
    query = (
        select(Job.id, Job.payload, Attempt.started_at, Attempt.ended_at)
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.outcome == "done"))
        .where(Job.backbone_id == backbone_id, Job.state == "done", Job.kind == "train", Job.attempts == 1)
        .order_by(Job.number.desc())
        .limit(NEWEST)
    )
    done = list(session.execute(query))
    members: dict[str, int] = {}
    for job_id in session.scalars(select(JobTask.job_id).where(JobTask.job_id.in_([row[0] for row in done]))):
        members[job_id] = members.get(job_id, 0) + 1
    found = []
    for job_id, payload, started_at, ended_at in done:
        steps = payload.get("recipe", {}).get("steps", 0) * members.get(job_id, 0)
        if steps and ended_at is not None and ended_at > started_at:
            found.append((ended_at - started_at).total_seconds() / steps)
    return Pace(median(found), len(found)) if found else None
