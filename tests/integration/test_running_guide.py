"""What the guide to running jobs tells people to type, typed; a worker is ended as the page says.

The jobs need no Ray: what a worker does with trainings, and when it is stopped amid one, is tested elsewhere.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from affinery_app.wiring import Workspace, create_workspace
from orchestration import queue
from orchestration.jobs import Order

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "running-jobs.md"
UNTIL_EMPTY, UNTIL_STOPPED = "run", "worker"


def told() -> list[list[str]]:
    """The words of the commands in the page's console blocks, without what is remarked beside them."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Workspace]:
    made, _ = create_workspace(tmp_path / "affinery-workspace")
    yield made
    made.sessions.engine.dispose()


def put(space: Workspace, *ids: str) -> None:
    with space.sessions.begin() as session:
        queue.enqueue_all(session, [Order(job_id, kind="verify") for job_id in ids])


def states(space: Workspace) -> set[str]:
    with space.sessions.read() as session:
        return {job.state for job in queue.list_all(session)}


def until(process: subprocess.Popen[str], words: str, times: int = 1) -> str:
    """Reads what it says until it has said these words so often. → all of it"""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if len(re.findall(words, said)) >= times:
            return said
    raise AssertionError(said)


def test_every_command_of_the_page_does_what_it_says(space: Workspace, tmp_path: Path) -> None:
    commands = told()
    assert [words[:2] for words in commands] == [
        ["affinery", UNTIL_EMPTY],
        ["affinery", UNTIL_STOPPED],
        ["affinery", UNTIL_STOPPED],
    ]
    environment = {name: value for name, value in os.environ.items() if name != "AFFINERY_WORKSPACE"}
    ends = iter((signal.SIGINT, signal.SIGTERM))
    for number, (_, *words) in enumerate(commands):
        put(space, f"first-{number}", f"second-{number}")
        process = subprocess.Popen(
            [sys.executable, "-m", "affinery_app.cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=environment | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            if words[0] == UNTIL_EMPTY:
                said, _ = process.communicate(timeout=300)
                assert process.returncode == 0, said
            else:
                said = until(process, r"\[verify [^]]*\] done", 2)
                process.send_signal(next(ends))
                said += process.communicate(timeout=60)[0]
        finally:
            process.kill()
        assert states(space) == {"done"}, said
