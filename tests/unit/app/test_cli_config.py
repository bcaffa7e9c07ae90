"""affinery config: every setting, where it comes from, and how it is written down."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from affinery_app.settings import FILE, HEADER, SETTINGS, read
from tests.command_line import typed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(tmp_path))
    (tmp_path / FILE).write_text(HEADER)
    return tmp_path


def shown(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert typed("config", *arguments, "--json") == 0
    return json.loads(capfd.readouterr().out)


def test_every_setting_says_where_it_comes_from(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("config", "set", "store_url", "/srv/blobs")
    typed("config", "set", "ray_address", "auto")
    monkeypatch.setenv("AFFINERY_RAY_ADDRESS", "http://ray:8265")
    capfd.readouterr()
    found = {one["name"]: (one["value"], one["source"]) for one in shown(capfd, "list")["settings"]}
    assert found == {
        "registry_url": (f"sqlite:///{folder}/registry.db", "default"),
        "store_url": ("/srv/blobs", "affinery.toml"),
        "tracking_uri": (f"sqlite:///{folder}/mlflow/mlflow.db", "default"),
        "ray_address": ("http://ray:8265", "AFFINERY_RAY_ADDRESS"),
        "webhook_hosts": (None, "default"),
    }


def test_what_is_set_is_read_and_what_is_unset_is_the_default_again(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for value in ("postgresql://ann@db/one", 'postgresql://ann@db/tw"o\\'):
        assert typed("config", "set", "registry_url", value) == 0
        assert read(folder).registry_url == value
    assert (folder / FILE).read_text().count("\nregistry_url") == 1
    assert typed("config", "unset", "registry_url") == 0
    assert read(folder).registry_url is None
    assert (folder / FILE).read_text() == HEADER


def test_remarks_and_other_settings_stay_as_they_are(folder: Path) -> None:
    text = f'{HEADER}# ours\nray_address = "auto"  # the head node\n'
    (folder / FILE).write_text(text)
    assert typed("config", "set", "store_url", "/srv/blobs") == 0
    assert (folder / FILE).read_text() == f'{text}store_url = "/srv/blobs"\n'


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("registry_url", "mysql://db/x"),
        ("registry_url", "nonsense"),
        ("store_url", "ftp://store/x"),
        ("tracking_uri", "mlflow:5000"),
        ("ray_address", "ray://head:10001"),
        ("ray_address", ""),
        ("ray_address", "auto\nstore_url = 'x'"),
        ("ray_adress", "auto"),
    ],
)
def test_what_could_not_be_used_is_refused_and_nothing_is_written(
    folder: Path, capfd: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    assert typed("config", "set", name, value) in (1, 2)
    assert capfd.readouterr().err.startswith("error: ")
    assert (folder / FILE).read_text() == HEADER


def test_a_file_that_is_written_in_another_way_is_left_alone(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = 'store_url = """\n/srv/blobs"""\n'
    (folder / FILE).write_text(text)
    assert typed("config", "set", "store_url", "/other") == 2
    assert "by hand" in capfd.readouterr().err
    assert tomllib.loads((folder / FILE).read_text())["store_url"] == "/srv/blobs"


def test_passwords_are_never_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert typed("config", "set", "registry_url", "postgresql://ann:secret@db/one") == 0
    assert typed("config", "list") == 0
    assert typed("config", "show", "registry_url") == 0
    said = capfd.readouterr()
    assert "secret" not in said.out + said.err
    assert "ann:***@db" in said.out


def test_without_a_workspace_it_says_how_to_make_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(tmp_path / "nowhere"))
    assert typed("config", "list") == 2
    assert "affinery init" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('ray_adress = "auto"', ("'ray_adress'", "ray_address")),
        ("store_url = 7", ("store_url", "in quotes")),
        ("schema = 99", ("99", "newer Affinery")),
        ("schema = ", (FILE,)),
    ],
)
def test_a_file_that_says_what_nobody_understands_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str], text: str, told: tuple[str, ...]
) -> None:
    (folder / FILE).write_text(f"{text}\n")
    assert typed("task", "list") == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert all(each in said.err for each in told)
