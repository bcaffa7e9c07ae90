"""What the queue's guide tells people to type about jobs that wait, schedules and limits, typed in turn."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from affinery_app.wiring import create_workspace
from orchestration import additions, queue
from orchestration.jobs import Order
from orchestration.queue import limits, schedules
from tests import learning_world as world
from tests import registry_world as recorded
from tests.command_line import typed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "queue.md"
SECTIONS = ("States", "Schedules", "Limits")
WITH_A_PROCESS_OF_ITS_OWN = "--follow"  # it goes on until the job is over: test_queue_processes.py


def told() -> list[str]:
    """The commands of these sections' console blocks."""
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    blocks = "".join(
        block
        for name in SECTIONS
        for block in re.findall(r"^```console\n(.*?)^```", sections[name], re.DOTALL | re.MULTILINE)
    )
    return [line.removeprefix("$ ") for line in blocks.splitlines() if line.startswith("$ ")]


def test_the_guide_s_commands_about_jobs_schedules_and_limits_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    space, _ = create_workspace(tmp_path / "affinery-workspace")
    file = world.tiny_backbone(tmp_path / "dit.safetensors")
    additions.add_backbone(space.sessions, space.store, file, "tiny-dit")
    with space.sessions.begin() as session:
        for name in ("digits", "letters"):
            recorded.task(session, name, on="tiny-dit", rank=2)
        orders = [Order(f"job-{number}", kind="verify") for number in range(1, 5)]
        queue.enqueue_all(session, [*orders, Order("job-5", kind="verify", after=("job-3",))])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFFINERY_WORKSPACE", raising=False)
    commands = told()
    assert len(commands) > 15
    for line in commands:
        if line.endswith(WITH_A_PROCESS_OF_ITS_OWN):
            continue
        name, *words = shlex.split(line)
        assert name == "affinery"
        code = typed(*words)
        said = capfd.readouterr()
        assert code == 0, f"{line}\n{said.out}{said.err}"
    with space.sessions.read() as session:
        jobs = queue.list_all(session)
        assert [job.state for job in jobs] == ["queued"] * 5
        assert (jobs[2].generation, jobs[4].priority) == (1, 10)
        kept = {(each.scope, each.key, each.most) for each in limits.list_all(session)}
        assert kept == {("backbone", "tiny-dit@1", 2), ("resource", "gpus", 8)}
        assert schedules.list_all(session) == []
    space.sessions.engine.dispose()
