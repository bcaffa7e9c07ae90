"""What others saved is registered by the one command that registers our own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from affinery.backbones.dit import DiT
from affinery.backbones.files import load_backbone
from registry.storage import open_store
from tests import tiny_models as tiny
from tests.command_line import typed
from tests.tiny_unets import UNET, built

pytestmark = pytest.mark.timeout(600)


Captured = pytest.CaptureFixture[str]


def answer(capsys: Captured, *arguments: object, code: int = 0) -> tuple[str, str]:
    """What a command says when it ends with this exit code: its output, its error output."""
    capsys.readouterr()
    assert typed(*arguments) == code
    said = capsys.readouterr()
    return said.out, said.err


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importing") / "workspace"
    assert typed("init", "-w", folder) == 0
    return folder


def test_a_diffusers_folder_is_added_under_its_name_once(
    space: Path, tmp_path: Path, capsys: Captured
) -> None:
    model = UNet2DModel(**UNET, num_class_embeds=2)
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path / "cats")
    told, notes = answer(capsys, "backbone", "add", tmp_path / "cats", "-w", space)
    assert "cats@1" in told
    assert "note: Its table has 2 classes and no null row" in notes
    again = json.loads(answer(capsys, "backbone", "add", tmp_path / "cats", "-w", space, "--json")[0])
    assert again["ref"] == "cats@1"
    assert again["num_classes"] == 2
    shown, _ = answer(capsys, "backbone", "show", "cats", "-w", space)
    assert "denoises      pixels" in shown
    assert "captions      none" in shown
    stored = load_backbone(open_store(str(space / "blobs")).path(again["blob_digest"]))
    x, t = tiny.inputs(2)
    expected = model.eval()(x, t, class_labels=torch.tensor([0, 1])).sample
    torch.testing.assert_close(stored(x, t, torch.tensor([0, 1])), expected, rtol=0, atol=1e-6)


def test_an_official_checkpoint_is_added_as_a_dit(space: Path, tmp_path: Path, capsys: Captured) -> None:
    spec = tiny.spec(config={"width": 384, "depth": 1, "heads": 6, "patch": 2}, channels=4, image_size=4)
    backbone = built(spec)
    assert isinstance(backbone, DiT)
    torch.save(dict(backbone.state_dict()), tmp_path / "official.pt")
    shown = json.loads(answer(capsys, "backbone", "add", tmp_path / "official.pt", "-w", space, "--json")[0])
    assert shown["ref"] == "official@1"
    assert shown["num_classes"] == 3
    assert shown["spec"]["config"]["width"] == 384


def test_a_folder_that_is_no_model_ends_with_one_line_that_says_why(
    space: Path, tmp_path: Path, capsys: Captured
) -> None:
    _, refusal = answer(capsys, "backbone", "add", tmp_path, "--name", "none", "-w", space, code=2)
    assert "neither a model_index.json (a pipeline) nor a config.json (a model)" in refusal
    assert len(refusal.strip().splitlines()) == 1
    listing, _ = answer(capsys, "backbone", "list", "-w", space, "--json")
    assert "none@1" not in listing
