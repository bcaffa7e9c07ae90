"""Real workers and drivers while the clock of their machine jumps, on both engines.

On SQLite the database's clock is the machine's, so it jumps with it; on PostgreSQL it is the server's, and
what the workers' machine thinks of the time matters to nobody. A module that every Python there imports first
shifts `time.time` and SQLite's own clock by what a file says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from orchestration import failpoints, queue
from orchestration.jobs import JobRecord, Order
from orchestration.services import Places
from registry.models import Event, Job
from registry.session import Sessions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[3]
SHIFTED = """
import os, sqlite3, time
from pathlib import Path

def shift():
    return float(Path(os.environ["AFFINERY_TEST_CLOCK"]).read_text() or 0)

real, connect = time.time, sqlite3.connect
time.time = lambda: real() + shift()

def connected(*given, **named):
    made, clock = connect(*given, **named), connect(":memory:", check_same_thread=False)
    def strftime(form, when, *moved):
        moves = [f"{shift()} seconds", *moved] if when == "now" else list(moved)
        marks = ", ?" * len(moves)
        return clock.execute(f"SELECT strftime(?, ?{marks})", [form, when, *moves]).fetchone()[0]
    made.create_function("strftime", -1, strftime)
    return made

sqlite3.connect = connected
"""
WORK = """
import json, sys
from functools import partial
from orchestration import hearts, queue, worker
from orchestration.jobs import Capacity
from orchestration.queue import recovery
from orchestration.services import Places
from tests.learning_world import Heard

places, owner, lease, grace = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
hearts.BEAT_SECONDS = worker.LOOK_SECONDS = worker.IDLE_SECONDS = 0.2
recovery.GRACE_SECONDS = grace
queue.take = partial(queue.take, lease_seconds=lease)
queue.heartbeat = partial(queue.heartbeat, lease_seconds=lease)
look = queue.give_up

def looked(session):
    found = look(session)
    print("looked", flush=True)
    return found

queue.give_up = looked
worker.Worker(Places(**json.loads(places)).open(), Heard(), owner=owner, given=Capacity(1, 0, 0)).serve()
"""


@dataclass
class Machine:
    """Workers whose clock can be moved, on one registry. mark: while it is there, the first driver waits."""

    ledger: Sessions
    url: str
    folder: Path
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def mark(self) -> Path:
        return self.folder / "mark"

    def jump(self, seconds: float) -> None:
        aside = self.folder / "clock.new"
        aside.write_text(str(seconds))
        aside.replace(self.folder / "clock")

    def begin(self, name: str, *, lease: float = 60.0, grace: float = 60.0) -> None:
        """Another worker. Its name is another machine's: whether it lives, only its lease tells."""
        places = {
            "store": f"{self.folder}/store",
            "tracking": f"sqlite:///{self.folder}/mlflow.db",
            "ray": None,
        }
        folders = {each: f"{self.folder}/{each}" for each in ("artifacts", "spool", "data", "runs")}
        told = Places(registry=self.url, **places, **folders)  # type: ignore[arg-type]
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-c", WORK, json.dumps(told.to_json()), f"{name}:1:1", str(lease), str(grace)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ
            | {
                "PYTHONPATH": f"{self.folder / 'site'}{os.pathsep}{ROOT}",
                "AFFINERY_TEST_CLOCK": str(self.folder / "clock"),
                failpoints.VARIABLE: f"started=pause@{self.mark}",
            },
        )

    def looks(self, name: str, times: int) -> None:
        """Waits until a worker has looked so often for what others left behind."""
        stream = self.processes[name].stdout
        assert stream is not None
        for _ in range(times):
            assert stream.readline() == "looked\n", "it ended"

    def kill(self, name: str) -> None:
        """At once, and with it the driver, which waits in a session of its own."""
        process = self.processes.pop(name)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        for child in children:
            subprocess.run(["kill", "-9", child], check=False, capture_output=True)

    def put(self) -> str:
        with self.ledger.begin() as session:
            return queue.enqueue_all(session, [Order(str(uuid.uuid4()), kind="verify")])[0].id

    def job(self, job_id: str) -> JobRecord:
        with self.ledger.read() as session:
            return queue.get(session, job_id)

    def outcomes(self, job_id: str) -> list[str | None]:
        with self.ledger.read() as session:
            return [each.outcome for each in queue.attempts(session, job_id)]

    def ends(self, job_id: str) -> int:
        """How often it was told that the job is done."""
        with self.ledger.read() as session:
            told = session.scalars(select(Event.payload).where(Event.kind == "job.done")).all()
        return sum(each["job"] == job_id for each in told)

    def beat(self, job_id: str) -> Any:
        with self.ledger.read() as session:
            return session.scalar(select(Job.heartbeat_at).where(Job.id == job_id))


def until(true: Callable[[], object]) -> None:
    """The test's own time-out is the only limit."""
    while not true():
        time.sleep(0.1)


@pytest.fixture
def machine(ledger: Sessions, registry_url: str, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(ledger, registry_url, tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SHIFTED)
    made.jump(0)
    yield made
    made.mark.unlink(missing_ok=True)
    for name in list(made.processes):
        made.kill(name)


@pytest.mark.parametrize("seconds", [7200, -3600])
def test_a_jump_takes_no_job_from_a_worker_that_lives_and_holds_up_none_that_waits(
    machine: Machine, seconds: float
) -> None:
    held = machine.put()
    machine.begin("first")
    until(machine.mark.exists)
    machine.begin("second")
    machine.looks("second", 1)
    first_beat = machine.beat(held)
    machine.jump(seconds)
    machine.looks("second", 5)
    before = machine.beat(held)
    until(lambda: machine.beat(held) != before)
    machine.looks("second", 3)
    job = machine.job(held)
    assert (job.state, job.fence, job.owner) == ("running", 1, "first:1:1")
    moved = (machine.beat(held) - first_beat).total_seconds()
    assert abs(moved - (seconds if machine.url.startswith("sqlite") else 0)) < 900
    waiting = machine.put()  # by another machine, whose clock is right
    until(lambda: machine.job(waiting).state == "done")
    machine.mark.unlink()
    until(lambda: machine.job(held).state == "done")
    assert (machine.outcomes(held), machine.ends(held)) == (["done"], 1)
    assert (machine.outcomes(waiting), machine.ends(waiting)) == (["done"], 1)


@pytest.mark.parametrize("seconds", [7200, -3600])
def test_a_worker_that_died_before_a_jump_is_replaced_within_minutes_and_its_job_is_done_once(
    machine: Machine, seconds: float
) -> None:
    held = machine.put()
    machine.begin("first", lease=5)
    until(machine.mark.exists)
    machine.kill("first")
    machine.jump(seconds)
    machine.begin("second", lease=5, grace=1)
    until(lambda: machine.job(held).state == "done")
    assert (machine.outcomes(held), machine.ends(held)) == (["lost", "done"], 1)
    assert machine.job(held).fence == 2
