"""Read the whole record, or one thing and all that it was made from: is it still true?

payload: chores.Verification. The findings are the job's result; that there are some fails nothing.
"""

from __future__ import annotations

import time
from typing import ClassVar

from orchestration import chores
from orchestration.kinds.contract import Attempt
from orchestration.ray_train import ProgressLine
from registry import verification

TOLD_SECONDS = 1.0


class Verify:
    """One reading of every row and every byte."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        services = attempt.services
        asked, _ = chores.begun(services.sessions, chores.Verification, attempt.job.payload)
        attempt.stage("reading every row and every byte")
        told = 0.0

        def on_progress(done: int, of: int) -> None:
            nonlocal told
            if done < of and time.monotonic() - told < TOLD_SECONDS:
                return
            told = time.monotonic()
            attempt.check()
            attempt.tell.progress(ProgressLine(done, of, {}, time.time()))

        report = verification.verify(services.sessions.engine, services.store, asked.ref, on_progress)
        attempt.complete(report.to_json())


KIND = Verify()
