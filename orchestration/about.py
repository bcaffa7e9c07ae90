"""All that is known of one job, for who asks after it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from orchestration import chores, queue
from orchestration.jobs import AttemptRecord, JobRecord
from orchestration.obstacles import obstacles
from orchestration.planner import machine


@dataclass(frozen=True)
class AboutJob:
    """asked: what it is to do, by the present names, where it is no training. obstacle: why it never runs."""

    record: JobRecord
    asked: dict[str, Any] | None
    obstacle: str | None
    tries: list[AttemptRecord]

    def to_json(self) -> dict[str, Any]:
        """The job's fields, and the rest beside them."""
        tries = [each.to_json() for each in self.tries]
        return self.record.to_json() | {"asked": self.asked, "obstacle": self.obstacle, "tries": tries}


def job(session: Session, named: str) -> AboutJob:
    """Everything of one job. Raises JobNotFound …"""
    record = queue.get(session, named)
    return AboutJob(
        record,
        None if record.kind == "train" else chores.told(session, record.kind, record.payload),
        obstacles(session, [record], machine()).get(record.id),
        queue.attempts(session, record.id),
    )
