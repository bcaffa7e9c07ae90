"""Workers, drivers and Ray's own workers killed outright: one adapter version, an unbroken run's bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestration import failpoints
from orchestration.local_ray import LocalRay, address_in
from tests import learning_world as world
from tests.integration.faults.conftest import CREDENTIALS, ROOT, World, make_world, on_both_engines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WORK = """
import json, sys
from orchestration.queue import holding
from orchestration.services import Places
from orchestration.worker import Worker
from tests.learning_world import Heard

holding.RETRY_SECONDS = 0.01
heard = Heard()
Worker(Places(**json.loads(sys.argv[1])).open(), heard).drain()
for job, error, state in heard.failures:
    print(state, repr(error))
"""


class Workers:
    """Worker processes, one after the other, and whatever they start: all carry the same mark."""

    def __init__(self, made: World, marks: Path, **kills: str) -> None:
        self.made, self.marks, self.mark = made, marks, uuid.uuid4().hex
        points = ",".join(f"{point}=kill@{marks / name}" for name, point in kills.items())
        self.environment = {
            **os.environ,
            **CREDENTIALS,
            failpoints.VARIABLE: points,
            "AFFINERY_TEST_MARK": self.mark,
            "PYTHONPATH": str(ROOT),
        }

    def work(self) -> tuple[int, str]:
        """One worker until the queue is empty, or it dies. → how it ended, what it said"""
        places = json.dumps(self.made.services.places.to_json())
        done = subprocess.run(
            [sys.executable, "-c", WORK, places],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

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
def test_killed_from_its_samples_to_its_commit_a_job_is_published_once(made: World, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    kills = {"worker": "settling", "judged": "judged", "committing": "before-commit", "end": "after-commit"}
    workers = Workers(made, marks, **kills)
    assert workers.work()[0] == -signal.SIGKILL  # it was about to write down that its driver had died
    assert made.job.state == "running"
    code, talk = workers.work()
    assert code == 0, talk
    assert workers.happened() == set(kills), talk
    made.assert_published_once()
    assert made.outcomes() == ["lost", "failed", "done"], talk
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


@pytest.mark.ray
def test_killed_and_torn_in_the_middle_of_its_training_a_job_ends_as_an_unbroken_one(
    untrained: World, ray_that_kills: str, tmp_path: Path
) -> None:
    made = replace(untrained, services=replace(untrained.services, ray_address=ray_that_kills))
    first = Workers(made, tmp_path / "marks", driver="training:4", worker="settling")
    assert first.work()[0] == -signal.SIGKILL
    assert first.happened() == {"ray", "driver", "worker"}
    torn = tear(made.services.runs / made.job_id)
    assert torn == {"snapshot", "checkpoint"}
    second = Workers(made, tmp_path / "marks", claimed="claimed", trained="trained")
    assert second.work()[0] == -signal.SIGKILL
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
    whole = checkpoints_in(folder)
    for file in whole[0].iterdir() if whole else ():
        if file.suffix == ".safetensors":
            file.write_bytes(file.read_bytes()[:100])
            torn.add("checkpoint")
    return torn
