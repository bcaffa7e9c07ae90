"""Hundreds of small jobs while drivers, workers and Ray's workers are killed at random; nothing may be lost.

    make soak                                       both engines, 150 jobs each, some 300 kills
    AFFINERY_SOAK_KILLS=4 make soak                 four times as many
    AFFINERY_SOAK_JOBS=20 AFFINERY_SOAK_SEED=7 make soak

It prints its seed; the same seed gives the same jobs and the same order of victims. Most trainings find
their finished checkpoint, so that what is worn is the queue, the drivers and the publication; every tenth is
trained by Ray.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from orchestration import additions, queue
from orchestration.datasets import init_data
from orchestration.errors import TaskIsBusy
from orchestration.jobs import LIVE, JobRecord
from orchestration.services import Services
from orchestration.tracking import open_tracking
from registry import adapters, blobs, verification
from registry.collection import collect
from registry.columns import utc_now
from registry.models import Attempt, Upload
from registry.session import connect, sessions
from registry.storage import open_store
from tests import learning_world as world

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(7200)]
ROOT = Path(__file__).resolve().parents[2]
JOBS = int(os.environ.get("AFFINERY_SOAK_JOBS", "150"))
SEED = int(os.environ.get("AFFINERY_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
TASKS = ("ash", "birch", "cedar", "elm")
WORKERS = 2
MOST_KILLS = int(os.environ.get("AFFINERY_SOAK_KILLS", "1"))
"""Between two jobs that are done."""
WORK = """
import json, sys
from orchestration.queue import holding
from orchestration.services import Places
from orchestration.worker import Worker
from tests.learning_world import Heard

holding.RETRY_SECONDS = 0.2
Worker(Places(**json.loads(sys.argv[1])).open(), Heard()).serve()
"""
VICTIMS = {"driver": "orchestration.driver", "worker": "holding.RETRY_SECONDS", "ray": "RayTrainWorker"}


@dataclass
class Soak:
    """One run. templates: by task, the folder of a finished checkpoint."""

    services: Services
    templates: dict[str, Path]
    chance: random.Random
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    kills: Counter[str] = field(default_factory=Counter)
    revived: int = 0
    accepted: list[str] = field(default_factory=list)
    trainings: int = 0
    _done: int = 0
    _since: int = 0

    # --- what is done to it ---

    @contextmanager
    def workers(self) -> Iterator[None]:
        """So many workers are there at all times: one that was killed has a successor."""
        self._processes = [self._worker() for _ in range(WORKERS)]
        try:
            yield
        finally:
            for process in self._processes:
                process.send_signal(signal.SIGTERM)
            for process in self._processes:
                process.wait(120)

    def _worker(self) -> subprocess.Popen[bytes]:
        places = json.dumps(self.services.places.to_json())
        return subprocess.Popen(
            [sys.executable, "-c", WORK, places],
            cwd=ROOT,
            env={**os.environ, "AFFINERY_TEST_MARK": self.mark, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def replace_the_dead(self) -> None:
        for i, process in enumerate(self._processes):
            if process.poll() is not None:
                self._processes[i] = self._worker()

    def submit(self) -> None:
        """The next jobs, as far as their tasks are free."""
        live = self.jobs(LIVE)
        busy = {name for job in live for name in job.tasks}
        for name in TASKS:
            if len(self.accepted) >= JOBS or len(live) > 2 * WORKERS + 2:
                return
            if name in busy:
                continue
            kind = self.chance.choices(("train", "verify", "evaluate"), (6, 2, 2))[0]
            if kind == "evaluate" and not self.published(name):
                kind = "train"
            self._accept(kind, name)

    def _accept(self, kind: str, name: str) -> None:
        if kind == "train":
            with self.services.sessions.begin() as session:
                job = queue.enqueue(
                    session, [name], json.loads((self.templates[name] / "recipe").read_text())
                )
                if self.trainings % 10:  # before it can be claimed
                    target = self.services.runs / job.id / "attempt-0" / "ray" / "checkpoint"
                    shutil.copytree(self.templates[name] / "checkpoint", target)
            self.trainings += 1
        else:
            payload = {"adapters": [name], "samples": 4} if kind == "evaluate" else {}
            with self.services.sessions.begin() as session:
                job = queue.enqueue(session, kind=kind, payload=payload)
        self.accepted.append(job.id)

    def kill_somebody_unless_nothing_gets_done(self) -> None:
        """So many kills and then, however slow the machine is, a job has to end before the next."""
        done = len(self.jobs(("done",)))
        if done > self._done:
            self._done, self._since = done, 0
        if self._since < MOST_KILLS:
            self._since += self._kill_somebody()

    def _kill_somebody(self) -> bool:
        kind = self.chance.choices(list(VICTIMS), (6, 2, 2))[0]
        place = self.chance.random()
        if found := [pid for pid, line in self.processes() if VICTIMS[kind] in line]:
            with suppress(ProcessLookupError):
                os.kill(sorted(found)[int(place * len(found))], signal.SIGKILL)
                self.kills[kind] += 1
        return bool(found)

    def revive(self) -> None:
        """What died of too many kills is taken up again, as its owner would: once its task is free."""
        for job in self.jobs(("dead",)):
            with suppress(TaskIsBusy), self.services.sessions.begin() as session:
                queue.retry(session, job.id)
                self.revived += 1

    # --- what is seen of it ---

    def jobs(self, states: tuple[str, ...] | None = None) -> list[JobRecord]:
        with self.services.sessions.read() as session:
            return queue.list_all(session, states)

    def published(self, task: str) -> bool:
        with self.services.sessions.read() as session:
            return any(record.task == task for record in adapters.list_all(session))

    def processes(self) -> list[tuple[int, str]]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if self.mark.encode() in path.read_bytes():
                    line = (path.parent / "cmdline").read_text().replace("\0", " ")
                    found.append((int(path.parent.name), line))
        return found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def soak(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Soak]:
    url = str(request.getfixturevalue(f"{request.param}_url"))
    space = tmp_path / "space"
    space.mkdir()
    tracking = open_tracking(f"sqlite:///{space / 'mlflow.db'}", space / "artifacts", space / "spool")
    tracking.prepare()
    init_data(space / "data")
    blobs_at = str(space / "blobs")
    services = Services(
        sessions(connect(url)),
        open_store(blobs_at),
        tracking,
        space / "data",
        space / "runs",
        store_url=blobs_at,
    )
    backbone = world.tiny_backbone(tmp_path / "tiny.safetensors")
    additions.add_backbone(services.sessions, services.store, backbone, "tiny")
    templates = {}
    for seed, name in enumerate(TASKS):
        world.add_dataset(services, world.image_folder(tmp_path / name, "x", "y", each=4, seed=seed), name)
        job = world.schedule(services, name)
        template = tmp_path / "templates" / name
        shutil.copytree(
            world.train_here(replace(services, runs=template / "runs"), job.id), template / "checkpoint"
        )
        (template / "recipe").write_text(json.dumps(job.payload["recipe"]))
        templates[name] = template
        with services.sessions.begin() as session:
            queue.cancel(session, job.id)
    yield Soak(services, templates, random.Random(SEED))
    services.sessions.engine.dispose()


def test_every_job_ends_once_every_adapter_verifies_and_nothing_is_left(soak: Soak) -> None:
    begun = time.monotonic()
    setup = {job.id for job in soak.jobs()}
    with soak.workers():
        while len(soak.accepted) < JOBS:
            soak.submit()
            time.sleep(soak.chance.uniform(0.5, 4))
            soak.kill_somebody_unless_nothing_gets_done()
            soak.replace_the_dead()
            soak.revive()
        while soak.jobs((*LIVE, "dead")):  # from here on nobody is killed
            time.sleep(1)
            soak.replace_the_dead()
            soak.revive()
    ended = Counter(job.state for job in soak.jobs() if job.id not in setup)
    lost = len(soak.accepted) - ended["done"]
    sys.stdout.write(
        f"\nsoak, seed {SEED}, {soak.services.sessions.engine.dialect.name}: {len(soak.accepted)} jobs"
        f" ({soak.trainings} trainings), killed {dict(soak.kills)}, taken up again {soak.revived},"
        f" lost {lost}, {time.monotonic() - begun:.0f} s\n"
    )
    assert ended == {"done": JOBS}
    assert_each_job_ended_once(soak, setup)
    assert_nothing_is_left(soak)


def assert_each_job_ended_once(soak: Soak, setup: set[str]) -> None:
    services = soak.services
    trained = [job for job in soak.jobs() if job.kind == "train" and job.id not in setup]
    with services.sessions.read() as session:
        by_job = Counter(record.job_id for record in adapters.list_all(session))
        done = Counter(row.job_id for row in session.query(Attempt).filter_by(outcome="done"))
        unended = session.query(Attempt).filter(Attempt.ended_at.is_(None)).count()
    assert by_job == {job.id: 1 for job in trained}
    assert done == dict.fromkeys(soak.accepted, 1)
    assert unended == 0
    report = verification.verify(services.sessions.engine, services.store)
    assert report.sound, report.findings


def assert_nothing_is_left(soak: Soak) -> None:
    """No process; no lease and no half of a blob once the time of those who were killed is over."""
    until = time.monotonic() + 90  # two agents of a killed Ray look for their parent from time to time
    while soak.processes() and time.monotonic() < until:
        time.sleep(1)
    assert soak.processes() == []
    services = soak.services
    with services.sessions.begin() as session:
        assert len(blobs.live_uploads(session)) <= sum(soak.kills.values())
        session.query(Upload).update({"expires_at": utc_now() - timedelta(hours=2)})
    collect(services.sessions, services.store, grace_seconds=0)
    with services.sessions.read() as session:
        assert session.query(Upload).count() == 0
    assert list(services.store.leftovers()) == []
    assert verification.verify(services.sessions.engine, services.store).sound
