"""What a worker does about its drivers: real processes, which do the smallest of jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestration import failpoints, hearts, queue
from orchestration import worker as supervision
from orchestration.errors import DriverDied, NeverFits, Requested, TimedOut
from orchestration.jobs import Capacity, JobRecord, Order
from orchestration.queue import holding
from orchestration.services import Services
from orchestration.worker import Worker
from tests import learning_world as world

pytestmark = pytest.mark.timeout(60)
TWO = Capacity(2, 0, 4 << 30)


@pytest.fixture
def space(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """A workspace in which retries, requests and heartbeats wait for nothing."""
    monkeypatch.setattr(holding, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(hearts, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(supervision, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(supervision, "TERM_SECONDS", 0.5)
    monkeypatch.setattr(supervision, "IDLE_SECONDS", 0.1)
    return services


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def submit(services: Services, kind: str = "verify", **given: Any) -> str:
    with services.sessions.begin() as session:
        [record] = queue.enqueue_all(session, [Order(str(uuid.uuid4()), kind, **given)])
    return record.id


def outcomes(services: Services, job_id: str) -> list[str | None]:
    with services.sessions.read() as session:
        return [attempt.outcome for attempt in queue.attempts(session, job_id)]


class Doing(world.Heard):
    """Does something once a driver says what it is doing, or is done."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def done(self, job: JobRecord, result: dict[str, Any]) -> None:
        super().done(job, result)
        self.act()


def test_a_job_that_trains_nothing_needs_no_ray_and_its_result_stays_with_it(space: Services) -> None:
    job = submit(space)
    heard = world.Heard()
    assert Worker(space, heard).drain() == 1
    ((told, result),) = heard.results
    assert (told.id, result["findings"]) == (job, [])
    kept = world.job(space, job)
    assert kept.state == "done"
    assert kept.progress == {"result": result}
    log = space.runs / job / "attempt-1" / "driver.log"
    assert log.read_text() == ""


def test_what_a_job_is_doing_is_recorded_while_it_does_it(
    space: Services, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"before-commit=pause@{mark}")
    job = submit(space)
    seen: list[str] = []

    def look() -> None:
        until = time.monotonic() + 60
        while not (seen and mark.exists()) and time.monotonic() < until:
            seen[:] = filter(None, [world.job(space, job).doing])
            time.sleep(0.05)
        mark.unlink()

    looking = threading.Thread(target=look)
    looking.start()
    assert Worker(space, world.Heard()).drain() == 1
    looking.join()
    assert seen == ["reading every row and every byte"]
    assert world.job(space, job).doing == ""


def test_a_driver_that_is_killed_is_tried_again_with_the_signal_as_the_reason(
    space: Services, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"started=kill@{mark}")
    job = submit(space)
    heard = world.Heard()
    assert Worker(space, heard).drain() == 1
    ((_, error, state),) = heard.failures
    assert isinstance(error, DriverDied)
    assert (state, "SIGKILL" in str(error)) == ("queued", True)
    assert outcomes(space, job) == ["failed", "done"]


def test_a_driver_that_dies_right_after_its_commit_has_done_its_job(
    space: Services, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"after-commit=kill@{mark}")
    job = submit(space)
    heard = world.Heard()
    assert Worker(space, heard).drain() == 1
    assert (heard.failures, outcomes(space, job)) == ([], ["done"])


def test_jobs_that_fit_run_side_by_side(space: Services, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first waits until the second is done, which one after the other would never be."""
    monkeypatch.setenv(failpoints.VARIABLE, f"started=pause@{mark}")
    first, second = submit(space), submit(space)
    heard = Doing(lambda: mark.unlink(missing_ok=True))
    worker = Worker(space, heard, given=TWO)
    assert worker.drain() == 2
    assert {job.id for job, _ in heard.results} == {first, second}


@pytest.mark.parametrize(("ask", "state"), [(queue.cancel, "cancelled"), (queue.pause, "paused")])
def test_a_driver_that_does_not_hear_a_request_is_ended_and_the_job_is_where_it_was_asked_to_be(
    space: Services, mark: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., Any], state: str
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"started=pause@{mark}")
    both = {submit(space), submit(space)}

    def now() -> None:
        with space.sessions.begin() as session:
            for job in queue.list_all(session, ["running"]):
                ask(session, job.id)

    heard = Doing(now)
    assert Worker(space, heard, given=TWO).drain() == 1
    ((stuck, error, told),) = heard.failures
    assert (told, isinstance(error, Requested)) == (state, True)
    assert (world.job(space, stuck.id).state, outcomes(space, stuck.id)) == (state, [state])
    assert {job.id for job, _ in heard.results} == both - {stuck.id}


def test_an_attempt_that_takes_too_long_is_ended_and_told(
    space: Services, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"started=pause@{mark}")
    job = submit(space, timeout_seconds=1.0, max_attempts=1)
    heard = world.Heard()
    assert Worker(space, heard).drain() == 0
    ((_, error, state),) = heard.failures
    assert (isinstance(error, TimedOut), state) == (True, "dead")
    assert "took longer than the 1 s" in str(world.job(space, job).error)


def test_what_no_worker_here_can_hold_is_told_and_not_waited_for(space: Services) -> None:
    job = submit(space, cpus=64.0)
    heard = world.Heard()
    assert Worker(space, heard, given=TWO).drain() == 0
    ((_, error, state),) = heard.failures
    assert (isinstance(error, NeverFits), state) == (True, "unfit")
    assert "needs 64 processors" in str(error)
    assert world.job(space, job).state == "queued"  # a larger worker may still come


def test_a_lease_that_was_lost_ends_the_driver_and_writes_nothing(
    space: Services, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f"started=pause@{mark}")
    submit(space), submit(space)

    def another_takes_it() -> None:
        with space.sessions.begin() as session:
            queue.owners_gone(session, ["mine"])
            queue.give_up(session)
            held = queue.claim(session, "another")
            assert held is not None
            queue.complete(session, held)

    heard = Doing(another_takes_it)
    assert Worker(space, heard, "mine", given=TWO).drain() == 1
    ((taken, _, state),) = heard.failures
    assert state == "done"
    assert outcomes(space, taken.id) == ["lost", "done"]


SERVE = """
import sys
import threading
from pathlib import Path
from orchestration.worker import Worker
from tests import learning_world as world
Worker(world.open_space(Path(sys.argv[1])), world.Heard()).drain()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_no_process_outlives_its_worker(space: Services, mark: Path, number: int) -> None:
    job = submit(space)
    word = uuid.uuid4().hex
    told = {failpoints.VARIABLE: f"started=pause@{mark}", "AFFINERY_TEST_MARK": word}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(space.runs.parent)],
        env=os.environ | told | {"PYTHONPATH": str(Path.cwd())},
        stderr=subprocess.DEVNULL,
    )
    while not mark.exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert len(left_of(word)) == 2
    process.send_signal(number)
    if number == signal.SIGINT:
        while not list(space.runs.glob("*/attempt-*/request")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # a second one waits for nothing
    process.wait(60)
    until = time.monotonic() + 10
    while left_of(word) and time.monotonic() < until:
        time.sleep(0.05)
    assert left_of(word) == []
    assert world.job(space, job).state in ("running", "queued")


def left_of(word: str) -> list[str]:
    """Processes that inherited the word and are not buried yet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if word.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
