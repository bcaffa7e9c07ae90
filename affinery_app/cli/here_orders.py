"""What is to be done later, or again and again, in a workspace on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from affinery_app.cli.job_options import submitter

if TYPE_CHECKING:
    from affinery_app.wiring import Workspace
    from orchestration.chores import Chore
    from orchestration.queue.limits import Limit
    from orchestration.queue.schedules import ScheduleRecord
    from orchestration.scheduling import Scheduled


class Orders:
    """One transaction a verb."""

    space: Workspace

    def put_off(self, chore: Chore, after: Sequence[str], terms: Mapping[str, Any]) -> Scheduled:
        """A job of what trains nothing. terms: priority, key, run_at and the like."""
        from orchestration.chores import schedule

        return schedule(self.space.sessions, chore, after=after, submitted_by=submitter(), **terms)

    def schedules(self) -> list[ScheduleRecord]:
        from orchestration.queue import schedules

        with self.space.sessions.read() as session:
            return schedules.list_all(session)

    def schedule_repeatedly(
        self, name: str, cron: str, tasks: Sequence[str], recipe: Mapping[str, Any], how: Mapping[str, Any]
    ) -> ScheduleRecord:
        """how: timezone, when_changed, together and priority."""
        from orchestration.scheduling import schedule_repeatedly

        by = submitter()
        return schedule_repeatedly(self.space.sessions, name, cron, tasks, recipe, submitted_by=by, **how)

    def pause_schedule(self, name: str, paused: bool) -> ScheduleRecord:
        from orchestration.queue import schedules

        with self.space.sessions.begin() as session:
            return schedules.pause(session, name, paused)

    def remove_schedule(self, name: str) -> None:
        from orchestration.queue import schedules

        with self.space.sessions.begin() as session:
            schedules.remove(session, name)

    def limits(self) -> list[Limit]:
        from orchestration.queue import limits

        with self.space.sessions.read() as session:
            return limits.list_all(session)

    def set_limit(self, scope: str, key: str, most: float) -> Limit:
        from orchestration.queue import limits

        with self.space.sessions.begin() as session:
            return limits.put(session, scope, key, most)

    def remove_limit(self, scope: str, key: str) -> None:
        from orchestration.queue import limits

        with self.space.sessions.begin() as session:
            limits.remove(session, scope, key)
