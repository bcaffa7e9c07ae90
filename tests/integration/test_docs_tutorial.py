"""The tutorial, done by a newcomer who types what it says: from a folder of images to a picture of a bundle.

The backbone is the tests' own, and `affinery run` is done without a worker and Ray, in two steps: the
demo's test has those. All else is as on the page.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from affinery_app.wiring import open_workspace
from tests import learning_world as world
from tests.command_line import typed
from tests.learnt_space import learn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
STEPS = ("--steps", "400")
SEEN = {"recognition": {"share": 0.9, "samples": 200, "real_images": 20, "real_accuracy": 0.95}}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_a_newcomer_gets_from_images_to_a_model(
    tmp_path: Path,
    mlflow_template: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WORKSPACE", "REGISTRY_URL", "STORE_URL", "TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(f"AFFINERY_{name}", raising=False)
    lines = [line for block in blocks("console") for line in block.splitlines()]
    commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    (backbone,) = (words[3] for words in commands if words[1:3] == ["backbone", "add"])
    Path(backbone).parent.mkdir(parents=True)
    world.tiny_backbone(Path(backbone))
    (drawing,) = blocks("python")
    Path("draw_shapes.py").write_text(drawing)
    # MLflow takes ten seconds to make its tables, which other tests have made already.
    Path("affinery-workspace/mlflow").mkdir(parents=True)
    shutil.copy(mlflow_template, "affinery-workspace/mlflow/mlflow.db")
    Path("affinery-workspace/registry.db").touch()
    for program, *words in commands:
        if program == "python":
            subprocess.run([sys.executable, *words], check=True, timeout=120)
            continue
        assert program == "affinery"
        if "--steps" in words:
            at = words.index("--steps")
            assert tuple(words[at : at + 2]) == STEPS
            words[at + 1 : at + 2] = ["2", "--batch", "4"]
        if words == ["run"]:
            learn(open_workspace(None).services(), tmp_path / "learnt", SEEN)
            continue
        code = typed(*words)
        said = capfd.readouterr()
        if words != ["doctor"]:  # which finds this machine as it finds it
            assert code == 0, f"{words}\n{said.out}{said.err}"
    with Image.open("drawn.png") as drawn:
        assert min(drawn.size) > 8
    with Image.open("shapes.png") as sheet:
        assert min(sheet.size) > 100
    assert typed("adapter", "show", "shapes@champion", "--json") == 0
    learnt = json.loads(capfd.readouterr().out)
    assert (learnt["ref"], learnt["aliases"], len(learnt["certificates"])) == ("shapes@1", ["champion"], 1)
