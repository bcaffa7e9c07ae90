"""Have a backbone's tasks learnt anew on another backbone: plan it, and schedule all that can be.

payload: chores.Rebase.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy.orm import Session

from orchestration import chores, rebase
from orchestration.kinds.contract import Attempt
from registry import renaming


class Rebase:
    """One plan, scheduled in the transaction that ends the job."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        services = attempt.services
        asked, told = chores.begun(services.sessions, chores.Rebase, attempt.job.payload)
        attempt.stage(f"planning what becomes of {told.old} on {told.new}")
        result: dict[str, Any] = {}

        def write(session: Session) -> None:
            renaming.take_turns(session, alone=False)  # names are read, and written of, in many steps
            plan = rebase.plan_rebase(
                session,
                services.store,
                asked.old,
                asked.new,
                only=asked.only,
                given=asked.recipe,
                warm=asked.warm,
            )
            result.update(rebase.schedule_rebase(session, plan).to_json())

        attempt.complete(result, write)


KIND = Rebase()
