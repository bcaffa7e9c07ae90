"""Have a backbone's tasks learnt anew on another backbone: plan it, and schedule all that can be.

payload: old, new; only, the tasks that are meant; recipe, settings in place of those trained with last; warm.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy.orm import Session

from orchestration import rebase
from orchestration.kinds.contract import Attempt


class Rebase:
    """One plan, scheduled in the transaction that ends the job."""

    needs_ray: ClassVar[bool] = False

    def run(self, attempt: Attempt) -> None:
        services, asked = attempt.services, attempt.job.payload
        attempt.stage(f"planning what becomes of {asked['old']} on {asked['new']}")
        result: dict[str, Any] = {}

        def write(session: Session) -> None:
            plan = rebase.plan_rebase(
                session,
                services.store,
                asked["old"],
                asked["new"],
                only=asked.get("only", ()),
                given=asked.get("recipe"),
                warm=asked.get("warm", True),
            )
            result.update(rebase.schedule_rebase(session, plan).to_json())

        attempt.complete(result, write)


KIND = Rebase()
