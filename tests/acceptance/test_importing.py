"""What others saved is registered by the one command that registers our own files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from affinery.backbones.dit import DiT
from affinery.backbones.files import load_backbone
from registry.storage import open_store
from tests import tiny_models as tiny
from tests.tiny_unets import UNET, built

pytestmark = pytest.mark.timeout(600)


def affinery(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "affinery_app.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importing") / "workspace"
    affinery("init", "-w", folder)
    return folder


def test_a_diffusers_folder_is_added_under_its_name_once(space: Path, tmp_path: Path) -> None:
    model = UNet2DModel(**UNET, num_class_embeds=2)
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path / "cats")
    first = affinery("backbone", "add", tmp_path / "cats", "-w", space)
    assert "cats@1" in first.stdout
    assert "note: Its table has 2 classes and no null row" in first.stderr
    again = json.loads(affinery("backbone", "add", tmp_path / "cats", "-w", space, "--json").stdout)
    assert again["ref"] == "cats@1"
    assert again["num_classes"] == 2
    shown = affinery("backbone", "show", "cats", "-w", space).stdout
    assert "denoises      pixels" in shown
    assert "captions      none" in shown
    stored = load_backbone(open_store(str(space / "blobs")).path(again["blob_digest"]))
    x, t = tiny.inputs(2)
    expected = model.eval()(x, t, class_labels=torch.tensor([0, 1])).sample
    torch.testing.assert_close(stored(x, t, torch.tensor([0, 1])), expected, rtol=0, atol=1e-6)


def test_an_official_checkpoint_is_added_as_a_dit(space: Path, tmp_path: Path) -> None:
    spec = tiny.spec(config={"width": 384, "depth": 1, "heads": 6, "patch": 2}, channels=4, image_size=4)
    backbone = built(spec)
    assert isinstance(backbone, DiT)
    torch.save(dict(backbone.state_dict()), tmp_path / "official.pt")
    shown = json.loads(affinery("backbone", "add", tmp_path / "official.pt", "-w", space, "--json").stdout)
    assert shown["ref"] == "official@1"
    assert shown["num_classes"] == 3
    assert shown["spec"]["config"]["width"] == 384


def test_a_folder_that_is_no_model_ends_with_one_line_that_says_why(space: Path, tmp_path: Path) -> None:
    refused = affinery("backbone", "add", tmp_path, "--name", "none", "-w", space, code=2)
    assert "neither a model_index.json (a pipeline) nor a config.json (a model)" in refused.stderr
    assert "Traceback" not in refused.stderr
    listing = affinery("backbone", "list", "-w", space, "--json").stdout
    assert "none@1" not in listing
