"""Plans: what the guide shows is read; what is wrong is told with its line, all of it at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from affinery_app.plan_file import read_plan, wanted_of
from orchestration.errors import PlanInvalid
from tests.command_line import assert_command_exists

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "queue.md"


def plan(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def test_the_guide_s_plan_is_what_it_says(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    path = plan(tmp_path, text)
    signs, animals = wanted_of(read_plan(path), path, submitted_by="ann")
    assert (signs.names, signs.sources, signs.kinds) == (
        ("digits", "letters"),
        ("digits", "letters"),
        ("affiner", "affiner"),
    )
    assert (animals.names, animals.sources, animals.kinds) == (("animals",), ("animals@1",), ("lora",))
    assert (animals.after, animals.configs, animals.key) == ((0,), ({"rank": 16},), "plan:animals")
    assert (signs.recipe, animals.recipe) == ({"steps": 800, "batch": 64}, {"steps": 400, "batch": 64})
    assert (signs.job["priority"], animals.job["priority"], animals.job["submitted_by"]) == (0, 5, "ann")


def test_every_command_of_the_guide_is_one() -> None:
    found = re.findall(r"^\$ affinery (.*)$", GUIDE.read_text(), re.MULTILINE)
    assert len(found) > 20
    import shlex

    for line in found:
        assert_command_exists(shlex.split(line))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("backbone: b\nrecpie: {}\njobs: [{task: a}]", ["line 2, recpie: there is no such field"]),
        ("jobs:\n  - task: {kind: lora}", ["line 2, jobs[0].task[0].name: it is required"]),
        ("jobs:\n  - {task: a, priority: high}", ["line 2, jobs[0].priority:"]),
        ("jobs:\n  - {task: a, after: [b]}", ["line 2, jobs[0].after: no job is named 'b'"]),
        ("jobs:\n  - task: a\n  - tasks: [a, b]", ["task 'a' stands in it 2 times"]),
        ("jobs: []\nkind: 3", ["line 1, jobs:", "line 2, kind:"]),
        ("jobs: [{task: &x a}, {task: *x}]", ["line 1: aliases are not taken"]),
        ("jobs:\n  - task: a\n    task: b", ["line 3: 'task' stands here twice"]),
        ("jobs: [", ["line 1:"]),
        ("", ["line 1, the file:"]),
        ("- a", ["line 1, the file:"]),
    ],
)
def test_what_is_wrong_with_a_plan_is_told_with_its_line(tmp_path: Path, text: str, told: list[str]) -> None:
    with pytest.raises(PlanInvalid) as caught:
        read_plan(plan(tmp_path, text))
    for words in told:
        assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_plan_without_a_backbone_or_a_file_is_refused(tmp_path: Path) -> None:
    path = plan(tmp_path, "jobs: [{task: a}]")
    with pytest.raises(PlanInvalid, match="names no backbone"):
        wanted_of(read_plan(path), path)
    with pytest.raises(PlanInvalid, match="No such file"):
        read_plan(tmp_path / "none.yaml")
