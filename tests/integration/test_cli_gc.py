"""affinery gc beyond blobs: checkpoints that nothing goes on from, and what is kept of datasets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from affinery_app.settings import FILE, HEADER
from affinery_app.wiring import Workspace, open_workspace
from orchestration import queue
from orchestration.jobs import Order
from tests.command_line import typed


@pytest.fixture
def space(tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace with a job that is done, one that waits and a folder of none, each with a checkpoint."""
    for name in ("REGISTRY_URL", "STORE_URL", "TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(f"AFFINERY_{name}", raising=False)
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(tmp_path))
    shutil.copy(sqlite_template, tmp_path / "registry.db")
    (tmp_path / FILE).write_text(HEADER)
    made = open_workspace(None)
    with made.sessions.begin() as session:
        queue.enqueue_all(session, [Order(name, kind="verify") for name in ("done", "open")])
        held = queue.claim(session, "tests")
        assert held is not None
        queue.complete(session, held)
    for name in ("done", "open", "of-nobody"):
        attempt = tmp_path / "runs" / name / "attempt-1"
        (attempt / "checkpoint").mkdir(parents=True)
        (attempt / "checkpoint" / "state").write_bytes(bytes(777))
        (attempt / "driver.log").write_text("what it said\n")
    (tmp_path / "cache" / "latents").mkdir(parents=True)
    (tmp_path / "cache" / "latents" / "one").write_bytes(bytes(333))
    yield made
    made.sessions.engine.dispose()


def told(capfd: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert typed("gc", "--json", *options) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def test_a_dry_run_counts_to_the_byte_and_takes_nothing(
    space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(space.folder)
    found = told(capfd, "--dry-run", "--cache")
    assert found["runs"] == [{"job": "done", "why": "its job is done", "size_bytes": 777}]
    assert found["cache"] == {"files": 1, "size_bytes": 333}
    assert found["freed_bytes"] == 777 + 333
    assert files(space.folder) == before


def test_only_what_nothing_goes_on_from_is_taken_and_logs_stay(
    space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert told(capfd)["freed_bytes"] == 777
    assert not (space.runs / "done" / "attempt-1" / "checkpoint").exists()
    for name in ("done", "open", "of-nobody"):
        assert (space.runs / name / "attempt-1" / "driver.log").exists()
    for name in ("open", "of-nobody"):
        assert (space.runs / name / "attempt-1" / "checkpoint" / "state").exists()
    assert (space.folder / "cache" / "latents" / "one").exists()
    assert told(capfd)["freed_bytes"] == 0


def test_the_cache_goes_when_it_is_asked_for_but_not_under_a_job_that_runs(
    space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    with space.sessions.begin() as session:
        held = queue.claim(session, "tests")
    assert held is not None
    assert typed("gc", "--cache") == 0
    assert "the cache is kept: job 2 runs" in capfd.readouterr().err
    assert files(space.folder / "cache") == 1
    with space.sessions.begin() as session:
        queue.complete(session, held)
    assert told(capfd, "--cache")["cache"] == {"files": 1, "size_bytes": 333}
    assert files(space.folder / "cache") == 0
