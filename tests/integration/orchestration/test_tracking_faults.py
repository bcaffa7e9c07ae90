"""MLflow dies, hangs, loses its database; disks fill; processes are killed: nothing is missing in the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestration.tracking import Tracking, open_tracking
from orchestration.tracking.replay import DIGEST_TAG, REF_TAG
from orchestration.tracking.spool import OPERATIONS
from tests.mlflow_server import MlflowServer

spawned = multiprocessing.get_context("spawn")
TAGS = {REF_TAG: "digits@1", DIGEST_TAG: "d" * 64}


def at(folder: Path, uri: str | None = None) -> Tracking:
    return open_tracking(uri or f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", folder / "spool")


def ask(folder: Path, query: str) -> list[Any]:
    with sqlite3.connect(folder / "mlflow.db") as store:
        return store.execute(query).fetchall()


@pytest.fixture
def local(tmp_path: Path, mlflow_template: Path) -> Path:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return tmp_path


# --- a run with MLflow dead half the time equals one with it alive ---


def story(tracking: Tracking, folder: Path, moment: Callable[[int], None]) -> None:
    """Everything that may be told of a co-training and a composition. moment: between any two parts of it."""
    folder.mkdir()
    parent = tracking.start_run("e", "digits + faces", {"steps": 4}, {}, key="parent")
    moment(0)
    for name in ("digits", "faces"):
        key = tracking.start_run(
            "e", name, {"steps": 4, "lr": 1e-3}, {"affinery.task": name}, key=name, parent=parent
        )
        tracking.log_dataset(key, name, "ab" * 32, {"dvc_md5": "c.dir"}, {"images": 9})
        tracking.log_text(key, '{"seed": 1}', "plan.json")
        moment(1)
        for step in range(40):
            tracking.log_metrics(key, [("loss", 1 / (step + 1), step, 1_000_000 + step)])
            if step == 20:
                moment(2)
        (folder / "samples.png").write_bytes(name.encode() * 100)
        tracking.log_artifact(key, folder / "samples.png", "pictures")
        (folder / "samples.png").unlink()
        (folder / "adapter-0.safetensors").write_bytes(os.urandom(3) * 0 + name.encode())
        tracking.log_artifact(key, folder / "adapter-0.safetensors", "adapter")
        moment(3)
        tracking.register(key, f"task.{name}", "adapter", TAGS)
        tracking.finish(key)
    tracking.finish(parent)
    moment(4)
    both = tracking.start_run("e", "both@1", {"mode": "routed"}, {}, key="both")
    tracking.log_model(
        both, "both", "affinery-composition", "composition.both", TAGS, {"composition.json": "{}"}
    )
    tracking.finish(both)
    moment(5)


def everything(uri: str) -> dict[str, Any]:
    """What MLflow has, without what no two runs have in common."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("e")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    told: dict[str, Any] = {}
    for run in runs:
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.user"}
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = names[tags["mlflow.parentRunId"]]
        told[names[run.info.run_id]] = {
            "status": run.info.status,
            "tags": tags,
            "params": run.data.params,
            "metrics": {
                name: sorted(
                    (p.step, p.value, p.timestamp) for p in client.get_metric_history(run.info.run_id, name)
                )
                for name in run.data.metrics
            },
            "files": {
                file.path: file.file_size
                for folder in ("", "pictures", "adapter")
                for file in client.list_artifacts(run.info.run_id, folder)
            },
            "inputs": [
                (each.dataset.name, each.dataset.digest, each.dataset.source, each.dataset.profile)
                for each in run.inputs.dataset_inputs
            ],
        }
    models = [
        (version.name, version.version, version.tags, names.get(version.run_id))
        for version in client.search_model_versions()
    ]
    logged = [
        (model.name, str(model.status), model.model_type)
        for model in client.search_logged_models([experiment.experiment_id])
    ]
    return {"runs": told, "models": sorted(models, key=str), "logged": logged}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_with_mlflow_dead_half_the_time_is_the_same_as_one_with_it_alive(
    tmp_path: Path, mlflow_template: Path
) -> None:
    for name in ("dying", "alive"):
        (tmp_path / name).mkdir()
        shutil.copy(mlflow_template, tmp_path / name / "mlflow.db")
    server = MlflowServer(tmp_path / "dying")
    try:
        server.start()
        dying = at(tmp_path / "dying", server.uri)
        passed: list[int] = []

        def kill_and_bring_back(moment: int) -> None:
            passed.append(moment)
            if passed == [0, 1]:
                assert dying.flush_all(), dying.last_error
                server.kill()
            elif passed == [0, 1, 2, 3, 1, 2]:
                server.start()
                assert dying.flush_all(), dying.last_error
            elif moment == 4:
                # It hangs, as behind a network that is gone: nobody waits for it to log.
                server.signal(signal.SIGSTOP)
                begun = dying.start_run("e", "unheard", {}, {}, key="unheard")
                dying._last_flush = 0.0
                for step in range(200):
                    dying.log_metrics(begun, [("loss", 1.0, step, step)])
                assert dying._flushing is not None
                assert dying._flushing.is_alive()
                server.kill()
                dying._flushing.join()

        story(dying, tmp_path / "files", kill_and_bring_back)
        assert dying.pending() > 0
        server.start()
        assert at(tmp_path / "dying", server.uri).flush_all()
        found = everything(server.uri)
        assert len(found["runs"].pop("unheard")["metrics"]["loss"]) == 200
        server.kill()
        server = MlflowServer(tmp_path / "alive")
        server.start()
        alive = at(tmp_path / "alive", server.uri)
        story(alive, tmp_path / "more files", lambda _: None)
        assert alive.pending() == 0
        expected = everything(server.uri)
    finally:
        server.kill()
    assert sorted(found["runs"]) == ["both@1", "digits", "digits + faces", "faces"]
    for name, run in expected["runs"].items():
        for what, value in run.items():
            assert found["runs"][name][what] == value, (name, what)
    assert found == expected
    assert [(name, version) for name, version, *_ in found["models"]] == [
        ("composition.both", "1"),
        ("task.digits", "1"),
        ("task.faces", "1"),
    ]


# --- one fault at a time ---


def test_told_twice_from_the_beginning_nothing_is_there_twice(local: Path) -> None:
    tracking = at(local)
    story(tracking, local / "files", lambda _: None)
    assert tracking.pending() == 0, tracking.last_error
    first = everything(tracking.uri)
    for key in ("parent", "digits", "faces", "both"):
        tracking.replay_anew(key)
    again = at(local)
    assert again.flush_all(), again.last_error
    seen = everything(tracking.uri)
    for name, run in first["runs"].items():
        assert seen["runs"][name] == run, name
    assert seen == first


def test_a_server_that_comes_back_with_an_empty_database_is_told_everything_again(
    local: Path, mlflow_template: Path
) -> None:
    tracking = at(local)
    key = tracking.start_run("e", "digits", {"lr": 1}, {})
    tracking.log_metrics(key, [("loss", float(step), step, step) for step in range(10)])
    assert tracking.flush_all()
    first = tracking.run_id(key)
    shutil.copy(mlflow_template, local / "mlflow.db")
    tracking = at(local)
    tracking.log_metrics(key, [("loss", 10.0, 10, 10)])
    assert tracking.flush_all(), tracking.last_error
    assert tracking.run_id(key) != first
    assert ask(local, "SELECT count(*) FROM metrics") == [(11,)]


def test_one_value_that_mlflow_refuses_does_not_take_the_others_with_it(local: Path) -> None:
    tracking = at(local)
    key = tracking.start_run(
        "e", "digits", {"bad key!": 1, "lr": 0.1, "steps": 3}, {"good": "x", "bad!": "y"}
    )
    assert tracking.flush_all()
    assert dict(ask(local, "SELECT key, value FROM params")) == {"lr": "0.1", "steps": "3"}
    assert ("good", "x") in ask(local, "SELECT key, value FROM tags")
    assert (local / "spool" / key / "refused.jsonl").read_text().count("\n") == 2


@contextmanager
def files_no_longer_than(size_bytes: int) -> Iterator[None]:
    """As on a full disk, a write past this size fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_fails_no_training_is_told_and_loses_nothing_once_there_is_room(
    local: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = at(local)
    key = tracking.start_run("e", "digits", {"lr": 1}, {})
    size = (local / "spool" / key / OPERATIONS).stat().st_size
    (local / "picture.png").write_bytes(b"x" * 5000)
    with files_no_longer_than(size + 30):
        for step in range(100):
            tracking.log_metrics(key, [("loss", float(step), step, step)])
        tracking.log_artifact(key, local / "picture.png", "pictures")
        assert "cannot be written" in str(tracking.trouble)
        assert len([record for record in caplog.records if "Make room" in record.getMessage()]) == 1
        other = tracking.start_run("e", "begun on a full disk", {}, {})
    tracking.set_tags(key, {"a": "b"})
    tracking.set_tags(other, {"a": "b"})
    assert tracking.trouble is None
    assert tracking.flush_all()
    assert ask(local, "SELECT count(*) FROM metrics") == [(100,)]
    assert ask(local, "SELECT count(*) FROM runs") == [(2,)]
    assert [path.name for path in (local / "artifacts").rglob("*.png")] == ["picture.png"]


def _log_until_killed(folder: Path, key: str, told: Any) -> None:
    tracking = at(folder, "http://127.0.0.1:9")
    for step in range(1_000_000):
        tracking.log_metrics(key, [("loss", float(step), step, step)])
        told.send(step)


def test_what_was_logged_before_a_kill_is_in_the_spool(local: Path) -> None:
    tracking = at(local)
    key = tracking.start_run("e", "digits", {}, {})
    for _ in range(2):
        here, there = spawned.Pipe(duplex=False)
        child = spawned.Process(target=_log_until_killed, args=(local, key, there))
        child.start()
        last = -1
        for _ in range(random.randrange(20, 60)):
            last = here.recv()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert tracking.flush_all()
        ((seen,),) = ask(local, "SELECT max(step) FROM metrics")
        assert seen >= last
    json.loads((local / "spool" / key / "state.json").read_text())
