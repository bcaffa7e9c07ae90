"""A job as it moves: its state, its losses, its end."""

from __future__ import annotations

import math

from affinery_app.api.streams import Message
from affinery_app.wiring import Workspace
from orchestration import publishing, queue
from orchestration.jobs import LIVE


class Following:
    """What is new of a job since it was last looked. since: the moment of the last loss that was had."""

    def __init__(self, space: Workspace, job_id: str, since: float | None) -> None:
        self.space = space
        self.job_id = job_id
        self._since = -math.inf if since is None else since
        self._stood: object = None

    def look(self) -> tuple[list[Message], bool]:
        """→ what is new, and whether the job is over"""
        with self.space.sessions.read() as session:
            job = queue.get(session, self.job_id)
        over = job.state not in LIVE
        found = [*self._losses()]
        stands = job.in_brief()
        stood = {name: value for name, value in stands.items() if name != "heartbeat_at"}
        if stood != self._stood:
            self._stood = stood
            found.append(Message("state", stands))
        if over:
            found.append(Message("end", {"state": job.state, "error": job.error}))
        return found, over

    def _losses(self) -> list[Message]:
        points = publishing.points(self.space.runs / self.job_id)
        new = sorted(
            (at, step, task, loss)
            for task, curve in points.items()
            for step, (loss, at) in curve.items()
            if at > self._since
        )
        if new:
            self._since = new[-1][0]
        return [
            Message("loss", {"task": task, "step": step, "loss": loss, "time": at}, repr(at))
            for at, step, task, loss in new
        ]
