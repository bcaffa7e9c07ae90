"""Files torn, disks full and databases locked: found, told in words, and over when the cause is."""

from __future__ import annotations

import resource
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestration import datasets, ray_train
from orchestration.kinds import train
from registry import adapters, verification
from registry import datasets as recorded
from registry import session as database
from registry.errors import BlobDamaged, RegistryBusy
from registry.session import connect, sessions
from tests.integration.faults.conftest import Walker, World, on_both_engines
from trainers.checkpoints import checkpoints_in
from trainers.errors import DatasetChanged
from trainers.session import TrainingSession

pytestmark = [pytest.mark.slow]
on_sqlite = pytest.mark.parametrize("registry_at", ["sqlite"], indirect=True)


@contextmanager
def full_disk(room_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond this: as a full disk answers a write."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@on_sqlite
def test_a_checkpoint_for_which_there_is_no_room_is_none_and_the_one_before_stays(
    made: World, tmp_path: Path
) -> None:
    _, plan = train.plan_of(made.services, made.job)
    training = TrainingSession(plan)
    training.advance()
    training.save(tmp_path / "job" / "attempt-1" / "ray" / "first")
    step = training.step
    while not training.advance().done:
        continue
    with full_disk(2048), pytest.raises(OSError, match=r"[Ff]ile too large|[Nn]o space"):
        training.save(tmp_path / "job" / "attempt-1" / "ray" / "second")
    assert [path.name for path in checkpoints_in(tmp_path / "job")] == ["first"]
    resumed = TrainingSession(plan)
    assert ray_train.resume(resumed, tmp_path / "job") == step
    training.save(tmp_path / "job" / "attempt-1" / "ray" / "second")
    finished = ray_train.finished_checkpoint(tmp_path / "job", plan)
    assert finished is not None
    assert (finished / "adapter-0.safetensors").read_bytes() == made.trained.read_bytes()


@on_both_engines
def test_a_torn_adapter_is_named_by_verify_and_refused_where_it_is_read(walker: Walker, made: World) -> None:
    assert walker.publish(made) == {"published": ["shapes@1"]}
    with made.services.sessions.read() as session:
        digest = adapters.get(session, "shapes@1").blob_digest
    path = made.services.store.path(digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    report = verification.verify(made.services.sessions.engine, made.services.store)
    assert not report.sound
    assert any("shapes@1" in finding.where + finding.what for finding in report.findings), report.findings
    with pytest.raises(BlobDamaged):
        made.services.store.verify(digest)
    made.services.store.put_file(made.trained)
    made.assert_published_once()


@on_sqlite
def test_a_torn_pack_is_refused_by_the_name_of_its_file(made: World) -> None:
    services = made.services
    with services.sessions.read() as session:
        source = recorded.get(session, "shapes")
    pack = services.data / source.dvc_path
    copies = [path for path in services.data.parent.glob("dvc-remote/files/**/*") if path.is_file()]
    kept = {path: path.read_bytes() for path in (*copies, *(pack.iterdir()))}
    assert copies
    (pack / "manifest.json").chmod(0o644)
    (pack / "manifest.json").write_bytes(kept[pack / "manifest.json"][:50])
    try:
        with pytest.raises(DatasetChanged, match=r"manifest\.json"):
            datasets.ensure(services.data, source.dvc_path, source.digest)
    finally:
        for path, content in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
    assert datasets.ensure(services.data, source.dvc_path, source.digest) == pack


@on_sqlite
def test_a_database_that_stays_locked_is_told_as_busy_and_serves_again(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    path = str(made.services.sessions.engine.url.database)
    hasty = sessions(connect(f"sqlite:///{path}"))
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RegistryBusy), hasty.begin() as session:
        adapters.list_all(session)
    refused = threading.Event()
    done: list[int] = []

    def wait_and_write() -> None:
        while not done:
            try:
                with hasty.begin() as session:
                    done.append(len(adapters.list_all(session)))
            except RegistryBusy:
                refused.set()

    thread = threading.Thread(target=wait_and_write)
    thread.start()
    assert refused.wait(30)
    holder.execute("ROLLBACK")
    thread.join(30)
    holder.close()
    hasty.engine.dispose()
    assert done == [0]
