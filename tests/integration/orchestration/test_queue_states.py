"""Whatever is asked of the queue in whatever order, its jobs stand where a simple model of it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text, update

from orchestration import queue
from orchestration.errors import JobIsOver, LeaseLost, NeedNotMet, TaskIsBusy
from orchestration.jobs import Claim
from orchestration.queue import clock
from registry import tasks
from registry.columns import utc_now
from registry.models import Job
from registry.session import Sessions
from tests import registry_world as recorded

NAMES = ("a", "b", "c", "d")
MOST = 3
_numbers = count(1)
_END_ALL = text(
    "UPDATE job SET state = 'cancelled', lease_expires_at = NULL, request = NULL, lost_need_id = NULL "
    "WHERE state IN ('queued', 'running', 'paused')"
)


@dataclass
class Told:
    """What the model knows of a job."""

    task: str
    needs: tuple[str, ...]
    state: str = "queued"
    fence: int = 0
    failures: int = 0
    generation: int = 0
    attempts: int = 0
    priority: int = 0
    request: str | None = None
    expired: bool = False
    delayed: bool = False


@dataclass
class Model:
    """Jobs by id, in the order in which they were accepted."""

    jobs: dict[str, Told] = field(default_factory=dict)

    def live(self, task: str) -> bool:
        return any(
            job.task == task and job.state in ("queued", "running", "paused") for job in self.jobs.values()
        )

    def lost_need(self, job: Told) -> bool:
        return any(self.jobs[need].state in ("dead", "cancelled") for need in job.needs)

    def running(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if job.state == "running"]

    def next(self) -> str | None:
        ready = [
            (-job.priority, place, job_id)
            for place, (job_id, job) in enumerate(self.jobs.items())
            if job.state == "queued"
            and not job.delayed
            and all(self.jobs[need].state == "done" for need in job.needs)
        ]
        return min(ready)[2] if ready else None

    def give_up(self) -> set[str]:
        dead = set()
        for job_id, job in self.jobs.items():
            if job.state == "running" and job.expired:
                job.failures += 1
                if job.request is not None:
                    job.state = {"cancel": "cancelled", "pause": "paused"}[job.request]
                elif job.failures >= MOST:
                    job.state = "dead"
                    dead.add(job_id)
                else:
                    job.state = "queued"
                job.request, job.expired = None, False
        while hopeless := {
            job_id
            for job_id, job in self.jobs.items()
            if job.state in ("queued", "paused") and self.lost_need(job)
        }:
            for job_id in hopeless:
                self.jobs[job_id].state = "dead"
            dead |= hopeless
        return dead


def machine(ledger: Sessions) -> type[RuleBasedStateMachine]:  # noqa: C901 - one rule a use case
    """The machine on one database; every run has tasks of its own, and leaves no job alive."""

    class Queue(RuleBasedStateMachine):
        jobs = Bundle("jobs")
        claims = Bundle("claims")

        def __init__(self) -> None:
            super().__init__()
            self.model = Model()
            self.held: dict[str, Claim] = {}
            self.salt = f"-{next(_numbers)}"
            with ledger.begin() as session:
                session.execute(_END_ALL)
                for name in NAMES:
                    recorded.task(session, name + self.salt)

        def do(self, what: Callable[..., Any], *given: Any, **named: Any) -> Any:
            with ledger.begin() as session:
                return what(session, *given, **named)

        @initialize(target=jobs)
        def chain(self) -> Any:
            """One after the other."""
            made: list[str] = []
            for name in NAMES[:3]:
                made.append(self.enqueue_one(name, made[-1:], 0))
            return multiple(*made)

        @rule(
            target=jobs,
            name=st.sampled_from(NAMES),
            needs=st.lists(jobs, min_size=1, max_size=2) | st.just([]),
            priority=st.integers(0, 2),
            later=st.booleans(),
        )
        def enqueue(self, name: str, needs: list[str], priority: int, later: bool) -> Any:
            error: type[Exception] | None = None
            if self.model.live(name):
                error = TaskIsBusy
            elif any(self.model.jobs[need].state in ("dead", "cancelled") for need in needs):
                error = NeedNotMet
            if error is not None:
                with pytest.raises(error):
                    self.enqueue_one(name, needs, priority, later=later)
                return multiple()
            return self.enqueue_one(name, needs, priority, later=later)

        def enqueue_one(self, name: str, needs: list[str], priority: int, *, later: bool = False) -> str:
            given: dict[str, Any] = {"after": needs, "priority": priority, "max_attempts": MOST}
            if later:
                given["run_at"] = utc_now() + timedelta(days=1)
            made = str(self.do(queue.enqueue, [name + self.salt], {}, **given).id)
            self.model.jobs[made] = Told(name, tuple(dict.fromkeys(needs)), priority=priority, delayed=later)
            return made

        @rule(target=claims, alone=st.booleans())
        def claim(self, alone: bool) -> Any:
            held = self.claim_next(alone=alone)
            return multiple() if held is None else held

        def claim_next(self, *, alone: bool = False) -> Claim | None:
            """alone: in a transaction of its own."""
            held: Claim | None = queue.take(ledger, "me") if alone else self.do(queue.claim, "me")
            wanted = self.model.next()
            assert (held and held.job.id) == wanted
            if held is None or wanted is None:
                return None
            job = self.model.jobs[wanted]
            job.state, job.fence, job.attempts, job.expired = (
                "running",
                job.fence + 1,
                job.attempts + 1,
                False,
            )
            assert (held.fence, held.attempt, held.failures) == (job.fence, job.attempts, job.failures)
            self.held[wanted] = held
            return held

        @rule(times=st.integers(1, 3))
        def work(self, times: int) -> None:
            """What a worker does most of the time."""
            for _ in range(times):
                held = self.claim_next()
                if held is not None:
                    self.end_held(held, "finish")

        def holds(self, held: Claim) -> bool:
            job = self.model.jobs[held.job.id]
            return job.state == "running" and job.fence == held.fence

        @rule(held=claims)
        def heartbeat(self, held: Claim) -> None:
            self.beat(held)

        def beat(self, held: Claim) -> None:
            if not self.holds(held):
                with pytest.raises(LeaseLost):
                    self.do(queue.heartbeat, held, {"step": 1})
                return
            assert self.do(queue.heartbeat, held, {"step": 1}) == self.model.jobs[held.job.id].request
            self.model.jobs[held.job.id].expired = False

        @rule(
            held=claims,
            how=st.sampled_from(
                ["complete", "finish", "fail", "fail for good", "release", "cancelled", "paused"]
            ),
            look=st.booleans(),
        )
        def end(self, held: Claim, how: str, look: bool) -> None:
            self.end_held(held, how)
            if look:
                self.look()

        def end_held(self, held: Claim, how: str) -> None:
            word, _, good = how.partition(" ")
            named = {"may_heal": not good} if word == "fail" else {}
            given = ("it broke",) if word == "fail" else ()

            def act() -> None:
                if word == "finish":
                    queue.finish(ledger, held)
                else:
                    self.do(getattr(queue, word), held, *given, **named)

            if not self.holds(held):
                with pytest.raises(LeaseLost):
                    act()
                return
            act()
            job = self.model.jobs[held.job.id]
            asked = {"cancel": "cancelled", "pause": "paused"}.get(job.request or "")
            if word == "fail":
                job.failures += 1
                again = not good and job.failures < MOST
                job.state = asked or ("queued" if again else "dead")
                job.delayed = again
            elif word == "release":
                job.state = asked or "queued"
            else:
                job.state = {"complete": "done", "finish": "done"}.get(word, word)
            job.request, job.expired = None, False

        @rule()
        @precondition(lambda self: self.model.running())
        def expire(self) -> None:
            """As waiting for the end of their leases would."""
            self.do(queue.owners_gone, ["me"])
            for other in self.model.jobs.values():
                other.expired = other.state == "running"

        @rule(
            which=st.integers(0, 3),
            word=st.sampled_from(["complete", "finish", "fail", "release", "paused", "heartbeat"]),
        )
        @precondition(lambda self: self.model.running())
        def outlive(self, which: int, word: str) -> None:
            """A worker is taken for dead, others take what they can, and it writes all the same."""
            running = self.model.running()
            stale = self.held[running[which % len(running)]]
            self.expire()
            self.look()
            while self.claim_next() is not None:
                pass
            if word == "heartbeat":
                self.beat(stale)
            else:
                self.end_held(stale, word)

        @rule(by_request=st.booleans())
        @precondition(lambda self: self.model.next() is not None)
        def pause_the_next(self, by_request: bool) -> None:
            """It is not taken, however often work is asked for: not before it begins, not once it let go."""
            paused = self.model.next()
            assert paused is not None
            if by_request:
                held = self.claim_next()
                assert held is not None
                self.hold_back(paused, "pause")
                self.end_held(held, "release")
            else:
                self.hold_back(paused, "pause")
            assert self.model.jobs[paused].state == "paused"
            self.claim_next()

        @rule(job_id=jobs)
        def wait(self, job_id: str) -> None:
            """As waiting for the end of a retry's delay would."""
            now = clock.now()
            self.do(lambda session: session.execute(update(Job).where(Job.id == job_id).values(run_at=now)))
            self.model.jobs[job_id].delayed = False

        @rule()
        def give_up(self) -> None:
            self.look()

        def look(self) -> None:
            given_up = self.do(queue.give_up)
            assert {job.id for job, _ in given_up} == self.model.give_up()

        @rule(job_id=jobs, look=st.booleans())
        def cancel(self, job_id: str, look: bool) -> None:
            job = self.model.jobs[job_id]
            self.do(queue.cancel, job_id, "somebody")
            if job.state == "running":
                job.request = "cancel"
            elif job.state in ("queued", "paused"):
                job.state = "cancelled"
            if look:
                self.look()

        @rule(job_id=jobs, how=st.sampled_from(["pause", "resume"]))
        def hold_back(self, job_id: str, how: str) -> None:
            job = self.model.jobs[job_id]
            if job.state in ("done", "dead", "cancelled"):
                with pytest.raises(JobIsOver):
                    self.do(getattr(queue, how), job_id)
                return
            self.do(getattr(queue, how), job_id)
            if how == "pause" and job.state == "running":
                job.request = job.request or "pause"
            elif how == "pause":
                job.state = "paused"
            elif job.state == "paused":
                job.state, job.delayed = "queued", False
            elif job.request == "pause":
                job.request = None

        @rule(job_id=jobs)
        def retry(self, job_id: str) -> None:
            job = self.model.jobs[job_id]
            if job.state not in ("dead", "cancelled"):
                error: type[Exception] | None = JobIsOver
            elif self.model.live(job.task):
                error = TaskIsBusy
            else:
                error = NeedNotMet if self.model.lost_need(job) else None
            if error is not None:
                with pytest.raises(error):
                    self.do(queue.retry, job_id)
                return
            self.do(queue.retry, job_id)
            job.state, job.failures, job.generation, job.delayed = "queued", 0, job.generation + 1, False

        @rule(job_id=jobs, priority=st.integers(0, 3))
        def prioritise(self, job_id: str, priority: int) -> None:
            job = self.model.jobs[job_id]
            if job.state in ("done", "dead", "cancelled"):
                with pytest.raises(JobIsOver):
                    self.do(queue.prioritise, job_id, priority)
                return
            self.do(queue.prioritise, job_id, priority)
            job.priority = priority

        @invariant()
        def every_job_stands_where_the_model_says(self) -> None:
            with ledger.read() as session:
                found = queue.by_ids(session, list(self.model.jobs))
                ended = {job_id: queue.attempts(session, job_id) for job_id in self.model.jobs}
            for job in found:
                told = self.model.jobs[job.id]
                assert (job.state, job.fence, job.request) == (told.state, told.fence, told.request)
                assert (job.failures, job.generation, job.attempts) == (
                    told.failures,
                    told.generation,
                    told.attempts,
                )
                assert job.waits == sum(self.model.jobs[need].state != "done" for need in told.needs)
                open_tries = [each for each in ended[job.id] if each.ended_at is None]
                assert len(ended[job.id]) == told.attempts
                assert len(open_tries) == (told.state == "running")
                assert (job.owner is None) == (told.state != "running")

        def teardown(self) -> None:
            with ledger.read() as session:
                states = {name: tasks.get(session, name + self.salt).state for name in NAMES}
            for name in NAMES:
                assert (states[name] in ("scheduled", "learning", "paused")) == self.model.live(name)

    return Queue


@pytest.fixture
def started(ledger: Sessions) -> Sessions:
    with ledger.begin() as session:
        recorded.backbone(session)
    return ledger


@pytest.mark.slow
def test_the_queue_is_what_its_model_says_whatever_is_asked_of_it(started: Sessions) -> None:
    run_state_machine_as_test(
        machine(started),
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],  # to make a failure smaller, add Phase.shrink: it takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
