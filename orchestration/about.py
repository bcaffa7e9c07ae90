"""All that is known of one job, for who asks after it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from orchestration import queue
from orchestration.jobs import AttemptRecord, JobRecord, without_places
from orchestration.obstacles import obstacles
from orchestration.planner import machine


@dataclass(frozen=True)
class AboutJob:
    """asked: what it is to do, by the present names, where it is no training. obstacle: why it never runs."""

    record: JobRecord
    asked: dict[str, Any] | None
    obstacle: str | None
    tries: list[AttemptRecord]

    def to_json(self, *, here: bool = False) -> dict[str, Any]:
        """The job's fields, and the rest beside them. here: with the places of this machine."""
        tries = [each.to_json(here=here) for each in self.tries]
        asked = self.asked
        if asked is not None and not here:
            asked = without_places(self.record.kind, asked)
        return self.record.to_json(here=here) | {"asked": asked, "obstacle": self.obstacle, "tries": tries}


def job(session: Session, named: str) -> AboutJob:
    """Everything of one job. Raises JobNotFound …"""
    record = queue.get(session, named)
    asked = None
    if record.kind != "train":
        from orchestration import chores

        asked = chores.told(session, record.kind, record.payload)
    return AboutJob(
        record,
        asked,
        obstacles(session, [record], machine()).get(record.id),
        queue.attempts(session, record.id),
    )
