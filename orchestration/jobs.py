"""What the queue hands out about its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

LIVE = ("queued", "running")
DEAD = ("failed", "cancelled")


@dataclass(frozen=True)
class JobRecord:
    """One entry of the queue. needs: jobs that must be done first; progress: step, of, losses by task."""

    id: str
    strategy: str
    state: str
    tasks: tuple[str, ...]
    recipe: dict[str, Any]
    needs: tuple[str, ...]
    priority: int
    fence: int
    owner: str | None
    progress: dict[str, Any] | None
    error: str | None
    created_at: datetime
    attempts: int

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "strategy": self.strategy,
            "state": self.state,
            "tasks": list(self.tasks),
            "recipe": self.recipe,
            "needs": list(self.needs),
            "priority": self.priority,
            "owner": self.owner,
            "progress": self.progress,
            "error": self.error,
            "created_at": self.created_at.isoformat(),
            "attempts": self.attempts,
        }


@dataclass(frozen=True)
class Claim:
    """A job that this worker holds, until its lease runs out. Every write of its carries the fence.

    attempt counts all tries; failures those before this one that ended badly.
    """

    job: JobRecord
    owner: str
    fence: int
    attempt: int
    failures: int = 0
