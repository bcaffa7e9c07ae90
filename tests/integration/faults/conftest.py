"""Worlds in which a job is trained and waits to be published, on both engines and both kinds of store."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestration import additions, queue
from orchestration.datasets import init_data
from orchestration.jobs import JobRecord
from orchestration.services import Services
from orchestration.tracking import open_tracking
from registry import adapters, verification
from registry.models import Attempt, Certificate, Evaluation, Run
from registry.session import connect, sessions
from registry.storage import open_store
from tests import learning_world as world
from tests.postgres import copy_of, named, on_server, postgres_killed

ROOT = Path(__file__).resolve().parents[3]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "a very secret word",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class World:
    """A workspace with one scheduled job. trained: the file that an unbroken run makes."""

    services: Services
    job_id: str
    trained: Path

    @property
    def job(self) -> JobRecord:
        return world.job(self.services, self.job_id)

    def outcomes(self) -> list[str | None]:
        """How each attempt of the job ended."""
        with self.services.sessions.read() as session:
            rows = session.query(Attempt).filter_by(job_id=self.job_id).order_by(Attempt.number)
            return [row.outcome for row in rows]

    def counts(self) -> dict[str, int]:
        """How much of a publication is visible."""
        with self.services.sessions.read() as session:
            return {
                "adapters": len(adapters.list_all(session)),
                "certificates": session.query(Certificate).count(),
                "evaluations": session.query(Evaluation).count(),
                "runs": session.query(Run).count(),
            }

    def is_sound(self) -> bool:
        report = verification.verify(self.services.sessions.engine, self.services.store)
        assert report.sound, report.findings
        return True

    def assert_nothing_is_visible(self) -> None:
        assert self.counts() == {"adapters": 0, "certificates": 0, "evaluations": 0, "runs": 0}
        assert self.job.state in ("queued", "running")
        assert self.is_sound()

    def assert_published_once(self) -> None:
        """Everything is visible, once, and the bytes are those of an unbroken run."""
        assert self.counts() == {"adapters": 1, "certificates": 1, "evaluations": 1, "runs": 1}
        assert self.job.state == "done"
        assert self.outcomes().count("done") == 1
        with self.services.sessions.read() as session:
            (record,) = adapters.list_all(session)
        assert record.ref == "shapes@1"
        assert self.services.store.path(record.blob_digest).read_bytes() == self.trained.read_bytes()
        assert self.is_sound()

    def run_at_once(self) -> None:
        """Nobody waits for a retry's delay or for a lease to run out: as if that time had passed."""
        with self.services.sessions.begin() as session:
            session.execute(text("UPDATE job SET run_at = created_at WHERE state = 'queued'"))


def make_world(
    folder: Path,
    registry_url: str,
    store_url: str,
    mlflow: Path,
    backbone: Path,
    *,
    train: bool = True,
    **recipe: Any,
) -> World:
    """A workspace at these addresses, with the tiny backbone, one dataset and one job, trained or not."""
    folder.mkdir(parents=True)
    shutil.copy(mlflow, folder / "mlflow.db")
    init_data(folder / "data")
    tracking = open_tracking(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", folder / "spool")
    services = Services(
        sessions(connect(registry_url)),
        open_store(store_url),
        tracking,
        folder / "data",
        folder / "runs",
        ray_address="none is needed",
        store_url=store_url,
    )
    additions.add_backbone(services.sessions, services.store, backbone, "tiny")
    world.add_dataset(services, world.image_folder(folder / "images", "x", "y", each=4), "shapes")
    job = world.schedule(services, "shapes", **recipe)
    found = folder / "none"
    if train:
        found = world.train_here(services, job.id) / "adapter-0.safetensors"
    return World(services, job.id, found)


class S3Server:
    """A server that speaks S3, with the bucket `faults`. It may go away and come back."""

    def __init__(self) -> None:
        self.url = self._start(0)

    def _start(self, port: int) -> str:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    def stop(self) -> None:
        self._server.stop()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        yield
        self._start(int(self.url.rpartition(":")[2]))


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Its credentials stand in the environment."""
    import boto3

    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    server = S3Server()
    boto3.client("s3", endpoint_url=server.url).create_bucket(Bucket="faults")
    yield server
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    mlflow_template: Path,
    tiny_backbone: Path,
) -> Iterator[World]:
    """The one world that is really trained; the others are its copies, on other engines and stores."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(sqlite_template, folder / "registry.db")
    url = f"sqlite:///{folder / 'registry.db'}"
    found = make_world(folder / "space", url, str(folder / "blobs"), mlflow_template, tiny_backbone)
    yield found
    found.services.sessions.engine.dispose()


@pytest.fixture(scope="session")
def trained_in_postgresql(
    trained: World, postgres_url: str, postgres_template: str, tiny_backbone: Path
) -> str:
    """The name of a database with the records of the trained world."""
    on_server(postgres_url, f"CREATE DATABASE affinery_trained TEMPLATE {postgres_template}")
    services = replace(trained.services, sessions=sessions(connect(named(postgres_url, "affinery_trained"))))
    additions.add_backbone(services.sessions, services.store, tiny_backbone, "tiny")
    world.add_dataset(services, trained.services.data.parent / "images", "shapes")
    job = world.schedule(services, "shapes")
    shutil.copytree(services.runs / trained.job_id, services.runs / job.id)
    services.sessions.engine.dispose()
    return "affinery_trained"


@pytest.fixture
def registry_at(request: pytest.FixtureRequest, tmp_path: Path, trained: World) -> Iterator[str]:
    """The trained world's records, in a database of the engine that the test's parameter names."""
    if request.param == "sqlite":
        source = str(trained.services.sessions.engine.url.database)
        with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(tmp_path / "r.db")) as here:
            there.backup(here)  # with what is in its log
        yield f"sqlite:///{tmp_path / 'r.db'}"
        return
    template = request.getfixturevalue("trained_in_postgresql")
    for url in copy_of(request.getfixturevalue("postgres_url"), template):
        # A sequence is copied as if it were ahead of itself; after a crash it would give numbers twice.
        on_server(url, "CHECKPOINT")
        yield url


on_both_engines = pytest.mark.parametrize(
    "registry_at", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


def copied(trained: World, registry_url: str, store_url: str, backbone: Path) -> World:
    """The trained world once more: records and blobs of its own, the files of the job shared."""
    services = replace(
        trained.services,
        sessions=sessions(connect(registry_url)),
        store=open_store(store_url),
        store_url=store_url,
    )
    services.store.put_file(backbone)
    with services.sessions.read() as session:
        (job,) = queue.list_all(session)
    return World(services, job.id, trained.trained)


@pytest.fixture
def made(registry_at: str, tmp_path: Path, trained: World, tiny_backbone: Path) -> Iterator[World]:
    """A trained job, its blobs in a folder."""
    found = copied(trained, registry_at, str(tmp_path / "blobs"), tiny_backbone)
    yield found
    found.services.sessions.engine.dispose()


@pytest.fixture
def made_on_s3(
    registry_at: str, tmp_path: Path, trained: World, tiny_backbone: Path, s3: S3Server
) -> Iterator[World]:
    """A trained job, its blobs in a bucket."""
    url = f"s3://faults/{tmp_path.name}?endpoint={s3.url}&cache={tmp_path / 'cache'}"
    found = copied(trained, registry_at, url, tiny_backbone)
    yield found
    found.services.sessions.engine.dispose()


@contextmanager
def registry_away(made: World) -> Iterator[None]:
    """PostgreSQL killed outright and started again; SQLite locked by another for longer than is waited."""
    engine = made.services.sessions.engine
    if engine.dialect.name == "postgresql":
        with postgres_killed(engine.url):
            yield
        return
    holder = sqlite3.connect(str(engine.url.database), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    yield
    holder.execute("ROLLBACK")
    holder.close()


class Walker:
    """The process that publishes in children of its own; see walker.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.faults.walker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **CREDENTIALS, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the walker died"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def prepare(self, made: World) -> None:
        self.ask(do="prepare", places=made.services.places.to_json(), job=made.job_id)

    def publish(self, made: World, **how: Any) -> dict[str, Any]:
        """One attempt. → {"published": …}, {"error": …}, {"signal": …} or {"stopped": its number}"""
        return self.ask(do="publish", places=made.services.places.to_json(), job=made.job_id, **how)

    def resume(self, pid: int) -> dict[str, Any]:
        return self.ask(do="continue", pid=pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="session")
def walker(trained: World) -> Iterator[Walker]:
    made = Walker()
    made.prepare(trained)
    yield made
    made.close()
