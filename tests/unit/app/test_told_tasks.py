"""Conditions, prompts and sizes as they are typed: task add, and sample from a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affinery.adapters.files import AdapterMeta, adapter_bytes
from affinery.backbones.contract import Backbone
from affinery.backbones.files import inspect_backbone, save_backbone
from affinery.bundle_writing import BundleTask, write_bundle
from affinery.errors import ConfigInvalid, UnknownName
from orchestration.conditions import conditions_of
from tests import tiny_models as tiny
from tests import tiny_unets
from tests.command_line import typed
from trainers.conditions import condition_record

Captured = pytest.CaptureFixture[str]


def test_each_option_goes_to_the_conditions_that_have_it() -> None:
    found = conditions_of(["canny", "none", "depth"], 50, None, None)
    assert found == [condition_record("canny", 50), None, condition_record("depth")]
    assert conditions_of([], None, None, None) == []


def test_options_that_no_condition_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="no task is told edges"):
        conditions_of(["depth"], 50, None, None)
    with pytest.raises(ConfigInvalid, match="no task is told what a model draws"):
        conditions_of(["canny"], None, None, tmp_path)
    with pytest.raises(UnknownName, match="Did you mean 'depth'"):
        conditions_of(["deph"], None, None, None)


def shipped(folder: Path, base: Backbone, again: Backbone, *metas: AdapterMeta) -> Path:
    """A bundle of tasks that were never trained, their tensors random."""
    folder.mkdir()
    save_backbone(base, folder / "backbone")
    fingerprint = inspect_backbone(folder / "backbone").fingerprint
    tasks = []
    for i, meta in enumerate(metas):
        own = replace(meta, backbone=fingerprint)
        (folder / f"{i}").write_bytes(adapter_bytes(tiny.adapter(own, i, again)))
        names, block = own.class_names, own.block
        tasks.append(
            BundleTask(own.task, f"{own.task}@1", own.kind, names, block, folder / f"{i}", None, "d@1")
        )
        again = type(again).build(again.spec)
    facts = {"ref": "b@1", "fingerprint": fingerprint}
    write_bundle(folder / "bundle", "all@1", folder / "backbone", facts, tasks, "# all")
    return folder / "bundle"


@pytest.fixture
def told(tmp_path: Path) -> Path:
    spec = tiny_unets.text_spec(defaults={"sampler": {"steps": 2, "guidance": 2.0}})
    return shipped(
        tmp_path / "told",
        tiny_unets.built(spec),
        tiny_unets.built(spec),
        tiny.meta("edges", (4, 5), condition=condition_record("canny")),
        tiny.meta("digits", (5, 7)),
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.zeros((40, 50), np.uint8)
    pixels[10:30, 15:35] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_one_picture_holds_a_condition_task_beside_classes(
    told: Path, photo: Path, tmp_path: Path, capsys: Captured
) -> None:
    for option in ("--condition", "--condition-from"):
        out = tmp_path / f"{option}.png"
        assert typed("sample", told, "-o", out, option, photo, "--prompt", "abc", "-n", "2", "--json") == 0
        drawn = json.loads(capsys.readouterr().out)
        assert (drawn["images"], drawn["tasks"]) == (6, ["edges", "digits"])
        with Image.open(out) as picture:
            assert picture.width > 8


def test_a_condition_task_without_a_picture_says_what_it_needs(told: Path, capsys: Captured) -> None:
    assert typed("sample", told, "-n", "1") == 2
    assert "'edges' is told canny: give its map, or a picture" in capsys.readouterr().err
    assert typed("sample", told, "-n", "1", "--condition", told / "README.md") == 2
    assert "cannot be read as a picture" in capsys.readouterr().err


def test_tasks_of_two_resolutions_are_drawn_under_each_other(tmp_path: Path, capsys: Captured) -> None:
    bundle = shipped(
        tmp_path / "sizes",
        tiny.backbone(),
        tiny.backbone(),
        tiny.meta("small", (4, 6)),
        tiny.meta("large", (6, 8), image_size=16),
    )
    assert typed("sample", bundle, "-o", tmp_path / "out.png", "-n", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4


def test_a_told_task_is_scheduled_from_a_folder_with_metadata(tmp_path: Path, capsys: Captured) -> None:
    space = tmp_path / "space"
    told = tmp_path / "rooms"
    told.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(told / f"{i}.png")
    lines = [{"file_name": f"{i}.png", "text": f"a {i}"} for i in range(3)]
    (told / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    save_backbone(tiny_unets.built(tiny_unets.unet_spec()), tmp_path / "cnn.safetensors")
    within = ("--workspace", space)
    assert typed("init", *within) == 0
    assert typed("backbone", "add", tmp_path / "cnn.safetensors", *within) == 0
    assert typed("dataset", "add", "rooms", told, *within) == 0
    capsys.readouterr()
    add = ("task", "add", "room-edges", "--dataset", "rooms", "--backbone", "cnn", *within)
    assert typed(*add, "--condition", "depth") == 2
    assert "3 images of rooms@1 have no map" in capsys.readouterr().err
    assert typed(*add, "--condition", "canny", "--image-size", "9") == 2
    assert "the side 9 is no multiple of 2" in capsys.readouterr().err
    assert typed(*add, "--condition", "canny", "--canny-low", "30", "--image-size", "16", "--rank", "2") == 0
    assert "the captions of rooms@1 are not used" in capsys.readouterr().err
    assert typed("task", "show", "room-edges", *within, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["condition"], shown["image_size"]) == (condition_record("canny", 30), 16)
