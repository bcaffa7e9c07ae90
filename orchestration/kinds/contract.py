"""What a job kind must do, and what it is given to do it with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from sqlalchemy.orm import Session

from orchestration import failpoints, queue
from orchestration.errors import Requested
from orchestration.jobs import Claim, JobRecord
from orchestration.planner import Share
from orchestration.services import Services
from orchestration.talk import Teller
from registry.errors import RegistryBusy, RegistryUnreachable

AGAIN_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
REQUEST = "request"
Written = TypeVar("Written")


@dataclass(frozen=True)
class Attempt:
    """One try of a job, in the driver. share: what it may use; tell: whom it tells what it does.

    own: this attempt's folder, where a request is laid by the worker.
    """

    services: Services
    held: Claim
    share: Share
    tell: Teller

    @property
    def job(self) -> JobRecord:
        return self.held.job

    @property
    def folder(self) -> Path:
        """The job's own, the same for every attempt."""
        return self.services.runs / self.job.id

    @property
    def own(self) -> Path:
        return own_folder(self.services.runs, self.job.id, self.held.fence)

    def check(self) -> None:
        """Raises Requested once the worker has asked this attempt to end."""
        try:
            asked = (self.own / REQUEST).read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        raise Requested(asked.strip())

    def stage(self, doing: str) -> None:
        self.check()
        self.tell.stage(doing)

    def commit(self, write: Callable[[Session], Written]) -> Written:
        """The transaction that ends the job. It waits while the database is away, and is tried again then.

        Where a commit arrived and its answer did not, trying again finds the job done: LeaseLost, and the
        worker sees that it is done.
        """

        def commit() -> Written:
            with self.services.sessions.begin() as session:
                written = write(session)
                failpoints.reach("before-commit")
            return written

        return self._patiently(commit)

    def _patiently(self, commit: Callable[[], Written]) -> Written:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                written = commit()
            except (RegistryUnreachable, RegistryBusy):
                if time.monotonic() > until:
                    raise
                time.sleep(AGAIN_SECONDS)
            else:
                failpoints.reach("after-commit")
                return written

    def complete(self, result: dict[str, Any], write: Callable[[Session], object] | None = None) -> None:
        """Ends a job that publishes no adapter: what `write` writes and the result, in one transaction."""
        self.check()

        def all_of_it(session: Session) -> None:
            assert write is not None
            write(session)
            queue.complete(session, self.held, {"result": result})

        def result_alone() -> None:
            failpoints.reach("before-commit")
            queue.finish(self.services.sessions, self.held, {"result": result})

        if write is None:
            self._patiently(result_alone)
        else:
            self.commit(all_of_it)
        self.tell.done(result)


def own_folder(runs: Path, job_id: str, fence: int) -> Path:
    """Where the files of one attempt are; the fence, which only rises, is its number."""
    return runs / job_id / f"attempt-{fence}"


class JobKind(Protocol):
    """needs_ray: whether Ray should be there; it is started beside the driver."""

    needs_ray: ClassVar[bool]

    def run(self, attempt: Attempt) -> None:
        """Does the job and ends it through `attempt.commit`. What it raises ends the attempt."""
        ...
