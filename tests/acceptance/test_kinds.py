"""Tasks of any kind and any setting, as they are asked for on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import learning_world as world
from tests.command_line import typed

pytestmark = pytest.mark.timeout(600)


Captured = pytest.CaptureFixture[str]


def answer(capsys: Captured, *arguments: object) -> Any:
    capsys.readouterr()
    assert typed(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a backbone and two datasets."""
    folder = tmp_path_factory.mktemp("kinds")
    workspace = folder / "workspace"
    backbone = world.tiny_backbone(folder / "tiny.safetensors")
    assert typed("init", "-w", workspace) == 0
    assert typed("backbone", "add", backbone, "-w", workspace) == 0
    for seed, name in enumerate(("shapes", "shades")):
        images = world.image_folder(folder / name, "x", "y", seed=seed)
        assert typed("dataset", "add", name, images, "-w", workspace) == 0
    return workspace


def test_tasks_of_two_kinds_are_added_together_with_the_settings_of_each(
    space: Path, capsys: Captured
) -> None:
    kinds = ("--kind", "lora", "--kind", "vpt-deep", "--rank", 2, "--alpha", 4, "--targets", "qkv,proj")
    more = ("--set", "depth=1", "--set", "gated=false", "--set", "lr=0.003", "--steps", 7)
    job = answer(capsys, "task", "add", "shapes", "shades", "--backbone", "tiny", *kinds, *more, "-w", space)
    recipe = job["payload"]["recipe"]
    assert (recipe["steps"], recipe["lr"], recipe["mask_ratio"]) == (7, 0.003, 0.5)
    tasks = {task["name"]: task for task in answer(capsys, "task", "list", "-w", space)}
    assert tasks["shapes"]["kind"] == "lora"
    assert tasks["shapes"]["config"] == {"targets": ["qkv", "proj"], "rank": 2, "alpha": 4.0}
    assert tasks["shades"]["kind"] == "vpt-deep"
    assert tasks["shades"]["config"] == {"depth": 1, "tokens": 1, "open_head": True, "gated": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "lorra"], "Did you mean 'lora'"),
        (["--set", "rnk=2"], "Did you mean 'rank'"),
        (["--set", "stepps=2"], "Did you mean 'steps'"),
        (["--kind", "bitfit", "--rank", "2"], "there is no setting 'rank'"),
        (["--parts", "a,c"], "is not a choice of a, b, low-rank"),
        (["--kind", "lora", "--targets", "down_blocks.*"], "nothing to adapt"),
    ],
)
def test_what_no_kind_can_do_ends_with_one_line_and_adds_no_task(
    space: Path, arguments: list[str], message: str, capsys: Captured
) -> None:
    asked = ("task", "add", "never", "--dataset", "shapes", "--backbone", "tiny")
    assert typed(*asked, *arguments, "-w", space) == 2
    refused = capsys.readouterr().err
    assert message in refused
    assert len(refused.strip().splitlines()) == 1
    assert "never" not in [task["name"] for task in answer(capsys, "task", "list", "-w", space)]
