"""What a command that only reads loads: nothing that trains, serves or migrates, and no other command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from affinery_app.cli.main import _meant, app
from affinery_app.settings import FILE, HEADER
from registry import aliases
from registry.session import connect, sessions
from tests import registry_world as world

READS = (
    "--version",
    "task list",
    "task show digits",
    "adapter list",
    "adapter show digits",
    "backbone list",
    "dataset list",
    "alias list",
    "lineage digits",
    "job list",
    "job show 1",
    "events",
    "config list",
)
HEAVY = ("torch", "numpy", "PIL", "ray", "mlflow", "dvc", "diffusers", "timm", "transformers")
SERVING = ("fastapi", "starlette", "uvicorn", "httpx", "requests", "alembic", "migrations", "jinja2")
CODE = """
import contextlib, io, json, sys
from affinery_app.cli.main import main
found = {}
for line in sys.argv[1].split(";"):
    sys.argv = ["affinery", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            assert not end.code, line
    assert len(said.getvalue()) > 5, line
    found[line] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(found))
"""


def test_a_read_imports_nothing_that_it_does_not_need(tmp_path: Path, sqlite_template: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "registry.db")
    (tmp_path / FILE).write_text(HEADER)
    engine = connect(f"sqlite:///{tmp_path / 'registry.db'}")
    with sessions(engine).begin() as session:
        world.backbone(session)
        world.learnt(session, "digits")
        aliases.point(session, "champion", "digits@1")
    engine.dispose()
    done = subprocess.run(
        [sys.executable, "-c", CODE, ";".join(READS)],
        env=os.environ | {"AFFINERY_WORKSPACE": str(tmp_path), "AFFINERY_URL": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line, loaded in json.loads(done.stdout).items():
        assert not set(loaded) & {*HEAVY, *SERVING}, line
    assert "sqlalchemy" not in json.loads(done.stdout)["--version"]


def test_only_the_command_that_is_called_is_made() -> None:
    called = _meant(app, ["job", "add", "export", "--help"])
    assert called.registered_commands == []
    (job,) = called.registered_groups
    assert job.typer_instance is not None
    assert job.typer_instance.registered_commands == []
    (add,) = job.typer_instance.registered_groups
    assert add.typer_instance is not None
    assert [each.name for each in add.typer_instance.registered_commands] == ["export"]


def test_all_commands_are_made_where_the_words_name_none() -> None:
    for words in ([], ["--help"], ["jbo", "list"]):
        assert _meant(app, words) is app
    misspelt = _meant(app, ["job", "lst"]).registered_groups[0].typer_instance
    assert misspelt is not None
    assert len(misspelt.registered_commands) > 5
    assert len(app.registered_groups) > 5
