"""Commands and workers of the queue as people run them: each in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, select, update

import affinery_app.wiring as wiring
from orchestration import queue
from orchestration.jobs import Order
from orchestration.queue import clock, schedules
from orchestration.queue.waiting import Bell
from registry.models import Event, Schedule
from registry.session import Sessions
from tests import registry_world as recorded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
POINT = "AFFINERY_FAILPOINT"


def command(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "affinery_app.cli.main", *words, "--workspace", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | variables,
    )


def until(process: subprocess.Popen[str], words: str) -> str:
    """Reads what it says up to these words. → all of it"""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    wiring.create_workspace(tmp_path / "space")
    return tmp_path / "space"


@pytest.fixture
def space(folder: Path) -> Iterator[wiring.Workspace]:
    made = wiring.open_workspace(folder)
    yield made
    made.sessions.engine.dispose()


def test_logs_and_watch_follow_a_job_from_its_queue_to_its_end(
    folder: Path, space: wiring.Workspace, tmp_path: Path
) -> None:
    with space.sessions.begin() as session:
        queue.enqueue_all(session, [Order("one", kind="verify")])
    mark = tmp_path / "mark"
    logs, watch = command(folder, "job", "logs", "1", "-f"), command(folder, "job", "watch", "--every", "0.1")
    until(watch, "queued")
    worker = command(folder, "worker", **{POINT: f"before-commit=raise@{mark}"})
    said = until(watch, "running")
    told, _ = logs.communicate(timeout=200)
    said += watch.communicate(timeout=60)[0]
    ended(worker)
    assert (logs.returncode, watch.returncode) == (0, 0), told + said
    assert "Attempt 1: failed. Failpoint 'before-commit' was reached" in told
    assert "Traceback" in told, "what the attempt wrote stands there in full"
    assert told.index("Attempt 1: failed") < told.index("Attempt 2: done") < told.index("Job 1 is done")
    assert "done" in said.splitlines()[-1]


def test_a_worker_waits_for_a_postgresql_that_is_not_there_yet_and_run_says_so_at_once(
    folder: Path, postgresql_url: str
) -> None:
    parsed = make_url(postgresql_url)
    place = Path(tempfile.mkdtemp(prefix="affinery-")) / "server"
    url = parsed.update_query_dict({"host": str(place)}).render_as_string(hide_password=False)
    away = {"AFFINERY_REGISTRY_URL": url}
    try:
        run = command(folder, "run", **away)
        said, _ = run.communicate(timeout=100)
        assert run.returncode == 1
        assert "does not answer" in said
        assert "Start the database" in said
        worker = command(folder, "worker", **away)
        until(worker, "waiting for the registry")
        place.symlink_to(str(parsed.query["host"]))
        until(worker, "waiting for jobs")
        ended(worker)
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)


def test_of_two_workers_one_fires_a_schedule_and_its_job_is_taken_once(
    folder: Path, space: wiring.Workspace
) -> None:
    with space.sessions.begin() as session:
        recorded.backbone(session)
        recorded.task(session, "digits")
        schedules.add(session, "nightly", "0 3 * * *", ["digits"], {"steps": 2})
    workers = [command(folder, "worker", "--json", "--cpus", "0.1") for _ in range(2)]  # too small to run it
    for worker in workers:
        until(worker, "waiting for jobs")
    with space.sessions.begin() as session:
        session.execute(update(Schedule).values(next_run_at=clock.later(-3600)))
    fired: list[str] = []
    while not fired:
        time.sleep(0.1)
        with space.sessions.read() as session:
            fired = [job.id for job in queue.list_all(session)]
    for worker in workers:
        ended(worker)
    with space.sessions.read() as session:
        told = session.scalars(select(Event.payload).where(Event.kind == "schedule.fired")).all()
        assert [each["jobs"] for each in told] == [fired]
        assert [job.tasks for job in queue.list_all(session)] == [("digits",)]


def test_an_idle_worker_hears_of_a_job_long_before_it_would_look(ledger: Sessions) -> None:
    bell = Bell(ledger.engine)
    bell.wait(0.1)  # from now on it listens
    heard = threading.Event()

    def wait() -> None:
        bell.wait(3600)
        heard.set()

    threading.Thread(target=wait, daemon=True).start()
    with ledger.begin() as session:
        queue.enqueue_all(session, [Order("one", kind="verify")])
    assert heard.wait(60)
    bell.close()


def test_a_bell_that_cannot_be_heard_is_waited_out(postgresql_url: str) -> None:
    from registry.session import connect

    gone = make_url(postgresql_url).update_query_dict({"host": "/nowhere"})
    bell = Bell(connect(gone.render_as_string(hide_password=False)))
    began = time.monotonic()
    bell.wait(0.3)
    assert time.monotonic() - began >= 0.3


def test_an_idle_worker_ends_in_good_order_on_sigterm_and_promises_nothing_on_ctrl_c(folder: Path) -> None:
    worker = command(folder, "worker")
    until(worker, "waiting for jobs")
    assert ended(worker).endswith("stopped, as it was told to.\n")
    worker = command(folder, "worker")
    until(worker, "waiting for jobs")
    worker.send_signal(signal.SIGINT)
    said, _ = worker.communicate(timeout=60)
    assert (worker.returncode, said.strip()) == (130, "interrupted.")
