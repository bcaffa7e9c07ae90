"""What a command that only reads loads: nothing that trains, serves or migrates, and no other command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from affinery_app.cli.commands import PANELS, command_line
from affinery_app.settings import FILE, HEADER
from registry import aliases
from registry.session import connect, sessions
from tests import registry_world as world

READS = (
    "task list",
    "task show digits",
    "adapter list",
    "adapter show digits",
    "backbone list",
    "dataset list",
    "alias list",
    "lineage digits",
    "job list",
    "job list --limit 5 --kind train",
    "events",
    "config list",
    "job show 1",
)

HEAVY = ("torch", "numpy", "PIL", "ray", "mlflow", "dvc", "diffusers", "timm", "transformers")
SERVING = ("fastapi", "starlette", "uvicorn", "httpx", "requests", "alembic", "migrations", "jinja2")
CONVERTING = ("pydantic", "pydantic_core")
DRAWING = ("rich.console", "rich.table")
OTHERS = ("demo", "doctor", "run", "serve", "serve_model", "verify", "webhook")
CODE = """
import atexit, contextlib, gc, io, json, sys
from affinery_app.cli.main import main
atexit.register(lambda: print(json.dumps([found, looked, gc.get_freeze_count()])))
found = {}
before = sum(each["collections"] for each in gc.get_stats())
for line in sys.argv[1].split(";"):
    sys.argv = ["affinery", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            assert not end.code, line
    assert len(said.getvalue()) > 5, line
    if not found:
        looked = sum(each["collections"] for each in gc.get_stats()) - before
    found[line] = sorted(sys.modules)
"""


def loaded(lines: Iterable[str], folder: Path, first: str = "") -> tuple[dict[str, list[str]], int, int]:
    """→ modules loaded after each; collections of garbage in the first; objects frozen at the end"""
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{CODE}", ";".join(lines)],
        env=os.environ | {"AFFINERY_WORKSPACE": str(folder), "AFFINERY_URL": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules, collections, frozen = json.loads(done.stdout)
    return modules, collections, frozen


@pytest.fixture
def folder(tmp_path: Path, sqlite_template: Path) -> Path:
    shutil.copy(sqlite_template, tmp_path / "registry.db")
    (tmp_path / FILE).write_text(HEADER)
    engine = connect(f"sqlite:///{tmp_path / 'registry.db'}")
    with sessions(engine).begin() as session:
        world.backbone(session)
        world.learnt(session, "digits")
        aliases.point(session, "champion", "digits@1")
    engine.dispose()
    return tmp_path


def test_a_read_imports_nothing_that_it_does_not_need(folder: Path) -> None:
    found, _, _ = loaded(READS, folder)
    assert len(found) == len(READS)
    for line, modules in found.items():
        packages = {name.partition(".")[0] for name in modules}
        assert not packages & {*HEAVY, *SERVING, *CONVERTING}, line
        assert not {*modules} & {*DRAWING, *(f"affinery_app.cli.{name}" for name in OTHERS)}, line


def test_the_version_is_told_without_a_registry(tmp_path: Path) -> None:
    found, _, _ = loaded(["--version"], tmp_path)
    assert not {*found["--version"]} & {"sqlalchemy", "registry", "pydantic", *commands_of(PANELS)}


def commands_of(panels: Mapping[str, Mapping[str, str]]) -> set[str]:
    """The modules of commands."""
    return {
        f"affinery_app.cli.{where.partition('.')[0]}" for panel in panels.values() for where in panel.values()
    }


@pytest.mark.parametrize(
    ("shell", "told", "loads", "offers"),
    [
        ("bash", {"COMP_WORDS": "affinery\nta", "COMP_CWORD": "1"}, {"task", "labels"}, {"task", "tag"}),
        ("bash", {"COMP_WORDS": "affinery\ntask\n", "COMP_CWORD": "2"}, {"task"}, {"add", "show"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "affinery serve"}, {"serve", "serve_model"}, {"serve-model"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "affinery task "}, {"task"}, {"add", "show"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "affinery config s"}, {"config"}, {"set", "show"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "affinery --vers"}, set(), {"--version"}),
    ],
)
def test_a_shell_that_asks_what_follows_waits_for_no_other_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shell: str,
    told: dict[str, str],
    loads: set[str],
    offers: set[str],
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_AFFINERY_COMPLETE", f"complete_{shell}")
    modules, said = asked(tmp_path)
    assert modules & commands_of(PANELS) == {f"affinery_app.cli.{name}" for name in loads}
    assert offers <= set(re.findall(r"[\w-]+", said))


def asked(folder: Path) -> tuple[set[str], str]:
    """→ the modules that a shell's question loads, and the answer"""
    code = (
        "import atexit, json, sys; from affinery_app.cli.main import main; sys.argv = ['affinery'];"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return {*json.loads(done.stderr)}, done.stdout


def test_a_read_looks_for_no_garbage_neither_while_it_runs_nor_when_it_ends(folder: Path) -> None:
    _, collections, frozen = loaded(["task list"], folder)
    assert collections == 0
    assert frozen > 50_000  # what is frozen is passed over


def test_what_came_with_torch_is_collected_before_the_end(folder: Path) -> None:
    _, _, frozen = loaded(["--version"], folder, first="import torch")
    assert frozen < 1_000


def test_only_the_command_that_is_called_is_made() -> None:
    called = command_line(["job", "add", "export", "--help"])
    assert called.registered_commands == []
    (job,) = called.registered_groups
    assert job.typer_instance is not None
    assert job.typer_instance.registered_commands == []
    (add,) = job.typer_instance.registered_groups
    assert add.typer_instance is not None
    assert [each.name for each in add.typer_instance.registered_commands] == ["export"]


def test_all_commands_are_made_where_the_words_name_none() -> None:
    every = {name for panel in PANELS.values() for name in panel}
    words: list[str]
    for words in ([], ["--help"], ["jbo", "list"]):
        made = command_line(words)
        commands = {each.name for each in made.registered_commands}
        assert commands | {each.name for each in made.registered_groups} == every
    misspelt = command_line(["job", "lst"]).registered_groups[0].typer_instance
    assert misspelt is not None
    assert len(misspelt.registered_commands) > 5
