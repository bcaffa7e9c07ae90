"""The spool before MLflow: nothing is lost while MLflow is away, and one bad line holds up nothing."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from orchestration.tracking import Tracking, open_tracking
from orchestration.tracking.spool import OPERATIONS, REFUSED, STATE


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store whose tables are there: making them takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    open_tracking(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", folder / "spool").prepare()
    return folder / "mlflow.db"


def away(folder: Path) -> Tracking:
    """MLflow where nobody listens."""
    return open_tracking("http://127.0.0.1:9", folder / "artifacts", folder / "spool")


def back(folder: Path, prepared: Path) -> Tracking:
    """The same spool, and MLflow is there."""
    if not (folder / "mlflow.db").exists():
        shutil.copy(prepared, folder / "mlflow.db")
    return open_tracking(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", folder / "spool")


def points(folder: Path, run: str) -> list[tuple[int, float, int]]:
    with sqlite3.connect(folder / "mlflow.db") as store:
        query = "SELECT step, value, timestamp FROM metrics WHERE run_uuid = ? ORDER BY step"
        return store.execute(query, (run,)).fetchall()


def test_what_was_logged_while_mlflow_was_away_arrives_with_its_own_steps_and_times(
    tmp_path: Path, prepared: Path
) -> None:
    tracking = away(tmp_path)
    key = tracking.start_run("e", "digits", {"lr": 0.1}, {"t": "1"})
    for step in range(1200):
        tracking.log_metrics(key, [("loss", step / 7, step, 1_700_000_000_000 + step)])
    tracking.finish(key)
    assert tracking.pending() == 1
    assert tracking.run_id(key) is None
    assert tracking.last_error
    again = back(tmp_path, prepared)
    assert again.flush()
    assert again.pending() == 0
    run = again.run_id(key)
    assert run is not None
    assert points(tmp_path, run) == [(s, s / 7, 1_700_000_000_000 + s) for s in range(1200)]


def test_a_replay_that_was_cut_off_after_making_the_run_makes_no_second_one(
    tmp_path: Path, prepared: Path
) -> None:
    tracking = back(tmp_path, prepared)
    key = tracking.start_run("e", "digits", {"lr": 0.1}, {})
    tracking.log_metrics(key, [("loss", 1.0, 1, 5)])
    assert tracking.flush()
    first = tracking.run_id(key)
    (tmp_path / "spool" / key / STATE).unlink()
    assert tracking.flush()
    assert tracking.run_id(key) == first
    assert first is not None
    assert points(tmp_path, first) == [(1, 1.0, 5)]


def test_a_line_cut_off_by_a_kill_is_left_out_and_everything_after_it_arrives(
    tmp_path: Path, prepared: Path
) -> None:
    tracking = back(tmp_path, prepared)
    torn, whole = (tracking.start_run("e", name, {}, {}) for name in ("torn", "whole"))
    with (tmp_path / "spool" / torn / OPERATIONS).open("ab") as file:
        file.write(b'{"op": "metrics", "poi')
    tracking.log_metrics(torn, [("loss", 2.0, 2, 5)])
    tracking.log_metrics(whole, [("loss", 3.0, 3, 5)])
    assert tracking.flush()
    assert tracking.pending() == 0
    assert [points(tmp_path, tracking.run_id(key) or "") for key in (torn, whole)] == [
        [(2, 2.0, 5)],
        [(3, 3.0, 5)],
    ]


def test_what_mlflow_refuses_is_set_aside_and_holds_up_nothing(tmp_path: Path, prepared: Path) -> None:
    tracking = back(tmp_path, prepared)
    refused = tracking.start_run("e", "refused", {"bad key!": 1}, {})
    tracking.log_metrics(refused, [("loss", 1.0, 1, 5)])
    other = tracking.start_run("e", "other", {}, {})
    assert tracking.flush()
    assert tracking.pending() == 0
    assert points(tmp_path, tracking.run_id(refused) or "") == [(1, 1.0, 5)]
    assert tracking.run_id(other)
    assert "bad key!" in (tmp_path / "spool" / refused / REFUSED).read_text()


def test_pictures_arrive_and_one_that_is_gone_by_then_is_told(tmp_path: Path, prepared: Path) -> None:
    tracking = away(tmp_path)
    key = tracking.start_run("e", "pictures", {}, {})
    (tmp_path / "here.png").write_bytes(b"x")
    tracking.log_artifact(key, tmp_path / "here.png", "pictures")
    tracking.log_artifact(key, tmp_path / "gone.png", "pictures")
    again = back(tmp_path, prepared)
    assert again.flush()
    assert [path.name for path in (tmp_path / "artifacts").rglob("*.png")] == ["here.png"]
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        tags = dict(store.execute("SELECT key, value FROM tags").fetchall())
    assert tags["affinery.missing_artifact"].endswith("gone.png")
