"""How the command line behaves: hints, exit codes, plain text where nobody watches, and what TAB offers."""

from __future__ import annotations

import io
import os
import pty
import select
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.core import TyperGroup

from affinery_app.cli import progress
from affinery_app.cli.progress import Screen
from affinery_app.cli.run import show_next
from affinery_app.settings import FILE, HEADER
from orchestration.jobs import JobRecord
from registry import aliases, compositions
from registry.session import connect, sessions
from tests import registry_world as world
from tests.command_line import root_command, typed


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """A workspace's registry with two learnt tasks, and nothing else of a workspace."""
    folder = tmp_path_factory.mktemp("manners")
    shutil.copy(sqlite_template, folder / "registry.db")
    (folder / FILE).write_text(HEADER)
    engine = connect(f"sqlite:///{folder / 'registry.db'}")
    with sessions(engine).begin() as session:
        world.backbone(session, "dit")
        world.learnt(session, "digits", 1)
        world.learnt(session, "dice", 1)
        world.learnt(session, "faces", 1)
        aliases.point(session, "champion", "digits@1")
        compositions.register(
            session, name="both", backbone="dit", mode="routed", recipe={}, members=["digits", "dice"]
        )
    engine.dispose()
    return folder


@pytest.fixture
def folder(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REGISTRY_URL", "STORE_URL", "TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(f"AFFINERY_{name}", raising=False)
    monkeypatch.setenv("AFFINERY_WORKSPACE", str(recorded))
    return recorded


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("tsk", "list"), "task"),
        (("task", "lst"), "list"),
        (("task", "list", "--jsn"), "--json"),
        (("task", "show", "digts"), "digits"),
        (("backbone", "show", "dot"), "dit"),
        (("job", "list", "--task", "nope"), "digits"),
        (("job", "list", "--task", "digts"), "Did you mean"),
        (("task", "watch", "digts"), "digits"),
        (("config", "show", "registry"), "registry_url"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    folder: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], hint: str
) -> None:
    assert typed(*words) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert hint in said.err


@pytest.mark.parametrize("option", ["--targets", "--parts"])
@pytest.mark.parametrize("empty", ["", " , "])
def test_an_option_that_names_nothing_is_not_as_if_it_were_left_out(
    folder: Path, capfd: pytest.CaptureFixture[str], option: str, empty: str
) -> None:
    assert typed("task", "add", "new", "--backbone", "dit", "--dataset", "digits", option, empty) == 2
    assert f"{option}: it names nothing" in capfd.readouterr().err
    assert typed("task", "show", "new") == 2


def test_nothing_that_waits_is_nothing_to_watch(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert typed("task", "watch") == 0
    assert "Nothing waits" in capfd.readouterr().err


def test_where_nobody_watches_there_is_no_colour_and_no_line_is_too_long(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for words in (("task", "list"), ("adapter", "list"), ("backbone", "list"), ("dataset", "list")):
        assert typed(*words) == 0
        said = capfd.readouterr()
        assert "\x1b" not in said.out + said.err
        assert max(map(len, said.out.splitlines())) <= 80
        assert "Next:" not in said.err  # which is for people


def commands(group: TyperGroup, *path: str) -> Iterator[tuple[str, str]]:
    """Every command's words, and its help."""
    for name, each in group.commands.items():
        if isinstance(each, TyperGroup):
            yield from commands(each, *path, name)
        else:
            yield " ".join([*path, name]), each.help or ""


def test_the_terminal_breaks_the_lines_of_every_help_and_not_the_source(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict(commands(root_command()))
    assert len(found) > 80
    assert [name for name, text in found.items() if not text or "\n" in text.replace("\n\n", "")] == []
    for columns in ("60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        assert typed("serve", "--help") == 0
        shown = [line.strip() for line in capfd.readouterr().out.splitlines()]
        for paragraph in found["serve"].split("\n\n"):
            assert {*textwrap.wrap(paragraph, int(columns) - 2)} <= {*shown}


def completed(words: str, workspace: Path) -> list[str]:
    """What the shell is offered for the last of these words."""
    count = len(words.split(" ")) - 1
    told = {
        "_AFFINERY_COMPLETE": "complete_bash",
        "COMP_WORDS": words.replace(" ", "\n"),
        "COMP_CWORD": str(count),
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("affinery")],
        env=os.environ | told | {"AFFINERY_WORKSPACE": str(workspace)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_tab_offers_names_of_the_registry(folder: Path) -> None:
    assert completed("affinery task show di", folder) == ["dice", "digits"]
    assert completed("affinery adapter show digits@c", folder) == ["digits@champion"]
    assert completed("affinery task add x --backbone d", folder) == ["dit"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("report di", ["dice", "digits"]),
        ("evaluate di", ["dice", "digits"]),
        ("compare dice di", ["dice", "digits"]),
        ("compose both --task di", ["dice", "digits"]),
        ("export bo", ["both"]),
        ("sample bo", ["both"]),
        ("download bo", ["both"]),
        ("retention d", ["dit"]),
        ("tag backbone:", ["backbone:dit"]),
        ("note di", ["dice", "digits", "dit"]),
        ("rename c", ["composition:both"]),
        ("export both --format dif", ["diffusers"]),
        ("job list --state d", ["done", "dead"]),
        ("job list --kind e", ["evaluate", "export"]),
        ("events --kind ada", ["adapter.published"]),
    ],
)
def test_tab_offers_what_an_argument_may_be(folder: Path, words: str, offered: list[str]) -> None:
    assert completed(f"affinery {words}", folder) == offered


COMPLETED = {
    "adapter show digits@": "adapter show digits@champion",
    "adapter show digits@c": "adapter show digits@champion",
    "rename backbone:": "rename backbone:dit",
    "rename task:dig": "rename task:digits",
    "compose a --task digits@champion --task dig": "compose a --task digits@champion --task digits",
    'adapter show "digits@c': 'adapter show "digits@champion"',
}


def test_tab_in_bash_goes_on_behind_an_at_and_a_colon_where_bash_parts_words(
    folder: Path, tmp_path: Path
) -> None:
    command = Path(sys.executable).with_name("affinery")
    # As --show-completion tells it to who types in a bash; here it may be nobody.
    asked = os.environ | {"_AFFINERY_COMPLETE": "source_bash"}
    offers = subprocess.run([command], env=asked, capture_output=True, text=True, timeout=120, check=True)
    lines, beginning = tmp_path / "lines", tmp_path / "beginning"
    lines.touch()
    wrote = f'bind -x \'"\\C-t": printf "%s\\n" "$READLINE_LINE" >> "{lines}"\''
    beginning.write_text(f"PATH={command.parent}:$PATH\n{offers.stdout}\n{wrote}\nPS1='> '\n")
    words = ["bash", "--noprofile", "--rcfile", str(beginning), "-i"]
    terminal, its = pty.openpty()
    process = subprocess.Popen(words, stdin=its, stdout=its, stderr=its, start_new_session=True)
    try:
        shown = os.read(terminal, 65_536)
        while not shown.endswith(b"> "):  # its prompt: now it takes keys
            shown += os.read(terminal, 65_536)
        for count, begun in enumerate(COMPLETED, 1):
            os.write(terminal, f"affinery {begun}\t\x14\x15".encode())  # TAB, write it down, wipe it
            until = time.monotonic() + 60
            while len(lines.read_text().splitlines()) < count:
                assert time.monotonic() < until, f"nothing came of {begun!r}: {shown!r}"
                if select.select([terminal], [], [], 0.05)[0]:
                    shown += os.read(terminal, 65_536)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(its)
    ended = [line.rstrip() for line in lines.read_text().splitlines()]
    assert ended == [f"affinery {line}" for line in COMPLETED.values()]


def test_tab_offers_nothing_and_says_nothing_where_there_is_no_workspace(tmp_path: Path) -> None:
    assert completed("affinery task show d", tmp_path) == []


def printed_to(out: int, err: int, *words: str) -> int:
    """A command of its own that prints into these. → its exit code"""
    command = [str(Path(sys.executable).with_name("affinery")), *words]
    return subprocess.run(command, stdout=out, stderr=err, timeout=120, check=False).returncode


def said_into(file: Path, out: int | str, *words: str) -> tuple[int, str]:
    """→ the exit code of a command whose results go there, and what it said beside them"""
    with file.open("w") as err:
        into = os.open(out, os.O_WRONLY) if isinstance(out, str) else out
        code = printed_to(into, err.fileno(), *words)
        os.close(into)
    return code, file.read_text()


@pytest.fixture
def unread() -> int:
    """A pipe whose reader went away."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("unbuffered", ["", "1"])  # found out when all is printed, or at the first line
@pytest.mark.parametrize("words", ["events", "task list --json", "task add --help", "--version"])
def test_a_command_ends_quietly_where_nobody_reads_it_any_more(
    folder: Path, tmp_path: Path, unread: int, words: str, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    assert said_into(tmp_path / "said", unread, *words.split()) == (141, "")


def test_a_command_ends_quietly_where_nobody_reads_its_errors_either(folder: Path, unread: int) -> None:
    assert printed_to(unread, unread, "task", "show", "nope") == 141
    os.close(unread)


def test_results_that_cannot_be_written_are_an_error_in_one_line(folder: Path, tmp_path: Path) -> None:
    code, said = said_into(tmp_path / "said", "/dev/full", "events")
    assert (code, said) == (1, "error: No space left on device\n")


def test_the_bar_of_a_job_that_is_over_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    real = progress.bars()
    monkeypatch.setattr(progress, "bars", lambda: real)
    real.live.console = Console(file=screen, force_terminal=True, width=80)
    real.disable = False
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Screen() as shown:
        for number in range(3):
            job = _job(number)
            shown.started(job, 0)
            assert len(real.tasks) == 1
            if number == 1:
                shown.failed(job, RuntimeError("it broke"), "dead")
            else:
                shown.done(job, {})
            assert real.tasks == []


@pytest.mark.parametrize(
    ("states", "done", "steps"),
    [
        ([], 0, []),
        ([], 2, ["affinery job list"]),
        (["dead", "queued"], 1, ["affinery job logs 0"]),
    ],
)
def test_the_next_step_fits_what_came_of_the_queue(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    states: list[str],
    done: int,
    steps: list[str],
) -> None:
    screen = Screen()
    for number, state in enumerate(states):
        screen.failed(_job(number), RuntimeError("it broke"), state)
    capsys.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show_next(screen, done)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()[2:]] == steps


def _job(number: int) -> JobRecord:
    known: dict[str, Any] = dict.fromkeys(each.name for each in fields(JobRecord))
    known |= {"id": f"job-{number}", "number": number, "kind": "train", "tasks": ("digits",)}
    return JobRecord(**known | {"strategy": "sequential", "payload": {"recipe": {"steps": 10}}})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("events --kind nonsense", "is no kind of event: write job.done"),
        ("events --kind job.*", "is no kind of event: write job.done"),
        ("job show 99", "No job has the number 99, or an id that begins so."),
        ("job show 9z", "No job has an id that begins with '9z'."),
        ("sample both --out drawn.txt", "drawn.txt does not end in .png"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    folder: Path, capfd: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    assert typed(*words.split()) == 2
    said = capfd.readouterr()
    assert (said.out, told in said.err) == ("", True)


def test_the_doctor_looks_at_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFFINERY_WORKSPACE", raising=False)
    monkeypatch.setenv("AFFINERY_URL", "http://127.0.0.1:1")
    assert typed("doctor") == 2
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "AFFINERY_URL means the service at http://127.0.0.1:1" in said.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_told_by_its_number(folder: Path, encoding: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "affinery_app.cli.main", "task", "show", "digits"],
        env=os.environ | {"PYTHONIOENCODING": encoding, "AFFINERY_WORKSPACE": str(folder)},
        capture_output=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert ("─" if encoding == "utf-8" else "\\u2500") in told.stdout.decode(encoding)
