"""The attempts that a worker has running, and the thread that keeps their leases."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

from orchestration import queue
from orchestration.driver import Order
from orchestration.drivers import Driver
from orchestration.errors import LeaseLost
from orchestration.jobs import Capacity, Claim, JobRecord
from orchestration.services import Services

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0


@dataclass
class Running:
    """One attempt and its process. ending: the line with which the driver ended its talk, if it did."""

    held: Claim
    order: Order
    driver: Driver
    takes: Capacity
    since: float
    progress: dict[str, Any] | None = None
    ending: dict[str, Any] | None = None
    asked_for: str | None = None
    request: str | None = None
    asked_at: float = 0.0
    signals: int = 0
    lost: Exception | None = None
    told_published: bool = False

    @property
    def job(self) -> JobRecord:
        return self.held.job


class Hearts(threading.Thread):
    """Renews the leases of all attempts while they run, and brings back what the queue asks of them."""

    def __init__(self, services: Services) -> None:
        super().__init__(name="heartbeats", daemon=True)
        self.services = services
        self._beating: dict[str, Running] = {}
        self._over = threading.Event()

    def add(self, running: Running) -> None:
        self._beating[running.job.id] = running

    def remove(self, running: Running) -> None:
        self._beating.pop(running.job.id, None)

    def run(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            for running in list(self._beating.values()):
                self._beat(running)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _beat(self, running: Running) -> None:
        try:
            with self.services.sessions.begin() as session:
                running.asked_for = queue.heartbeat(session, running.held, running.progress)
        except LeaseLost as error:
            self._over_or_lost(running, error)
        except Exception as error:  # noqa: BLE001 - a busy or absent database: the lease outlasts many beats
            log.warning("A heartbeat of job %s was missed: %s", running.job.id, error)

    def _over_or_lost(self, running: Running, error: LeaseLost) -> None:
        """A driver that has ended its job itself is left alone: it has still to tell MLflow of it."""
        try:
            with self.services.sessions.read() as session:
                job = queue.get(session, running.job.id)
        except Exception as away:  # noqa: BLE001 - the next beat asks again
            log.warning("What became of job %s is not known yet: %s", running.job.id, away)
            return
        self.remove(running)
        if job.state != "done" or job.fence != running.held.fence:
            running.lost = error
