"""What neighbours lost, tore or left behind is brought back to what the registry says, or told."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from orchestration import additions, queue
from orchestration.datasets import ensure
from orchestration.datasets import repository as dvc
from orchestration.jobs import JobRecord
from orchestration.local_ray import FOLDER
from orchestration.reconcile import NEIGHBOURS, Finding, reconcile
from orchestration.services import Services
from orchestration.tracking import open_tracking, trainings
from registry import datasets
from registry.models import Job
from registry.records import AdapterRecord, DatasetRecord
from tests import learning_world as world
from tests.command_line import typed
from trainers.packs import IMAGES


@pytest.fixture
def shapes(services: Services, tmp_path: Path) -> DatasetRecord:
    world.add_dataset(services, world.image_folder(tmp_path / "images", "x", "y"), "shapes")
    with services.sessions.read() as session:
        return datasets.get(session, "shapes")


def found(services: Services, only: str, dry_run: bool = False) -> tuple[Finding, ...]:
    return reconcile(services, only=[only], dry_run=dry_run).findings


def settled(services: Services, only: str, *words: str) -> None:
    """It finds just this, as a dry run does before, mends it, and then finds nothing."""
    before = found(services, only, dry_run=True)
    seen = found(services, only)
    assert [each.what for each in seen] == [each.what for each in before]
    assert len(seen) == len(words), seen
    for each, word in zip(seen, words, strict=True):
        assert word in each.what
        assert each.done is not None, each
    assert found(services, only) == ()


def test_a_workspace_in_order_has_nothing_to_reconcile(services: Services, shapes: DatasetRecord) -> None:
    for name in NEIGHBOURS:
        if name != "ray":  # other workers of this machine may have been killed
            assert found(services, name) == (), name


# --- datasets ---


def test_a_pack_that_is_gone_is_fetched(services: Services, shapes: DatasetRecord) -> None:
    shutil.rmtree(services.data / shapes.dvc_path)
    settled(services, "datasets", "not on this machine")
    ensure(services.data, shapes.dvc_path, shapes.digest)


def test_a_remote_that_lost_its_objects_gets_them_again(services: Services, shapes: DatasetRecord) -> None:
    shutil.rmtree(services.data.parent / "dvc-remote")
    settled(services, "datasets", "does not have it")


def test_a_lost_pin_and_pack_come_back_from_the_registry_alone(
    services: Services, shapes: DatasetRecord
) -> None:
    shutil.rmtree(services.data / "shapes")
    settled(services, "datasets", ".dvc file is missing", "not on this machine")


def test_a_changed_pack_is_told_and_left_alone(services: Services, shapes: DatasetRecord) -> None:
    path = services.data / shapes.dvc_path / IMAGES
    path.unlink()
    path.write_bytes(b"something else")
    for _ in range(2):
        (finding,) = found(services, "datasets")
        assert finding.done is None
        assert "dataset pull shapes@1 --force" in str(finding.mend)
    assert path.read_bytes() == b"something else"
    dvc.restore(services.data, shapes.dvc_path, shapes.digest)
    assert found(services, "datasets") == ()


def test_what_is_nowhere_any_more_is_told(services: Services, shapes: DatasetRecord) -> None:
    for gone in (
        services.data / shapes.dvc_path,
        services.data / ".dvc/cache",
        services.data.parent / "dvc-remote",
    ):
        shutil.rmtree(gone)
    findings = found(services, "datasets")
    assert len(findings) == 2
    assert all(each.done is None and each.mend for each in findings)


def test_a_pack_that_nobody_recorded_is_told_and_can_be_added(
    services: Services, shapes: DatasetRecord, tmp_path: Path
) -> None:
    from orchestration.datasets import import_dataset

    lost = import_dataset(services.data, world.image_folder(tmp_path / "more", "z", seed=3), name="lost")
    (finding,) = found(services, "datasets")
    assert "import died" in finding.what
    assert str(services.data / lost.dvc_path) in str(finding.mend)
    additions.add_dataset(services.sessions, services.data, services.data / lost.dvc_path, name="lost")
    assert found(services, "datasets") == ()


# --- blobs ---


def test_a_damaged_and_a_missing_blob_are_told_and_garbage_goes(services: Services) -> None:
    digest = next(iter(services.store.digests()))
    path = services.store.path(digest)
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + b"!")
    (finding,) = found(services, "blobs")
    assert (finding.done, "hash to" in finding.what) == (None, True)
    path.unlink()
    (finding,) = found(services, "blobs")
    assert "not in the store" in finding.what
    path.write_bytes(content)
    nobodys = services.store.path(services.store.put_bytes(b"nobody's"))
    assert found(services, "blobs") == ()
    os.utime(nobodys, (1_000_000_000, 1_000_000_000))
    settled(services, "blobs", "nothing needs its 8 bytes")
    assert not nobodys.exists()


# --- MLflow ---


@pytest.fixture
def begun(services: Services, shapes: DatasetRecord) -> JobRecord:
    """A training of which MLflow knows its beginning, and ten points."""
    from orchestration.kinds.train import plan_of

    job = world.schedule(services, "shapes")
    learners, plan = plan_of(services, job)
    folder = services.runs / job.id
    keys = trainings.begin(services.tracking, job, learners, [shapes], plan, folder)
    assert trainings.begin(services.tracking, job, learners, [shapes], plan, folder) == keys
    services.tracking.log_metrics(keys["shapes"], [("loss", 1.0, step, step) for step in range(1, 11)])
    assert services.tracking.flush_all(), services.tracking.last_error
    return job


def ends(services: Services, job: JobRecord, state: str) -> None:
    """As by a worker that died right after it wrote this down."""
    with services.sessions.begin() as session:
        queue.cancel(session, job.id)
        session.execute(update(Job).where(Job.id == job.id).values(state=state))


def mlflow(services: Services, query: str) -> list[Any]:
    with sqlite3.connect(services.data.parent / "mlflow.db") as store:
        return store.execute(query).fetchall()


def test_what_mlflow_is_told_of_a_training_at_its_beginning(services: Services, begun: JobRecord) -> None:
    assert found(services, "mlflow") == ()
    names = {path.name for path in (services.data.parent / "artifacts").rglob("*") if path.is_file()}
    assert names == {"environment.json", "plan.json", "contact-sheet.png"}
    assert mlflow(services, "SELECT dataset_source_type, name FROM datasets") == [("dvc", "shapes")]
    assert ("affiner.rank", "2") in mlflow(services, "SELECT key, value FROM params")


def test_an_adapter_that_is_published_becomes_a_version_of_its_tasks_model_once(
    services: Services, begun: JobRecord, tmp_path: Path
) -> None:
    key = trainings.key_of(begun.id, 0)
    (tmp_path / "adapter-0.safetensors").write_bytes(b"tensors")
    services.tracking.log_artifact(key, tmp_path / "adapter-0.safetensors", "adapter")
    published = {field.name: None for field in fields(AdapterRecord)} | {
        "name": "shapes",
        "version": 1,
        "digest": "d" * 64,
        "backbone": "tiny@1",
        "dataset": "shapes@1",
        "kind": "affiner",
        "parameters": 7,
    }
    for _ in range(2):
        trainings.conclude(services.tracking, begun, [AdapterRecord(**published)])  # type: ignore[arg-type]
    assert services.tracking.pending() == 0, services.tracking.last_error
    ((name, run, source),) = mlflow(services, "SELECT name, run_id, source FROM model_versions")
    assert (name, run) == ("task.shapes", services.tracking.run_id(key))
    assert list(Path(source.removeprefix("file://")).glob("*.safetensors"))
    assert ("affinery.ref", "shapes@1") in mlflow(services, "SELECT key, value FROM model_version_tags")
    assert mlflow(services, "SELECT status FROM runs") == [("FINISHED",)]


def test_runs_of_a_job_that_was_cancelled_end(services: Services, begun: JobRecord) -> None:
    ends(services, begun, "cancelled")
    settled(services, "mlflow", "is cancelled, and left")
    assert mlflow(services, "SELECT status FROM runs") == [("KILLED",)]


def test_a_run_that_mlflow_lost_is_told_again_from_the_spool(
    services: Services, begun: JobRecord, mlflow_template: Path
) -> None:
    with sqlite3.connect(services.data.parent / "mlflow.db") as store:
        store.execute("DELETE FROM metrics WHERE step > 5")
        store.execute("DELETE FROM latest_metrics")
        store.execute("DELETE FROM tags WHERE key = 'affinery.job'")
    settled(services, "mlflow", "points of loss, tags")
    assert mlflow(services, "SELECT count(*) FROM metrics") == [(10,)]
    services.tracking.client()._tracking_client.store.engine.dispose()
    for part in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm"):
        (services.data.parent / part).unlink(missing_ok=True)
    shutil.copy(mlflow_template, services.data.parent / "mlflow.db")
    settled(services, "mlflow", "the whole run")
    assert mlflow(services, "SELECT count(*) FROM metrics") == [(10,)]


def test_a_run_that_somebody_deleted_in_mlflow_is_restored(services: Services, begun: JobRecord) -> None:
    run_id = services.tracking.run_id(trainings.keys_of(begun)["shapes"])
    assert run_id is not None
    services.tracking.client().delete_run(run_id)
    settled(services, "mlflow", "it was deleted in MLflow")
    assert mlflow(services, "SELECT lifecycle_stage FROM runs") == [("active",)]


def elsewhere(services: Services, uri: str) -> Services:
    tracking = open_tracking(uri, services.tracking.artifacts, services.tracking.spool)
    return Services(services.sessions, services.store, tracking, services.data, services.runs)


def test_an_mlflow_that_is_away_is_told_with_what_waits(services: Services, begun: JobRecord) -> None:
    away = elsewhere(services, "http://127.0.0.1:9")
    away.tracking.set_tags(trainings.key_of(begun.id, 0), {"more": "x"})
    (finding,) = found(away, "mlflow")
    assert finding.done is None
    assert "does not answer" in finding.what
    assert "1 runs wait" in finding.what
    settled(services, "mlflow", "waited in the spool")


def test_an_open_run_without_a_spool_ends_with_its_job(services: Services, begun: JobRecord) -> None:
    shutil.rmtree(services.tracking.spool)
    ends(services, begun, "dead")
    bare = elsewhere(services, services.tracking.uri)
    settled(bare, "mlflow", "its job is dead")
    assert mlflow(services, "SELECT status FROM runs") == [("FAILED",)]


# --- folders of jobs, and Ray's ---


def test_checkpoints_of_a_job_that_is_done_go_and_a_folder_of_no_job_is_told(
    services: Services, begun: JobRecord
) -> None:
    folder = services.runs / begun.id / "attempt-1/ray/checkpoint"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * 999)
    assert found(services, "attempts") == ()
    ends(services, begun, "done")
    settled(services, "attempts", "999 bytes of checkpoints")
    assert (services.runs / begun.id).exists()
    (services.runs / "of-nobody").mkdir()
    (finding,) = found(services, "attempts")
    assert (finding.done, "no such job" in finding.what) == (None, True)
    assert (services.runs / "of-nobody").exists()


def test_a_dead_job_keeps_its_checkpoints_until_a_later_one_has_learnt_the_same_and_its_log_for_ever(
    services: Services, begun: JobRecord
) -> None:
    own = services.runs / begun.id / "attempt-1"
    (own / "ray/checkpoint").mkdir(parents=True)
    (own / "ray/checkpoint/weights").write_bytes(b"x" * 999)
    for name in ("driver.log", "progress.jsonl", "plan.json"):
        (own / name).write_text("small")
    ends(services, begun, "dead")
    assert found(services, "attempts") == ()
    with services.sessions.begin() as session:
        later = queue.enqueue(session, begun.tasks, begun.recipe)
    assert found(services, "attempts") == ()
    ends(services, later, "done")
    settled(services, "attempts", "a later one has learnt the same, and 999 bytes")
    assert sorted(path.name for path in own.iterdir()) == ["driver.log", "plan.json", "progress.jsonl"]


def test_rays_folder_of_a_worker_that_was_killed_goes_and_that_of_a_living_one_stays(
    services: Services,
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    base = Path("/tmp") / FOLDER
    base.mkdir(mode=0o700, exist_ok=True)
    dead, living = base / f"{gone.pid}-test", base / f"{os.getpid()}-test"
    for folder in (dead, living):
        folder.mkdir()
    try:
        assert any(each.where == str(dead) for each in found(services, "ray"))
        assert not dead.exists()
        assert living.exists()
    finally:
        for folder in (dead, living):
            shutil.rmtree(folder, ignore_errors=True)


# --- the command ---


def test_the_command_exits_with_one_where_something_remains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mlflow_template: Path
) -> None:
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(tmp_path / "space"))
    (tmp_path / "space/mlflow").mkdir(parents=True)
    from affinery_app.wiring import create_workspace

    shutil.rmtree(tmp_path / "space")
    create_workspace(None)
    shutil.copy(mlflow_template, tmp_path / "space/mlflow/mlflow.db")
    images = world.image_folder(tmp_path / "images", "x", "y")
    assert typed("dataset", "add", "shapes", images, "--json") == 0
    assert typed("reconcile", "--only", "datasets", "--only", "blobs", "--only", "mlflow") == 0
    shutil.rmtree(tmp_path / "space/dvc-remote")
    capsys.readouterr()
    assert typed("reconcile", "--dry-run", "--only", "datasets") == 1
    assert "would be done: it was sent" in capsys.readouterr().out
    assert typed("reconcile", "--only", "datasets") == 0
    assert typed("dataset", "verify") == 0
    assert typed("reconcile", "--only", "nothing") == 2
