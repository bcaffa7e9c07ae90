"""Measure published adapters, and record what was measured under its protocol.

payload: chores.Evaluation.
"""

from __future__ import annotations

import time
from typing import ClassVar

from sqlalchemy.orm import Session

from orchestration import chores, evaluations
from orchestration.kinds.contract import Attempt
from orchestration.ray_train import ProgressLine
from registry.records import EvaluationRecord


class Evaluate:
    """Adapters, one after the other; all figures are recorded together."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        asked, _ = chores.begun(attempt.services.sessions, chores.Evaluation, attempt.job.payload)
        found = []
        for done, ref in enumerate(asked.adapters):
            attempt.tell.progress(ProgressLine(done, len(asked.adapters), {}, time.time()))
            found.append(evaluations.measure(attempt.services, ref, asked, attempt.stage))
        made: list[EvaluationRecord] = []

        def write(session: Session) -> None:
            made[:] = [each.record(session, attempt.job.id, attempt.held.fence) for each in found]

        attempt.complete({each.adapter.ref: each.judgement.results for each in found}, write)
        for each, evaluation in zip(found, made, strict=True):
            evaluations.keep(attempt.services, each, evaluation)


KIND = Evaluate()
