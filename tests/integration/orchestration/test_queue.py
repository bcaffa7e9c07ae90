"""The queue: what is accepted is done once, in order, whatever dies. Real SQLite, real processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import update

from orchestration import owners, queue
from orchestration.errors import JobNotFound, LeaseLost, NeedNotMet, TaskIsBusy, TasksDoNotMatch, WorkersDied
from orchestration.jobs import Claim, JobRecord
from orchestration.queue import history
from registry import backbones, tasks
from registry.columns import utc_now
from registry.models import Attempt, Job
from registry.session import Sessions, connect, sessions
from tests import registry_world as recorded

NAMES = ("a", "b", "c", "d")
T = TypeVar("T")


@pytest.fixture
def line(sqlite_url: str) -> Iterator[Sessions]:
    """A registry with four tasks on one backbone, and none queued."""
    engine = connect(sqlite_url)
    made = sessions(engine)
    with made.begin() as session:
        recorded.backbone(session)
        for name in NAMES:
            recorded.task(session, name)
    yield made
    engine.dispose()


def put(line: Sessions, *names: str, **given: Any) -> JobRecord:
    with line.begin() as session:
        return queue.enqueue(session, names, {"steps": 1}, **given)


def take(line: Sessions, owner: str = "me", lease_seconds: float = 60) -> Claim:
    held = take_if_any(line, owner, lease_seconds)
    assert held is not None
    return held


def take_if_any(line: Sessions, owner: str = "me", lease_seconds: float = 60) -> Claim | None:
    with line.begin() as session:
        queue.give_up(session)
        return queue.claim(session, owner, lease_seconds=lease_seconds)


def within(line: Sessions, do: Callable[..., T], *given: Any, **named: Any) -> T:
    with line.begin() as session:
        return do(session, *given, **named)


def now_due(line: Sessions, job: str) -> None:
    """Moves a job's time forward to now, as waiting would."""
    with line.begin() as session:
        session.execute(update(Job).where(Job.id == job).values(run_at=utc_now()))


def state(line: Sessions, job: str) -> str:
    with line.read() as session:
        return queue.get(session, job).state


def outcomes(line: Sessions, job: str) -> list[str | None]:
    with line.read() as session:
        return [row.outcome for row in session.query(Attempt).filter_by(job_id=job).order_by(Attempt.number)]


# --- order ---


def test_jobs_are_taken_in_the_order_in_which_they_were_accepted(line: Sessions) -> None:
    accepted = [put(line, name).id for name in NAMES]
    assert [take(line).job.id for _ in NAMES] == accepted
    assert take_if_any(line) is None


def test_a_job_of_higher_priority_is_taken_first(line: Sessions) -> None:
    put(line, "a")
    urgent = put(line, "b", priority=5)
    assert take(line).job.id == urgent.id


def test_a_job_waits_until_all_that_it_needs_is_done(line: Sessions) -> None:
    first, second = put(line, "a"), put(line, "b")
    last = put(line, "c", after=[first.id, second.id], priority=9)
    one, two = take(line), take(line)
    assert {one.job.id, two.job.id} == {first.id, second.id}
    within(line, queue.complete, one)
    assert take_if_any(line) is None
    within(line, queue.complete, two)
    assert take(line).job.id == last.id


def test_a_job_may_be_named_by_the_beginning_of_its_id_but_not_by_nothing(line: Sessions) -> None:
    made = put(line, "a")
    with line.read() as session:
        assert queue.get(session, made.id[:8]).id == made.id
        for wrong in ("", "zz", "%", "_"):
            with pytest.raises(JobNotFound):
                queue.get(session, wrong)


# --- what is refused ---


def test_a_task_with_a_live_job_is_not_queued_again(line: Sessions) -> None:
    put(line, "a")
    with pytest.raises(TaskIsBusy, match="'a' is scheduled already"):
        put(line, "b", "a")
    held = take(line)
    with pytest.raises(TaskIsBusy, match="'a' is learning already"):
        put(line, "a")
    within(line, queue.complete, held)
    assert put(line, "a").state == "queued"


def test_tasks_of_different_kinds_train_together(line: Sessions) -> None:
    with line.begin() as session:
        source = recorded.dataset(session, "slow")
        tasks.register(session, name="slow", backbone="dit", dataset=source.ref, kind="full", config={})
    put(line, "a", "slow")
    with line.read() as session:
        assert [job.tasks for job in queue.list_all(session)] == [("a", "slow")]


def test_tasks_named_twice_or_none_at_all_or_of_two_backbones_do_not_train_together(line: Sessions) -> None:
    with line.begin() as session:
        recorded.backbone(session, "other")
        recorded.task(session, "elsewhere", on="other")
    for names, reason in (
        (("a", "a"), "'a' is named twice"),
        ((), "no task"),
        (("a", "elsewhere"), "'elsewhere' is on other@1, but 'a' is on dit@1"),
    ):
        with pytest.raises(TasksDoNotMatch, match=reason):
            put(line, *names)
    with line.read() as session:
        assert queue.list_all(session) == []


def test_a_job_cannot_be_scheduled_after_one_that_will_never_be_done(line: Sessions) -> None:
    first = put(line, "a")
    within(line, queue.cancel, first.id)
    with pytest.raises(NeedNotMet, match=r"\(a\), which is cancelled"):
        put(line, "b", after=[first.id])
    with pytest.raises(JobNotFound):
        put(line, "b", after=["nonsense"])


# --- how long it takes ---


def test_what_a_training_takes_is_told_by_its_steps_and_by_what_every_training_takes_beside(
    line: Sessions,
) -> None:
    begun = utc_now()
    for names, steps, a_step, took in ((["a"], 4, 0.5, 72), (["b"], 600, 0.25, 210), (["c", "d"], 10, 1, 80)):
        job = within(line, queue.enqueue, names, {"steps": steps})
        held = take(line)
        told = {"step": steps, "of": steps, "losses": {}, "seconds_a_step": a_step}
        within(line, queue.heartbeat, held, told)
        within(line, queue.complete, held)
        with line.begin() as session:
            times = {"started_at": begun, "ended_at": begun + timedelta(seconds=took)}
            session.execute(update(Attempt).where(Attempt.job_id == job.id).values(times))
    with line.read() as session:
        found = history.pace(session, backbones.get(session, "dit").node_id)
    assert found == history.Pace(step_seconds=0.5, beside_seconds=70, jobs=3)
    assert found.seconds(600, tasks=2) == 70 + 0.5 * 600 * 2


def test_a_training_of_which_no_step_was_timed_measures_nothing(line: Sessions) -> None:
    within(line, queue.enqueue, ["a"], {"steps": 4})
    within(line, queue.complete, take(line))
    with line.read() as session:
        assert history.pace(session, backbones.get(session, "dit").node_id) is None


# --- leases and fences ---


def test_a_lease_that_ran_out_is_claimed_by_another_with_a_higher_fence(line: Sessions) -> None:
    put(line, "a")
    first = take(line, "one", lease_seconds=0)
    second = take(line, "two")
    assert second.job.id == first.job.id
    assert second.fence == first.fence + 1
    assert outcomes(line, first.job.id) == ["lost", None]
    assert take_if_any(line, "three") is None


def test_a_worker_that_was_thought_dead_can_neither_beat_nor_end_the_job_that_another_holds(
    line: Sessions,
) -> None:
    put(line, "a")
    stale = take(line, "one", lease_seconds=0)
    held = take(line, "two")
    for write in (
        lambda: within(line, queue.heartbeat, stale, {"step": 1}),
        lambda: within(line, queue.complete, stale),
        lambda: within(line, queue.release, stale),
        lambda: within(line, queue.fail, stale, "too late", may_heal=True),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert state(line, held.job.id) == "running"
    assert outcomes(line, held.job.id) == ["lost", None]
    within(line, queue.complete, held)


def test_a_heartbeat_keeps_a_job_and_tells_its_progress(line: Sessions) -> None:
    put(line, "a")
    held = take(line, "one", lease_seconds=0)
    within(line, queue.heartbeat, held, {"step": 3, "of": 9})
    assert take_if_any(line, "two") is None
    with line.read() as session:
        assert queue.get(session, held.job.id).progress == {"step": 3, "of": 9}


def test_a_cancelled_job_is_noticed_at_the_next_heartbeat(line: Sessions) -> None:
    put(line, "a")
    held = take(line)
    within(line, queue.cancel, held.job.id)
    assert within(line, queue.heartbeat, held) == "cancel"
    within(line, queue.cancelled, held)
    assert take_if_any(line) is None
    assert outcomes(line, held.job.id) == ["cancelled"]
    assert put(line, "a").state == "queued"


def test_cancelling_what_is_over_changes_nothing(line: Sessions) -> None:
    put(line, "a")
    held = take(line)
    within(line, queue.complete, held)
    assert within(line, queue.cancel, held.job.id).state == "done"


def test_a_job_given_back_is_the_next_ones_at_once_and_no_failure(line: Sessions) -> None:
    put(line, "a")
    for _ in range(2 * queue.MAX_ATTEMPTS):
        within(line, queue.release, take(line))
    held = take(line)
    assert held.failures == 0
    assert within(line, queue.fail, held, "the network", may_heal=True) == "queued"


# --- failures ---


def test_what_may_heal_is_tried_again_after_a_growing_delay_until_it_is_too_often(line: Sessions) -> None:
    job = put(line, "a").id
    delays, ended = [], ""
    for number in range(1, queue.MAX_ATTEMPTS + 1):
        held = take(line)
        before = utc_now()
        ended = within(line, queue.fail, held, f"try {number}", may_heal=True)
        with line.read() as session:
            row = session.get_one(Job, job)
            delays.append(round((row.run_at - before).total_seconds()))
        if number < queue.MAX_ATTEMPTS:
            assert ended == "queued"
            assert take_if_any(line) is None
            now_due(line, job)
    assert ended == "dead"
    assert all(d / 2 <= found <= d for found, d in zip(delays, [10, 20, 40, 80], strict=False))
    with line.read() as session:
        assert queue.get(session, job).error == f"try {queue.MAX_ATTEMPTS}"
        assert tasks.get(session, "a").state == "failed"


def test_what_would_fail_again_is_not_tried_again(line: Sessions) -> None:
    put(line, "a")
    assert within(line, queue.fail, take(line), "no such class", may_heal=False) == "dead"
    assert take_if_any(line) is None


def test_jobs_that_wait_for_a_failed_one_fail_with_it_and_say_why(line: Sessions) -> None:
    first = put(line, "a")
    second = put(line, "b", after=[first.id])
    third = put(line, "c", after=[second.id])
    within(line, queue.fail, take(line), "the loss is no number", may_heal=False)
    given_up = within(line, queue.give_up)
    assert [job.id for job, _ in given_up] == [second.id, third.id]
    assert isinstance(given_up[0][1], NeedNotMet)
    assert "the loss is no number" in str(given_up[0][1])
    assert [state(line, job.id) for job in (first, second, third)] == ["dead"] * 3
    assert within(line, queue.give_up) == []


def test_cancelling_a_job_ends_those_that_were_to_run_after_it(line: Sessions) -> None:
    first = put(line, "a")
    second = put(line, "b", after=[first.id])
    within(line, queue.cancel, first.id)
    within(line, queue.give_up)
    assert (state(line, first.id), state(line, second.id)) == ("cancelled", "dead")


def test_a_job_that_its_workers_do_not_outlive_is_given_up(line: Sessions) -> None:
    job = put(line, "a").id
    for _ in range(queue.MAX_ATTEMPTS):
        assert within(line, queue.give_up) == []
        take(line, lease_seconds=0)
    ((given_up, error),) = within(line, queue.give_up)
    assert given_up.id == job
    assert isinstance(error, WorkersDied)
    assert "5 workers were lost" in str(error)
    assert take_if_any(line) is None


# --- the same request twice ---


def test_the_same_key_gives_the_same_job(line: Sessions) -> None:
    first = put(line, "a", key="once")
    assert put(line, "a", key="once").id == first.id
    within(line, queue.complete, take(line))
    assert put(line, "a", key="once").id == first.id


def _enqueue(url: str, gate: Any, answers: Any) -> None:
    made = sessions(connect(url))
    gate.wait()
    with made.begin() as session:
        answers.put(queue.enqueue(session, ["a"], {}, key="once").id)


def test_two_processes_with_one_key_at_once_get_one_job(line: Sessions, sqlite_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=_enqueue, args=(sqlite_url, gate, answers)) for _ in range(2)]
    for each in both:
        each.start()
    found = {answers.get(timeout=60) for _ in both}
    for each in both:
        each.join()
    with line.read() as session:
        assert {job.id for job in queue.list_all(session)} == found


def _claim(url: str, owner: str, gate: Any, answers: Any) -> None:
    made = sessions(connect(url))
    gate.wait()
    taken = []
    while (held := take_if_any(made, owner)) is not None:
        taken.append(held.job.id)
    answers.put(taken)


def test_no_job_is_taken_by_two_workers_at_once(line: Sessions, sqlite_url: str) -> None:
    accepted = {put(line, name).id for name in NAMES}
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Barrier(3), context.Queue()
    crowd = [context.Process(target=_claim, args=(sqlite_url, f"w{i}", gate, answers)) for i in range(3)]
    for each in crowd:
        each.start()
    taken = [job for _ in crowd for job in answers.get(timeout=60)]
    for each in crowd:
        each.join()
    assert sorted(taken) == sorted(accepted)


# --- owners ---


def test_the_job_of_a_worker_of_this_machine_that_died_is_free_at_once(line: Sessions) -> None:
    put(line, "a")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner = f"{socket.gethostname()}:{child.pid}:{owners.started(child.pid)}"
    take(line, owner)
    assert not owners.is_dead(owner)
    child.kill()
    child.wait()
    assert owners.is_dead(owner)
    within(line, queue.owners_gone, [owner])
    assert take(line, "another").fence == 2


def test_a_number_that_another_process_has_by_now_is_not_taken_for_the_dead_worker(line: Sessions) -> None:
    now = owners.started(os.getpid())
    assert owners.is_dead(f"{socket.gethostname()}:{os.getpid()}:{int(now) - 1}")
    assert not owners.is_dead(owners.own_name())


def test_of_workers_elsewhere_only_the_lease_tells() -> None:
    assert not owners.is_dead("another-host:1:1")
    assert not owners.is_dead("a name that somebody chose")


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    owner = f"{socket.gethostname()}:{child.pid}:{owners.started(child.pid)}"
    deadline = time.monotonic() + 30
    while " Z " not in Path(f"/proc/{child.pid}/stat").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert owners.is_dead(owner)
    child.wait()
