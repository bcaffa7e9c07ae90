"""A worker runs for months: of a job that is over it keeps nothing."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestration import queue, talk
from orchestration.driver import Order as DriverOrder
from orchestration.errors import JobInvalid
from orchestration.jobs import Claim, Order
from orchestration.services import Services
from orchestration.tracking import open_tracking
from orchestration.worker import Worker
from registry.session import Sessions
from registry.storage import open_store

JOBS = 40


class Deaf:
    """A listener that keeps nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *heard: None


@dataclass
class Ended:
    """An attempt that is over when its worker first looks at it."""

    told: list[dict[str, Any]]

    def lines(self) -> list[dict[str, Any]]:
        told, self.told = self.told, []
        return told

    def ended(self) -> bool:
        return True

    def ask(self, request: str) -> None:
        raise AssertionError("it has ended already")

    def signal(self, number: int) -> None:
        return

    def last_words(self) -> tuple[str, str]:
        return "ended", ""


@dataclass
class Driving:
    """Drivers that do every other job, and fail at the rest for good."""

    ledger: Sessions
    started: int = 0

    def start(self, order: DriverOrder) -> Ended:
        self.started += 1
        doing = {"event": "stage", "doing": "reading"}
        if self.started % 2:
            error = talk.packed(JobInvalid("verify", "it is to fail"))
            return Ended([doing, {"event": "failed", "error": error, "lasting": True}])
        with self.ledger.begin() as session:
            job = queue.get(session, order.job)
            queue.complete(session, Claim(job, order.owner, order.fence, order.attempt, order.failures))
        return Ended([doing, {"event": "done", "result": {}}])

    def keep_ready(self, ray: str | None) -> None:
        return

    def end_runs(self, order: DriverOrder, status: str) -> None:
        return

    def close(self) -> None:
        return


def there() -> Counter[str]:
    """How many objects there are, by type.

    Without weak references: SQLite's driver keeps those of its last two hundred cursors.
    """
    gc.collect()
    found = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    return Counter({name: count for name, count in found.items() if not name.startswith("weakref")})


def test_a_worker_keeps_nothing_of_the_jobs_that_are_over(ledger: Sessions, tmp_path: Path) -> None:
    tracking = open_tracking(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts", tmp_path)
    url = str(tmp_path / "blobs")
    services = Services(
        ledger, open_store(url), tracking, tmp_path / "data", tmp_path / "runs", store_url=url
    )
    drivers = Driving(ledger)
    with ledger.begin() as session:
        queue.enqueue_all(session, [Order(f"job-{number:03}", kind="verify") for number in range(3 * JOBS)])
    nobody: Any = Deaf()
    worker = Worker(services, nobody, "me", drivers=drivers)

    def some() -> None:
        until = drivers.started + JOBS
        while drivers.started < until:
            worker._fill(most=1)
            while worker._running:
                worker._tick()

    with worker._working():
        some()  # what is made once, and kept for all: statements, connections, modules
        counts = [there()]
        for _ in range(2):
            some()
            counts.append(there())
    # What a second connection prepares for itself grows once; what is kept of each job, every time.
    grown = [
        {name for name, more in (after - before).items() if more >= JOBS // 2}
        for before, after in pairwise(counts)
    ]
    assert grown[0] & grown[1] == set()
    with ledger.read() as session:
        states = Counter(job.state for job in queue.list_all(session))
    assert states == {"done": 3 * JOBS // 2, "dead": 3 * JOBS // 2}
