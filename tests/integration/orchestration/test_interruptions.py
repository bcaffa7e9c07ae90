"""A worker that is killed or interrupted: the next one ends where an unbroken run would have ended."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestration import queue
from orchestration.jobs import JobRecord
from orchestration.services import Services
from registry import adapters
from registry.models import Attempt
from tests import learning_world as world

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = 600
WORK = """
import sys
from pathlib import Path
from orchestration.worker import Worker
from tests import learning_world as world

class Aloud(world.Heard):
    def started(self, job, resumed_from):
        print("from", resumed_from, flush=True)
    def progress(self, job, line):
        print("step", line.step, flush=True)
    def failed(self, job, error, state):
        print("failed", repr(error), flush=True)

Worker(world.open_space(Path(sys.argv[1])), Aloud()).drain()
"""


class Child:
    """A worker in a process of its own, and everything that it starts: all carry the same mark."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        environment = os.environ | {"AFFINERY_TEST_MARK": self.mark, "PYTHONPATH": str(Path.cwd())}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORK, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def until_step(self, step: int) -> int:
        """Waits until the training is so far. → the step that it began from"""
        assert self.process.stdout is not None
        began, talk = -1, ""
        for line in self.process.stdout:
            talk += line
            match line.split():
                case ["from", number]:
                    began = int(number)
                case ["step", number] if int(number) >= step:
                    return began
        raise AssertionError(talk)

    def left_over(self) -> list[str]:
        """Processes with the mark that are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def is_gone(self, within_seconds: float, besides: str = "nothing") -> bool:
        deadline = time.monotonic() + within_seconds
        while (left := [line for line in self.left_over() if besides not in line]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.2)
        return left == []


@dataclass
class Story:
    """What happened to one job: killed, taken up, interrupted, taken up again and done."""

    services: Services
    job: JobRecord
    began: list[int]
    after_kill: str
    after_interrupt: str
    gone: list[bool]
    heard: world.Heard


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("broken") / "space"
    services = world.make_space(folder, sqlite_template, mlflow_template, tiny_backbone)
    world.add_dataset(services, world.image_folder(folder.parent / "images", "x", "y"), "shapes")
    job = world.schedule(services, "shapes", steps=STEPS, batch=32)
    killed = Child(folder)
    began = [killed.until_step(STEPS // 10)]
    killed.process.kill()
    killed.process.wait()
    after_kill = world.job(services, job.id).state
    # Ray's two small agents look for their parent from time to time, and end a minute after it.
    gone = [killed.is_gone(30, besides="Agent")]
    interrupted = Child(folder)
    began.append(interrupted.until_step(STEPS // 5))
    os.killpg(interrupted.process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C: to all of them
    interrupted.process.wait(90)
    after_interrupt = world.job(services, job.id).state
    gone.append(interrupted.is_gone(30))
    heard = world.Heard()
    ray = request.getfixturevalue("local_ray")
    world.worker_here(replace(services, ray_address=ray), heard).drain()
    yield Story(services, world.job(services, job.id), began, after_kill, after_interrupt, gone, heard)
    services.sessions.engine.dispose()


@pytest.mark.timeout(300)
def test_the_job_of_a_killed_worker_is_taken_up_at_once_from_its_checkpoint(story: Story) -> None:
    assert story.after_kill == "running"
    assert story.began[0] == 0
    assert story.began[1] >= STEPS // 10


def test_an_interrupted_worker_gives_its_job_back(story: Story) -> None:
    assert story.after_interrupt == "queued"
    with story.services.sessions.read() as session:
        rows = session.query(Attempt).filter_by(job_id=story.job.id).order_by(Attempt.number).all()
        assert [row.outcome for row in rows] == ["lost", "interrupted", "done"]


def test_no_process_of_ray_is_left_of_either(story: Story) -> None:
    assert story.gone == [True, True]


def test_whoever_takes_it_up_last_goes_on_and_publishes_once(story: Story) -> None:
    assert story.heard.resumed[0] >= story.began[1]
    assert story.heard.published_refs == ["shapes@1"]
    assert story.job.state == "done"


def test_the_adapter_has_the_bytes_of_one_that_was_trained_without_a_break(story: Story) -> None:
    services = story.services
    with services.sessions.begin() as session:
        again = queue.enqueue(session, ["shapes"], story.job.recipe)
    whole = world.train_here(services, again.id) / "adapter-0.safetensors"
    with services.sessions.read() as session:
        broken = adapters.get(session, "shapes@1")
    assert services.store.path(broken.blob_digest).read_bytes() == whole.read_bytes()


def test_the_curve_has_every_stretch_once_on_our_disk_and_in_mlflow(story: Story) -> None:
    from orchestration.publishing import curves

    with sqlite3.connect(story.services.data.parent / "mlflow.db") as store:
        query = "SELECT step, count(*) FROM metrics JOIN tags USING (run_uuid) WHERE metrics.key = 'loss'"
        tagged = " AND tags.key = 'affinery.job' AND tags.value = ? GROUP BY step ORDER BY step"
        told = store.execute(query + tagged, (story.job.id,)).fetchall()
    points = curves(story.services.runs / story.job.id)["shapes"]
    assert told == [(step, 1) for step, _ in points]
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    assert all(loss > 0 for _, loss in points)
