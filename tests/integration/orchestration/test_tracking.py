"""MLflow through the spool, from several processes and over a database that comes and goes."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from orchestration.tracking import Tracking, open_tracking
from orchestration.tracking.spool import OPERATIONS

spawned = multiprocessing.get_context("spawn")


def at(folder: Path) -> Tracking:
    return open_tracking(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", folder / "spool")


def ask(folder: Path, query: str) -> list[Any]:
    with sqlite3.connect(folder / "mlflow.db") as store:
        return store.execute(query).fetchall()


def _flush(folder: Path, gate: Any) -> None:
    tracking = at(folder)
    tracking.prepare()
    gate.wait()
    assert tracking.flush(), tracking.last_error


def test_two_processes_that_flush_at_once_make_one_run_and_double_nothing(
    tmp_path: Path, mlflow_template: Path
) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    tracking = at(tmp_path)
    keys = [tracking.start_run("e", f"run {i}", {"lr": 1}, {}) for i in range(3)]
    for key in keys:
        for step in range(50):
            tracking.kept.append(key, {"op": "metrics", "points": [["loss", 1.5, step, step]]})
    gate = spawned.Barrier(2)
    both = [spawned.Process(target=_flush, args=(tmp_path, gate)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(120)
    assert [each.exitcode for each in both] == [0, 0]
    assert ask(tmp_path, "SELECT count(*) FROM runs") == [(3,)]
    assert ask(tmp_path, "SELECT count(*) FROM metrics GROUP BY run_uuid") == [(50,)] * 3


def test_a_database_that_is_damaged_for_a_while_costs_no_point(tmp_path: Path, mlflow_template: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    tracking = at(tmp_path)
    key = tracking.start_run("e", "digits", {}, {})
    tracking.log_metrics(key, [("loss", 1.0, 1, 5)])
    tracking.finish(key)
    assert tracking.run_id(key) is None
    assert tracking.pending() == 1
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    again = at(tmp_path)
    assert again.flush(), again.last_error
    assert ask(tmp_path, "SELECT step, value FROM metrics") == [(1, 1.0)]
    assert ask(tmp_path, "SELECT status FROM runs") == [("FINISHED",)]


def test_replaying_everything_again_doubles_nothing(tmp_path: Path, mlflow_template: Path) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    tracking = at(tmp_path)
    key = tracking.start_run("e", "digits", {"lr": 0.1}, {"tag": "x"})
    tracking.log_metrics(key, [("loss", float(step), step, 1000 + step) for step in range(20)])
    tracking.finish(key)
    first = tracking.run_id(key)
    for state in (tmp_path / "spool" / key).glob("*.json"):
        state.unlink()
    assert tracking.flush()
    assert tracking.run_id(key) == first
    assert ask(tmp_path, "SELECT count(*) FROM metrics") == [(20,)]


def test_a_run_that_was_begun_by_a_process_that_died_at_once_is_no_hindrance(
    tmp_path: Path, mlflow_template: Path
) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    (tmp_path / "spool/0-nothing-in-it").mkdir(parents=True)
    (tmp_path / "spool/1-empty").mkdir()
    (tmp_path / "spool/1-empty" / OPERATIONS).touch()
    tracking = at(tmp_path)
    key = tracking.start_run("e", "digits", {}, {})
    assert tracking.flush()
    assert tracking.pending() == 0
    assert tracking.run_id(key)
