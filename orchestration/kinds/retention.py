"""Measure every task of a backbone after every addition: the matrix R[stage, task].

payload: chores.Retention. All figures are recorded together; the matrix is the job's result.
"""

from __future__ import annotations

import time
from typing import ClassVar

from orchestration import chores, retention
from orchestration.kinds.contract import Attempt
from orchestration.ray_train import ProgressLine


class Retention:
    """One backbone, all of it."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        services = attempt.services
        asked, _ = chores.begun(services.sessions, chores.Retention, attempt.job.payload)

        def told(done: int, of: int, what: str) -> None:
            attempt.stage(what)
            attempt.tell.progress(ProgressLine(done, of, {}, time.time()))

        found = retention.measure(services, asked, told)
        attempt.check()
        kept = retention.Kept(services.evaluations, found.backbone)
        kept.write(found)
        attempt.complete(
            found.to_json(), lambda session: found.record(session, attempt.job.id, attempt.held.fence)
        )
        kept.tell(services.tracking, found)


KIND = Retention()
