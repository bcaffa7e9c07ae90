"""Workers, drivers and Ray's own workers killed outright: one adapter version, an unbroken run's bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration import failpoints
from orchestration.errors import DiskFull
from orchestration.local_ray import LocalRay, address_in
from registry.models import Attempt
from tests import learning_world as world
from tests.integration.faults.conftest import (
    CREDENTIALS,
    ROOT,
    World,
    make_world,
    on_both_engines,
    registry_away,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOM_BYTES = 64 << 10
"""For a job's contact sheet, its plan and its log, but not for a checkpoint besides."""
WORK = """
import json, sys
from orchestration.queue import holding
from orchestration.services import Places
from orchestration.worker import Worker
from registry import session
from tests.learning_world import Heard

holding.RETRY_SECONDS, session.BUSY_SECONDS = 0.01, 1
heard = Heard()
Worker(Places(**json.loads(sys.argv[1])).open(), heard).drain()
for job, error, state in heard.failures:
    print(state, repr(error))
"""


class Workers:
    """Worker processes, one after the other, and whatever they start: all carry the same mark.

    kills: by the name of a mark, the point at which whoever makes that mark dies. pauses: by the name of a
    mark, the point at which a thread waits until the mark is gone.
    """

    def __init__(self, made: World, marks: Path, pauses: Mapping[str, str] = {}, **kills: str) -> None:
        self.made, self.marks, self.mark = made, marks, uuid.uuid4().hex
        points = [f"{point}=kill@{marks / name}" for name, point in kills.items()]
        points += [f"{point}=pause@{marks / name}" for name, point in pauses.items()]
        self.environment = {
            **os.environ,
            **CREDENTIALS,
            failpoints.VARIABLE: ",".join(points),
            "AFFINERY_TEST_MARK": self.mark,
            "PYTHONPATH": str(ROOT),
        }

    def start(self) -> subprocess.Popen[bytes]:
        """One worker until the queue is empty, or it dies."""
        self.marks.mkdir(exist_ok=True)
        places = json.dumps(self.made.services.places.to_json())
        with self._said.open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-c", WORK, places],
                env=self.environment,
                cwd=ROOT,
                stdout=said,
                stderr=said,
            )

    def work(self) -> tuple[int, str]:
        """One worker to its end. → how it ended, what it said"""
        return self.start().wait(200), self.talk()

    @property
    def _said(self) -> Path:
        return self.marks.with_name(f"talk of {self.mark}")

    def talk(self) -> str:
        return self._said.read_text(errors="replace")

    def wait_for(self, what: Callable[[], object]) -> None:
        """Until something is so that must come to be."""
        until = time.monotonic() + 120
        while not what():
            assert time.monotonic() < until, self.talk()
            time.sleep(0.05)

    def happened(self) -> set[str]:
        return {path.name for path in self.marks.iterdir()}

    def left_over(self) -> list[str]:
        """Processes that were started here and are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found


@on_both_engines
def test_killed_from_its_samples_to_its_commit_with_its_registry_away_meanwhile_a_job_is_published_once(
    made: World, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    kills = {"worker": "settling", "judged": "judged", "committing": "before-commit", "end": "after-commit"}
    pauses = {"worker waits": "settling:1", "driver waits": "before-commit:1"}
    workers = Workers(made, marks, pauses, **kills)
    code, talk = workers.work()
    assert code == -signal.SIGKILL, talk  # it was about to write down that its driver had died
    assert made.job.state == "running"
    second = workers.start()
    workers.wait_for((marks / "worker waits").exists)  # about to write that its driver died at the commit
    with registry_away(made):
        (marks / "worker waits").unlink()
        workers.wait_for(lambda: "is written later" in workers.talk())
    workers.wait_for((marks / "driver waits").exists)  # everything is written, nothing is committed
    if made.services.sessions.engine.dialect.name == "postgresql":
        with registry_away(made):
            (marks / "driver waits").unlink()
    (marks / "driver waits").unlink(missing_ok=True)
    assert second.wait(200) == 0, workers.talk()
    assert workers.happened() == set(kills), workers.talk()
    made.assert_published_once()
    assert made.outcomes() == ["lost", "failed", "done"], workers.talk()
    assert workers.left_over() == []


@pytest.fixture
def untrained(
    tmp_path: Path, sqlite_template: Path, mlflow_template: Path, tiny_backbone: Path
) -> Iterator[World]:
    """A job that Ray has to train, and what an unbroken run makes of it."""
    shutil.copy(sqlite_template, tmp_path / "registry.db")
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    blobs = str(tmp_path / "blobs")
    made = make_world(tmp_path / "space", url, blobs, mlflow_template, tiny_backbone, train=False, steps=60)
    elsewhere = replace(made.services, runs=tmp_path / "unbroken" / "runs")
    whole = world.train_here(elsewhere, made.job_id) / "adapter-0.safetensors"
    yield replace(made, trained=whole)
    made.services.sessions.engine.dispose()


@pytest.fixture
def ray_that_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray whose train worker dies at its second report, once. → the file with its address"""
    (tmp_path / "marks").mkdir()
    monkeypatch.setenv(failpoints.VARIABLE, f"stepping:2=kill@{tmp_path / 'marks' / 'ray'}")
    ray = LocalRay(2, 0)
    try:
        file = ray.ready()
        address_in(Path(file))
        yield file
    finally:
        ray.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root on Linux")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.ray
def test_killed_and_torn_in_the_middle_of_its_training_a_job_ends_as_an_unbroken_one(
    untrained: World, ray_that_kills: str, tmp_path: Path
) -> None:
    made = replace(untrained, services=replace(untrained.services, ray_address=ray_that_kills))
    first = Workers(made, tmp_path / "marks", driver="training:4", worker="settling")
    code, talk = first.work()
    assert code == -signal.SIGKILL, talk
    assert first.happened() == {"ray", "driver", "worker"}
    torn = tear(made.services.runs / made.job_id)
    assert torn == {"snapshot", "checkpoint"}
    second = Workers(made, tmp_path / "marks", claimed="claimed", trained="trained")
    code, talk = second.work()
    assert code == -signal.SIGKILL, talk
    code, talk = second.work()
    assert code == 0, talk
    assert second.happened() == {"ray", "driver", "worker", "claimed", "trained"}
    made.assert_published_once()
    assert made.outcomes() == ["lost", "lost", "failed", "done"]
    assert first.left_over() + second.left_over() == []


def tear(folder: Path) -> set[str]:
    """Cuts Ray's snapshot and the newest of our checkpoints short, as a machine that lost its power may."""
    from trainers.checkpoints import checkpoints_in

    torn = set()
    for snapshot in folder.glob("**/checkpoint_manager_snapshot.json"):
        snapshot.write_bytes(snapshot.read_bytes()[:20])
        torn.add("snapshot")
    newest = next(checkpoints_in(folder), None)
    for file in newest.iterdir() if newest is not None else ():
        if file.suffix == ".safetensors":
            file.write_bytes(file.read_bytes()[:100])
            torn.add("checkpoint")
    return torn


@pytest.mark.ray
def test_a_disk_that_has_no_room_for_a_checkpoint_is_told_and_the_job_goes_on_once_there_is_some(
    untrained: World, ray_that_kills: str, small_disk: Path, tmp_path: Path
) -> None:
    runs = small_disk / "runs"
    made = replace(untrained, services=replace(untrained.services, runs=runs, ray_address=ray_that_kills))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - ROOM_BYTES))
    workers = Workers(made, tmp_path / "marks")
    process = workers.start()
    workers.wait_for(lambda: "failed" in made.outcomes())
    filler.unlink()
    assert process.wait(200) == 0, workers.talk()
    with made.services.sessions.read() as session:
        told = {row.error_here for row in session.query(Attempt).filter_by(outcome="failed")}
    assert told == {str(DiskFull(str(runs / made.job_id)))}, workers.talk()
    assert list(runs.glob("*/attempt-1/progress.jsonl")), "it was to fail at a checkpoint"
    made.assert_published_once()
    assert set(made.outcomes()) == {"failed", "done"}, workers.talk()
