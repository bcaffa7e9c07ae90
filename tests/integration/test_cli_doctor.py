"""affinery doctor: what is well is said to be, and each thing that is not comes with how to mend it."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from affinery_app.doctor import machine, registry
from affinery_app.settings import FILE
from affinery_app.wiring import create_workspace, open_workspace
from orchestration.planner import GIB
from registry import adapters, blobs
from registry.storage.local import LocalStore
from tests import stored_world
from tests.command_line import typed

VARIABLES = ("WORKSPACE", "REGISTRY_URL", "STORE_URL", "TRACKING_URI", "RAY_ADDRESS", "TOKEN")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, mlflow_template: Path) -> Path:
    """A workspace as `affinery init` makes it."""
    folder = tmp_path_factory.mktemp("doctor") / "space"
    folder.mkdir()
    shutil.copy(sqlite_template, folder / "registry.db")  # already of this schema: nothing to migrate
    create_workspace(folder)
    shutil.copy(mlflow_template, folder / "mlflow" / "mlflow.db")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, to be spoilt."""
    for name in VARIABLES:
        monkeypatch.delenv(f"AFFINERY_{name}", raising=False)
    shutil.copytree(made, tmp_path / "space")
    return tmp_path / "space"


@pytest.fixture
def silent() -> Iterator[int]:
    """A port at which somebody listens and never says anything."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def closed() -> int:
    """A port at which nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def told(
    capfd: pytest.CaptureFixture[str], folder: Path, *more: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    """→ the exit code, and by part what is said of it"""
    code = typed("doctor", "--json", "--workspace", folder, *more)
    found = json.loads(capfd.readouterr().out)
    assert found["healthy"] is (code == 0)
    assert all(check.keys() == {"name", "state", "what", "mend"} for check in found["checks"])
    return code, {check["name"]: check for check in found["checks"]}


def execute(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "registry.db")) as database:
        database.execute(statement)
        database.commit()


def test_a_new_workspace_is_well_and_nothing_is_left_of_the_looking(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blobs = sorted((folder / "blobs").rglob("*"))
    code, found = told(capfd, folder)
    parts = ("workspace", "registry", "guards", "clock", "store", "mlflow", "dvc", "ray", "gpu", "packages")
    assert {name: found[name]["state"] for name in parts} == dict.fromkeys(parts, "ok")
    assert code == (1 if {found["disk"]["state"], found["memory"]["state"]} & {"fail"} else 0)
    left = [path for path in (folder / "blobs").rglob("*") if path.is_file()]
    assert left == [path for path in blobs if path.is_file()]


def test_for_people_each_part_is_a_line_that_fits_and_says_how_to_mend_it(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shutil.rmtree(folder / "dvc-remote")
    shutil.rmtree(folder / "mlflow")
    typed("doctor", "--workspace", folder)
    said = capfd.readouterr()
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in said.out + said.err
    assert sum(line.startswith("warn ") for line in lines) >= 2
    assert any(line.strip().startswith("→ have its tables made: affinery init") for line in lines)
    assert "warn" in said.err


def test_without_a_workspace_the_machine_is_looked_at_all_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], folder: Path
) -> None:
    code, found = told(capfd, tmp_path / "nowhere")
    assert code == 1
    assert "affinery init" in found["workspace"]["what"]
    assert found["packages"]["state"] == "ok"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("statement", "part", "words"),
    [
        ("DROP TRIGGER node_immutable", "registry", "node_immutable"),
        ("UPDATE alembic_version SET version_num = '0001'", "registry", "affinery migrate"),
        ("UPDATE alembic_version SET version_num = '9999'", "registry", "pip install --upgrade affinery"),
    ],
)
def test_a_registry_that_may_not_be_used_fails(
    folder: Path, capfd: pytest.CaptureFixture[str], statement: str, part: str, words: str
) -> None:
    with closing(sqlite3.connect(folder / "registry.db")) as database:
        first = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchone()[0]
    execute(folder, statement.replace("node_immutable", first))
    code, found = told(capfd, folder)
    assert code == 1
    assert found[part]["state"] == "fail"
    assert words.replace("node_immutable", first) in found[part]["what"]
    assert found["store"]["state"] == "ok"  # the rest is looked at all the same


def test_a_guard_of_other_words_under_its_own_name_is_found(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(folder / "registry.db")) as database:
        query = "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'"
        name, table = database.execute(query).fetchone()
    execute(folder, f"DROP TRIGGER {name}")
    execute(folder, f"CREATE TRIGGER {name} BEFORE DELETE ON {table} BEGIN SELECT 1; END")
    code, found = told(capfd, folder)
    assert code == 1
    assert found["guards"]["state"] == "fail"
    assert name in found["guards"]["what"]
    assert found["guards"]["mend"]


def test_a_file_that_is_no_database_and_one_that_is_gone_fail(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for left in folder.glob("registry.db*"):
        left.unlink()
    assert told(capfd, folder)[1]["registry"]["state"] == "fail"
    assert not (folder / "registry.db").exists()
    (folder / "registry.db").write_bytes(b"no database at all, but text" * 100)
    assert told(capfd, folder)[1]["registry"]["state"] == "fail"


def test_a_store_that_takes_nothing_fails(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFINERY_STORE_URL", str(folder / FILE / "blobs"))  # a file is no folder
    code, found = told(capfd, folder)
    assert (code, found["store"]["state"]) == (1, "fail")
    assert "store_url" in found["store"]["mend"]


def test_a_store_that_lost_what_is_recorded_fails_and_is_not_made_anew(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = LocalStore(folder / "blobs")
    stored_world.fill(f"sqlite:///{folder / 'registry.db'}", store, tmp_path)
    assert told(capfd, folder)[1]["store"]["state"] == "ok"
    with open_workspace(folder).sessions.read() as session:
        newest = blobs.newest(session, 3)
        assert newest[0] in {
            adapters.get(session, "birds").blob_digest,
            adapters.get(session, "birds").golden_blob,
        }
    store.remove(newest[0])
    found = told(capfd, folder)[1]["store"]
    assert found["state"] == "fail"
    assert "lacks 1 of" in found["what"]
    assert newest[0][:12] in found["what"]
    shutil.rmtree(folder / "blobs")
    code, checks = told(capfd, folder)
    assert (code, checks["store"]["state"]) == (1, "fail")
    assert "affinery verify" in checks["store"]["mend"]
    assert not (folder / "blobs").exists()


@pytest.mark.parametrize("text", ["registry_url = ", "nonsense = 'x'", "store_url = 3"])
def test_settings_that_cannot_be_read_come_with_how_to_mend_them(
    folder: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    (folder / FILE).write_text(text)
    code, found = told(capfd, folder)
    assert (code, found["workspace"]["state"]) == (1, "fail")
    assert FILE in found["workspace"]["mend"]


@pytest.mark.parametrize("port", ["silent", "closed"])
def test_an_mlflow_that_does_not_answer_is_a_warning_since_no_training_needs_it(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    port: str,
) -> None:
    monkeypatch.setattr("affinery_app.doctor.neighbours.ANSWER_SECONDS", 0.3)
    address = f"http://user:secret@127.0.0.1:{request.getfixturevalue(port)}"
    monkeypatch.setenv("AFFINERY_TRACKING_URI", address)
    found = told(capfd, folder)[1]["mlflow"]
    assert found["state"] == "warn"
    assert "secret" not in json.dumps(found)


def test_what_mlflow_was_not_told_yet_is_said(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_workspace(folder).tracking.start_run("experiment", "run", {}, {})
    found = told(capfd, folder)[1]["mlflow spool"]
    assert found["state"] == "warn"
    assert found["mend"] == "affinery reconcile --only mlflow"


def test_a_remote_of_the_datasets_that_is_away_is_a_warning(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "dvc-remote").rmdir()
    assert "dvc-remote" in told(capfd, folder)[1]["dvc"]["what"]
    shutil.rmtree(folder / "data")
    assert told(capfd, folder)[1]["dvc"]["state"] == "fail"


def test_a_cluster_answers_or_fails(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, silent: int, closed: int
) -> None:
    monkeypatch.setattr("affinery_app.doctor.neighbours.ANSWER_SECONDS", 0.3)
    for address, state in (
        (f"127.0.0.1:{silent}", "ok"),  # somebody listens, as Ray does
        (f"127.0.0.1:{closed}", "fail"),
        (f"http://127.0.0.1:{closed}", "fail"),
        (f"http://127.0.0.1:{silent}", "fail"),
        ("nonsense", "fail"),
    ):
        monkeypatch.setenv("AFFINERY_RAY_ADDRESS", address)
        assert told(capfd, folder)[1]["ray"]["state"] == state, address


@pytest.mark.slow
def test_deep_asks_mlflow_and_dvc_themselves(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    monkeypatch.setenv("AFFINERY_RAY_ADDRESS", f"127.0.0.1:{silent}")  # that Ray starts is tested with Ray
    found = told(capfd, folder, "--deep")[1]
    assert {found[name]["state"] for name in ("mlflow", "dvc", "store")} == {"ok"}
    assert "search" in found["mlflow"]["what"]
    (folder / "mlflow" / "mlflow.db").write_bytes(b"torn")
    (folder / "dvc-remote").rmdir()
    (folder / "dvc-remote").write_bytes(b"a file")
    found = told(capfd, folder, "--deep")[1]
    assert found["mlflow"]["state"] == "warn"


def test_room_and_packages_that_lack_are_told_before_they_are_needed(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "NO_DISK", 1 << 60)
    monkeypatch.setattr(machine, "LITTLE_MEMORY", 1 << 60)
    monkeypatch.setattr(machine, "NO_MEMORY", 0)
    wanted = ["torch>=99", "no-such-package", "x; extra=='y'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: wanted)
    found = told(capfd, folder)[1]
    assert (found["disk"]["state"], found["memory"]["state"]) == ("fail", "warn")
    assert "affinery gc" in found["disk"]["mend"]
    assert "no-such-package is not installed" in found["packages"]["what"]
    assert ">=99" in found["packages"]["what"]
    assert GIB == machine.GIB


@pytest.mark.postgres
def test_on_postgresql_the_clocks_are_compared(
    folder: Path, postgresql_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFINERY_REGISTRY_URL", postgresql_url)
    found = told(capfd, folder)[1]
    assert {found[name]["state"] for name in ("registry", "guards", "clock")} == {"ok"}
    assert found["clock"]["what"].endswith("s from the registry's")
    monkeypatch.setattr(registry, "TOLERATED", timedelta(0))
    assert told(capfd, folder)[1]["clock"]["state"] == "warn"


@pytest.mark.postgres
def test_a_database_server_that_is_away_fails(
    folder: Path, closed: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFINERY_REGISTRY_URL", f"postgresql://u:secret@127.0.0.1:{closed}/none")
    code, found = told(capfd, folder)
    assert (code, found["registry"]["state"]) == (1, "fail")
    assert "secret" not in json.dumps(found)
