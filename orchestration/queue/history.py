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
    """How long trainings took, the medians over so many that are done.

    step_seconds: a step of one task. beside_seconds: all that is no step of an attempt: starting, reading the
    data, drawing and judging samples, proving.
    """

    step_seconds: float
    beside_seconds: float
    jobs: int

    def seconds(self, steps: int, tasks: int) -> float:
        """Of a training of so many tasks at once."""
        return self.beside_seconds + self.step_seconds * steps * tasks


def pace(session: Session, backbone_id: int) -> Pace | None:
    """Of trainings on a backbone that one attempt brought to their end; None where there is none."""
    query = (
        select(Job.id, Job.payload, Job.progress, Attempt.started_at, Attempt.ended_at)
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.outcome == "done"))
        .where(Job.backbone_id == backbone_id, Job.state == "done", Job.kind == "train", Job.attempts == 1)
        .order_by(Job.number.desc())
        .limit(NEWEST)
    )
    done = list(session.execute(query))
    members: dict[str, int] = {}
    for job_id in session.scalars(select(JobTask.job_id).where(JobTask.job_id.in_([row[0] for row in done]))):
        members[job_id] = members.get(job_id, 0) + 1
    step, beside = [], []
    for job_id, payload, progress, started_at, ended_at in done:
        steps, a_step = payload.get("recipe", {}).get("steps"), (progress or {}).get("seconds_a_step")
        if steps and a_step and ended_at is not None and job_id in members:
            step.append(a_step / members[job_id])
            beside.append(max(0.0, (ended_at - started_at).total_seconds() - a_step * steps))
    return Pace(median(step), median(beside), len(step)) if step else None
