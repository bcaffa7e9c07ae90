"""Files torn, disks full and stores away: found, told in words, and over when the cause is."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestration import datasets, ray_train
from orchestration.kinds import train
from registry import adapters, verification
from registry import datasets as recorded
from registry.errors import BlobDamaged
from tests.integration.faults.conftest import S3Server, Walker, World, on_both_engines
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
def test_a_store_that_goes_away_is_named_and_the_job_is_published_once_it_is_back(
    walker: Walker, made_on_s3: World, s3: S3Server
) -> None:
    half_stored = walker.publish(made_on_s3, failpoint="blob-put:1=stop")["stopped"]
    with s3.away():
        told = walker.resume(half_stored)
    assert told["error"] == "StorageUnreachable", told
    assert "s3://faults" in told["text"], told
    made_on_s3.assert_nothing_is_visible()
    assert walker.publish(made_on_s3) == {"published": ["shapes@1"]}
    made_on_s3.assert_published_once()
