"""The worker: claims jobs, holds their leases, and has a driver process do each. It computes nothing."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from affinery.errors import words_of
from orchestration import failpoints, kinds, planner, queue, ray_train, talk
from orchestration.certificates import Certificate
from orchestration.driver import Order
from orchestration.drivers import DriverProcesses, Drivers, wait_for_talk
from orchestration.errors import DriverDied, LeaseLost, NeverFits, RayUnavailable, Requested, TimedOut
from orchestration.hearts import Hearts, Running
from orchestration.jobs import DEAD, LIVE, Capacity, Claim, JobRecord
from orchestration.local_ray import LocalRay
from orchestration.owners import is_dead, own_name
from orchestration.planner import Share
from orchestration.queue import clock, listing
from orchestration.queue.waiting import Bell
from orchestration.services import Listener, Services
from registry import adapters, certificates
from registry.errors import RegistryBusy, RegistryUnreachable, StaleFence
from registry.models import Job

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
LOOK_SECONDS = 1.0
TICK_SECONDS = 0.25
GRACE_SECONDS = 45.0
"""After a request, before SIGTERM; a checkpoint of what was learnt is saved in this time."""
TERM_SECONDS = 10.0
SOON_SECONDS = 600.0
"""A job that is due so soon is waited for by whoever runs the queue until it is empty."""
TIMEOUT = "timeout"
SHARE = "share.json"
RAY_TRIES = 3
RAY_AGAIN_SECONDS, RAY_LONGEST_SECONDS = 5.0, 300.0
MOST_SEEN = 64
AWAY = (RegistryUnreachable, RegistryBusy)


@dataclass
class Worker:
    """One worker; several may run on one registry.

    jobs: how many attempts it runs side by side at most, however many fit. given: what it may use, where that
    is not all of this machine.
    """

    services: Services
    listener: Listener
    owner: str = field(default_factory=own_name)
    jobs: int | None = None
    given: Capacity | None = None
    drivers: Drivers = field(default_factory=DriverProcesses)

    def __post_init__(self) -> None:
        ray_train.check_address(self.services.ray_address)
        self.capacity = self.given or planner.machine().capacity
        self._choice = planner.ALONE
        self._defaults = planner.defaults(self.capacity)
        self._ray = LocalRay(math.ceil(self.capacity.cpus), math.ceil(self.capacity.gpus))
        self._running: list[Running] = []
        self._bell = Bell(self.services.sessions.engine)
        self._hearts: Hearts | None = None
        self._draining = False
        self._warm: str | None = None
        self._without_ray: RayUnavailable | None = None
        self._ray_tries = 0
        self._looked = -math.inf
        self.done = 0

    # --- what a caller does with it ---------------------------------------------------------------------

    def drain(self) -> int:
        """Runs jobs until none is left to run now or, after a retry's delay, soon. → how many were done

        Raises RayUnavailable where Ray could not be had several times; the jobs stay in the queue.
        """
        before = self.done
        with self._working():
            while True:
                if not self._running and self._without_ray is not None and self._ray_tries >= RAY_TRIES:
                    raise self._without_ray
                self._fill()
                if self._running:
                    self._tick()
                elif self._worth_waiting():
                    self._keep_ready()
                    self._bell.wait(IDLE_SECONDS)
                else:
                    return self.done - before

    def serve(self) -> None:
        """Runs jobs as they come, until `stop_claiming` was called and what runs has ended."""
        with self._working():
            while not self._draining or self._running:
                self._fill()
                if self._running:
                    self._tick()
                else:
                    self._keep_ready()
                    self._bell.wait(IDLE_SECONDS)

    def run_next(self, *, stay: bool = False) -> JobRecord | None:
        """Runs the next job to its end, if there is one. → the job as it stands then

        stay: Ray and a driver stay ready for another, until `close`.
        """
        with self._working(stay=stay):
            self._fill(most=1)
            if not self._running:
                return None
            job = self._running[0].job
            while self._running:
                self._tick()
            if stay:
                self._keep_ready()
        with self.services.sessions.read() as session:
            return queue.get(session, job.id)

    def close(self) -> None:
        """Ends what was kept ready."""
        self.drivers.close()
        self._ray.stop()

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return bool(self._running)

    def stop_claiming(self) -> None:
        """What runs goes on to its end; nothing new is begun."""
        self._draining = True

    # --- claiming ---------------------------------------------------------------------------------------

    @contextmanager
    def _working(self, *, stay: bool = False) -> Iterator[None]:
        """Hearts beat; at the end nothing that was started is left. An interruption gives the jobs back."""
        self._hearts = Hearts(self.services)
        self._hearts.start()
        try:
            yield
        except BaseException:
            self._give_back_all()
            raise
        finally:
            self._bell.close()
            self._hearts.stop()
            if not stay:
                self.close()

    def _fill(self, *, most: int | None = None) -> None:
        """Claims as many jobs as may run now, and starts their drivers."""
        most = most or self.jobs
        while not self._draining and (most is None or len(self._running) < most):
            try:
                held = self._claim()
            except AWAY as error:
                log.warning("The queue cannot be reached: %s", error)
                return
            if held is None:
                return
            self._begin(held)
            if self._free().cpus > 0 and self._more_waits():
                self._keep_ready()

    def _claim(self) -> Claim | None:
        """What others left behind is looked for once a second, and before there is said to be no job."""
        looked = time.monotonic() - self._looked >= LOOK_SECONDS
        if looked:
            self._look()
        held = self._take()
        if held is None and not looked:
            self._look()
            held = self._take()
        return held

    def _take(self) -> Claim | None:
        ledger = self.services.sessions
        with ledger.read() as session:
            self._choose(session)
        return queue.take(ledger, self.owner, self._free(), total=self.capacity, defaults=self._defaults)

    def _look(self) -> None:
        """For jobs whose worker is gone, jobs that can never be done, and schedules that are due."""
        with self.services.sessions.begin() as session:
            query = select(Job.lease_owner).where(Job.state == "running", Job.lease_owner.is_not(None))
            owners = {owner for owner in session.scalars(query) if owner}
            queue.owners_gone(session, [owner for owner in owners if owner != self.owner and is_dead(owner)])
            hopeless = queue.give_up(session)
            queue.fire_due(session)
        self._looked = time.monotonic()
        for job, reason in hopeless:
            self._end_runs(job, "FAILED")
            self.listener.failed(job, reason, job.state)

    def _begin(self, held: Claim) -> None:
        failpoints.reach("claimed")
        share = self._share(held.job)
        order = Order.of(self.services, held, share)
        takes = held.job.resources(self._defaults)
        driver = self.drivers.start(order)
        running = Running(held.planned(share.strategy), order, driver, takes, time.monotonic())
        self._running.append(running)
        assert self._hearts is not None
        self._hearts.add(running)

    def _choose(self, session: Session) -> None:
        """How trainings that leave it open are run now: it depends on how many of them there are."""
        undecided = (Job.strategy.is_(None), Job.cpus.is_(None), Job.gpus.is_(None), Job.workers == 1)
        due = (Job.state == "queued", Job.waits == 0, Job.kind == "train", Job.run_at <= clock.now())
        waiting = session.scalars(select(Job.payload).where(*due, *undecided).limit(MOST_SEEN)).all()
        if waiting:
            beside = sum(running.job.kind == "train" for running in self._running)
            batch = int(waiting[0].get("recipe", {}).get("batch", 0))
            demand = planner.Demand(len(waiting) + beside, together=False, batch=batch)
            self._choice = planner.choose(demand, planner.Machine.of(self.capacity))
            self._defaults = planner.defaults(self.capacity, self._choice)

    def _free(self) -> Capacity:
        free = self.capacity
        for running in self._running:
            free = free.less(running.takes)
        return free

    def _share(self, job: JobRecord) -> Share:
        """What an attempt may use; Ray is started here for whoever needs it, beside the driver's imports."""
        ray = None
        if kinds.kind(job.kind).needs_ray:
            ray = self._warm = self.services.ray_address or self._ray.ready()
        kept = self.services.runs / job.id / SHARE
        chosen = planner.share(job, job.resources(self._defaults), ray, self._choice)
        return planner.as_before(chosen, kept) if job.kind == "train" else chosen

    def _keep_ready(self) -> None:
        """A driver for the next training, while processors are free: its imports take seconds of them."""
        if self._warm is not None:
            self.drivers.keep_ready(self._warm)

    def _more_waits(self) -> bool:
        try:
            with self.services.sessions.read() as session:
                query = select(Job.id).where(Job.state == "queued").limit(1)
                return session.scalars(query).first() is not None
        except AWAY:
            return False

    def _worth_waiting(self) -> bool:
        """Whether a queued job becomes due by itself, and soon: what it needs is done, and it fits here."""
        with self.services.sessions.read() as session:
            soon = Job.run_at <= clock.later(SOON_SECONDS)
            waiting = listing.records(session, Job.state == "queued", Job.waits == 0, soon)
        fitting = [job for job in waiting if self.capacity.holds(job.resources(self._defaults))]
        if not fitting:
            for job in waiting:
                error = NeverFits(
                    job.id[:8], planner.told(job.resources(self._defaults)), self._what_there_is()
                )
                self.listener.failed(job, error, "unfit")
        return bool(fitting)

    def _what_there_is(self) -> str:
        return f"this worker has {planner.told(self.capacity)}"

    # --- minding what runs ------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Hears the drivers, passes requests on, settles what has ended."""
        talking = [running.driver for running in self._running if not running.driver.ended()]
        if len(talking) == len(self._running):
            wait_for_talk(talking, TICK_SECONDS)
        for running in list(self._running):
            ended = running.driver.ended()
            for entry in running.driver.lines():
                self._hear(running, entry)
            if not ended:
                self._mind(running)
            elif self._settled(running):
                self._forget(running)

    def _hear(self, running: Running, entry: dict[str, Any]) -> None:
        match entry["event"]:
            case "progress":
                line = talk.progress(entry)
                told = {"step": line.step, "of": line.steps, "losses": line.losses}
                running.progress = told if line.losses else (running.progress or {}) | told
            case "stage":
                known = running.progress or running.job.progress or {}
                running.progress = known | {"doing": entry["doing"]}
            case "failed" | "stopped":
                running.ending = entry
            case _:
                pass
        try:
            talk.pass_on(entry, running.job, self.listener, self.services.sessions)
        except AWAY as error:
            log.warning("What job %s published is told once it has ended: %s", running.job.id, error)
            return
        running.told_published |= entry["event"] == "published"

    def _mind(self, running: Running) -> None:
        """A request: first the file, then SIGTERM, then SIGKILL. What is another's by now is killed."""
        longest = running.job.timeout_seconds
        if running.lost is not None:
            running.driver.signal(signal.SIGKILL)
        elif running.request is None and running.asked_for is not None:
            self._ask(running, running.asked_for)
        elif running.request is None and longest and time.monotonic() - running.since > longest:
            self._ask(running, TIMEOUT)
        elif running.request is not None:
            waited = time.monotonic() - running.asked_at
            if running.signals == 0 and waited > GRACE_SECONDS:
                running.driver.signal(signal.SIGTERM)
                running.signals = 1
            elif running.signals == 1 and waited > GRACE_SECONDS + TERM_SECONDS:
                running.driver.signal(signal.SIGKILL)
                running.signals = 2

    def _ask(self, running: Running, request: str) -> None:
        if running.request is None and not running.driver.ended():
            running.request, running.asked_at = request, time.monotonic()
            running.driver.ask(request)

    def _forget(self, running: Running) -> None:
        self._running.remove(running)
        assert self._hearts is not None
        self._hearts.remove(running)
        release = getattr(running.driver, "release", None)
        if release is not None:
            release()

    def _give_back_all(self) -> None:
        """Every attempt saves what it has and its job goes back; a second interruption kills at once."""
        try:
            for running in self._running:
                self._ask(running, "release")
            while self._running:
                self._tick()
        except BaseException:
            for running in self._running:
                running.driver.signal(signal.SIGKILL)
            raise

    # --- how an attempt ends ----------------------------------------------------------------------------

    def _settled(self, running: Running) -> bool:
        """Writes down how an attempt ended. → whether that is written; not while the database is away"""
        failpoints.reach("settling")
        try:
            self._settle(running)
        except AWAY as error:
            log.warning("How job %s ended is written later: %s", running.job.id, error)
            time.sleep(IDLE_SECONDS)
            return False
        return True

    def _settle(self, running: Running) -> None:
        ending = running.ending
        if running.lost is not None:
            self._lost(running, running.lost)
        elif ending is None:
            self._without_a_word(running)
        elif ending["event"] == "stopped":
            self._stopped(running)
        else:
            error = talk.unpacked(ending["error"])
            if isinstance(error, (LeaseLost, StaleFence)):
                self._lost(running, error)
            elif isinstance(error, RayUnavailable):
                self._given_back(running, error)
            else:
                self._failed(running, error, may_heal=not ending["lasting"])

    def _without_a_word(self, running: Running) -> None:
        """It did its job, or it died; the queue knows which."""
        job = self._job(running)
        if job.state == "done" and job.fence == running.held.fence:
            self._done(running, job)
        elif running.request is not None:
            self._stopped(running)
        else:
            self._failed(running, DriverDied(*running.driver.last_words()), may_heal=True)

    def _done(self, running: Running, job: JobRecord) -> None:
        self.done += 1
        if kinds.kind(job.kind).needs_ray:
            self._without_ray, self._ray_tries = None, 0
        if not running.told_published and job.tasks:
            with self.services.sessions.read() as session:
                found = [record for record in adapters.list_all(session) if record.job_id == job.id]
                proofs = [certificates.list_for(session, record.ref)[-1] for record in found]
            if found:
                certificate = Certificate(proofs[0].level, proofs[0].results)  # type: ignore[arg-type]
                self.listener.published(job, found, certificate)

    def _stopped(self, running: Running) -> None:
        """It ended as it was asked to: given back, paused, cancelled, or out of time."""
        request = running.request or "release"
        if request == TIMEOUT:
            error = TimedOut(running.job.timeout_seconds, running.held.attempt)
            self._failed(running, error, may_heal=True)
            return
        try:
            with self.services.sessions.begin() as session:
                ends: dict[str, Callable[[Session, Claim], object]] = {
                    "cancel": queue.cancelled,
                    "pause": queue.paused,
                }
                ends.get(request, queue.release)(session, running.held)
        except LeaseLost as error:
            self._lost(running, error)
            return
        if request == "cancel":
            self._end_runs(running.job, "KILLED")
        if request in ends:
            self.listener.failed(
                running.job, Requested(request), "cancelled" if request == "cancel" else "paused"
            )

    def _lost(self, running: Running, error: Exception) -> None:
        """The job is another's by now, was cancelled (its runs end too), or was done before the error."""
        job = self._job(running)
        if job.state == "done" and job.fence == running.held.fence:
            self._done(running, job)
            return
        if job.state == "cancelled":
            self._end_runs(job, "KILLED")
        self.listener.failed(job, error, "lost" if job.state in LIVE else job.state)

    def _failed(self, running: Running, error: Exception, *, may_heal: bool) -> None:
        told, here = _both(error)
        try:
            with self.services.sessions.begin() as session:
                state = queue.fail(session, running.held, told, here, may_heal=may_heal)
        except LeaseLost as lost:
            self._lost(running, lost)
            return
        if state in DEAD:
            self._end_runs(running.job, "FAILED")
        self.listener.failed(running.job, error, state)

    def _given_back(self, running: Running, error: RayUnavailable) -> None:
        """Nothing is wrong with the job: it waits for Ray, and keeps its attempts."""
        told, here = _both(error)
        delay = min(RAY_LONGEST_SECONDS, RAY_AGAIN_SECONDS * 2.0**self._ray_tries)
        self._without_ray, self._ray_tries = error, self._ray_tries + 1
        try:
            with self.services.sessions.begin() as session:
                state = queue.release(session, running.held, told, delay, here)
        except LeaseLost as lost:
            self._lost(running, lost)
            return
        if state == "cancelled":
            self._end_runs(running.job, "KILLED")
        self.listener.failed(running.job, error, state)

    def _job(self, running: Running) -> JobRecord:
        with self.services.sessions.read() as session:
            return queue.get(session, running.job.id)

    def _end_runs(self, job: JobRecord, status: str) -> None:
        held = Claim(job, self.owner, job.fence, 0)
        self.drivers.end_runs(Order.of(self.services, held, Share(1)), status)


def _both(error: Exception) -> tuple[str, str | None]:
    """→ an error's words for everybody, and those for who sits at this machine, where they say more"""
    told, whole = words_of(error), str(error)
    return told, whole if whole != told else None
