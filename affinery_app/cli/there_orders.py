"""What is to be done later, or again and again, asked of a service: the verbs of `here_orders`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from affinery.errors import ConfigInvalid
from affinery_app.cli.told import Json, job_of, record_of
from trainers.evaluation.spelling import RECOGNISER

if TYPE_CHECKING:
    from affinery_app.client import Client
    from orchestration.chores import Chore
    from orchestration.queue.limits import Limit
    from orchestration.queue.schedules import ScheduleRecord
    from orchestration.scheduling import Scheduled


WEIGHTS = "a service reads no files of its disk that callers name; schedule the job in its workspace."
REFUSED = {
    "out": "a service writes among its own exports. Fetch it then: affinery download COMPOSITION FOLDER",
    "extractor": WEIGHTS,
    "condition_model": WEIGHTS,
}
"""What a job in a workspace may be asked for beside, by field: places on its disk."""


class Orders:
    """A request a verb."""

    client: Client

    def put_off(self, chore: Chore, after: Sequence[str], terms: Mapping[str, Any]) -> Scheduled:
        """Raises ConfigInvalid for what only a workspace takes."""
        from orchestration.scheduling import Scheduled

        asked = {name: value for name, value in chore.model_dump().items() if value is not None}
        asked |= terms_of(terms)
        for name, why in REFUSED.items():
            if name in asked and asked[name] != RECOGNISER:
                raise ConfigInvalid(f"--{name.replace('_', '-')}", why)
        made = self.client.reply("POST", "/v1/jobs", {"kind": chore.KIND, "after": [*after], **asked})
        return Scheduled(job_of(made.json()), "idempotency-replayed" not in made.headers)

    def schedules(self) -> list[ScheduleRecord]:
        from orchestration.queue.schedules import ScheduleRecord

        return [record_of(ScheduleRecord, each) for each in self.client.schedules.list()]

    def schedule_repeatedly(
        self, name: str, cron: str, tasks: Sequence[str], recipe: Mapping[str, Any], how: Mapping[str, Any]
    ) -> ScheduleRecord:
        from orchestration.queue.schedules import ScheduleRecord

        return record_of(
            ScheduleRecord, self.client.schedules.add(name, cron, tasks, recipe=dict(recipe), **how)
        )

    def pause_schedule(self, name: str, paused: bool) -> ScheduleRecord:
        from orchestration.queue.schedules import ScheduleRecord

        change = self.client.schedules.pause if paused else self.client.schedules.resume
        return record_of(ScheduleRecord, change(name))

    def remove_schedule(self, name: str) -> None:
        self.client.schedules.remove(name)

    def limits(self) -> list[Limit]:
        from orchestration.queue.limits import Limit

        return [record_of(Limit, each) for each in self.client.limits.list()]

    def set_limit(self, scope: str, key: str, most: float) -> Limit:
        from orchestration.queue.limits import Limit

        return record_of(Limit, self.client.limits.set(scope, key, most))

    def remove_limit(self, scope: str, key: str) -> None:
        self.client.limits.remove(scope, key)


def terms_of(job: Mapping[str, Any]) -> Json:
    """When and how a job runs; who asks is known by the token."""
    given = {name: value for name, value in job.items() if name != "submitted_by" and value is not None}
    if isinstance(given.get("run_at"), datetime):
        given["run_at"] = given["run_at"].isoformat()
    return given
