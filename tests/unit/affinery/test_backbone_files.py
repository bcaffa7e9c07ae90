"""A backbone file is refused with one clear error before anything of it is used."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from affinery.backbones import architecture, architectures
from affinery.backbones.contract import BackboneSpec
from affinery.backbones.files import (
    SPEC_KEY,
    inspect_backbone,
    load_backbone,
    read_spec,
    save_backbone,
)
from affinery.errors import BackboneFileInvalid, UnknownName
from tests import tiny_models as tiny


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "backbone.safetensors"
    save_backbone(tiny.backbone(), where)
    return where


def rewritten(path: Path, tensors: dict[str, Tensor] | None = None, spec: object = None) -> Path:
    """The file again, with other tensors or another spec."""
    text = spec if isinstance(spec, str) else json.dumps(spec) if spec else tiny.spec().to_json()
    path.write_bytes(save(tensors or load_file(path), metadata={SPEC_KEY: text}))
    return path


def refusal(path: Path) -> str:
    """The one error that inspecting and loading the file both raise, quickly."""
    began = time.monotonic()
    with pytest.raises(BackboneFileInvalid) as inspected:
        inspect_backbone(path)
    assert time.monotonic() - began < 20
    with pytest.raises(BackboneFileInvalid) as loaded:
        load_backbone(path)
    assert str(inspected.value) == str(loaded.value)
    return str(inspected.value)


def test_saved_and_loaded_a_backbone_is_the_same_to_the_bit(path: Path) -> None:
    loaded = load_backbone(path)
    assert tiny.same_weights(loaded, tiny.backbone())
    assert loaded.spec == tiny.spec()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    found = inspect_backbone(path)
    assert found.parameters == sum(tensor.numel() for tensor in load_file(path).values())
    assert found.fingerprint == inspect_backbone(path).fingerprint


def test_a_missing_file_a_folder_a_pipe_and_other_content_are_told_apart(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.safetensors")
    assert "it is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" * 20)
    assert "not a safetensors file" in refusal(tmp_path / "picture.png")


def test_a_truncated_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    assert "it is cut off" in refusal(path)


def test_a_file_without_a_spec_is_refused(path: Path) -> None:
    path.write_bytes(save(load_file(path)))
    assert "no 'affinery.backbone' entry" in refusal(path)


def test_a_missing_an_unknown_and_a_misshapen_tensor_are_named(path: Path) -> None:
    tensors = load_file(path)
    name = "blocks.1.attn.proj.weight"
    fewer = {key: tensor for key, tensor in tensors.items() if key != name}
    assert f"tensor {name!r} is missing" in refusal(rewritten(path, fewer))
    assert "tensor 'surprise' is there" in refusal(rewritten(path, tensors | {"surprise": torch.zeros(1)}))
    turned = tensors | {name: torch.zeros(16, 8)}
    assert f"tensor {name!r} has the shape [16, 8]" in refusal(rewritten(path, turned))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float64, torch.uint8])
def test_weights_of_another_number_type_are_refused(dtype: torch.dtype, path: Path) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    assert "convert it to F32" in refusal(rewritten(path, tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value: float, path: Path) -> None:
    tensors = load_file(path)
    tensors["blocks.0.mlp.fc1.bias"][3] = value
    assert "'blocks.0.mlp.fc1.bias' holds values that are not finite" in refusal(rewritten(path, tensors))


def spec_with(**changes: object) -> dict[str, Any]:
    return {**json.loads(tiny.spec().to_json()), **changes}


def config_with(**changes: object) -> dict[str, Any]:
    return spec_with(config=tiny.spec().config | changes)


HOSTILE: dict[str, object] = {
    "nothing": "",
    "a list": [1],
    "a number": "3",
    "no JSON": "{",
    "brackets without end": "[" * 100_000,
    "a key twice": '{"arch":"dit","arch":"dit"}',
    "NaN": tiny.spec().to_json().replace('"image_size":8', '"image_size":NaN'),
    "no arch": {key: value for key, value in spec_with().items() if key != "arch"},
    "no class names": {key: value for key, value in spec_with().items() if key != "class_names"},
    "an unknown field": spec_with(extra=1),
    "an unknown arch": spec_with(arch="dot"),
    "an arch that is a path": spec_with(arch="../contract"),
    "an arch that is our own module": spec_with(arch="contract"),
    "an arch that is a number": spec_with(arch=3),
    "class names in one string": spec_with(class_names="coat"),
    "class names that are numbers": spec_with(class_names=[1, 2, 3]),
    "too many class names": spec_with(class_names=["c"] * 100_000),
    "config that is a list": spec_with(config=[16]),
    "config that is null": spec_with(config=None),
    "an unknown setting": config_with(speed=1),
    "no width": spec_with(config={"depth": 2, "heads": 2, "patch": 4}),
    "a huge width": config_with(width=2**40),
    "a large width": config_with(width=65_536),
    "a width of text": config_with(width="16"),
    "a fractional width": config_with(width=16.5),
    "a negative width": config_with(width=-16),
    "a width that heads do not divide": config_with(heads=3),
    "a huge depth": config_with(depth=10**9),
    "a large depth": config_with(depth=256),
    "depth zero": config_with(depth=0),
    "heads zero": config_with(heads=0),
    "patch zero": config_with(patch=0),
    "a patch larger than the image": config_with(patch=16),
    "a huge mlp_ratio": config_with(mlp_ratio=1e300),
    "a negative mlp_ratio": config_with(mlp_ratio=-4),
    "learn_sigma of text": config_with(learn_sigma="no"),
    "a huge image": spec_with(image_size=2**40),
    "a large image": spec_with(image_size=8192),
    "an image size of text": spec_with(image_size="8"),
    "an image size of zero": spec_with(image_size=0),
    "channels of zero": spec_with(channels=0),
    "channels true": spec_with(channels=True),
    "an unknown prediction": spec_with(prediction="noise"),
    "schedule that is a list": spec_with(schedule=["linear"]),
    "an unknown schedule": spec_with(schedule={"beta_schedule": "wavy"}),
    "an unknown schedule setting": spec_with(schedule={"speed": 1}),
    "a billion time steps": spec_with(schedule={"num_train_timesteps": 10**9}),
    "time steps of text": spec_with(schedule={"num_train_timesteps": "1000"}),
    "clip_sample of a number": spec_with(schedule={"clip_sample": 1}),
    "betas of text": spec_with(schedule={"beta_start": "small"}),
    "defaults that are a list": spec_with(defaults=[1]),
    "default steps of text": spec_with(defaults={"sampler": {"steps": "many"}}),
    "default guidance below zero": spec_with(defaults={"sampler": {"guidance": -1}}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_spec_that_cannot_be_is_refused_quickly_and_clearly(what: str, path: Path) -> None:
    said = refusal(rewritten(path, spec=HOSTILE[what] or " "))
    assert said.startswith(f"{path} is not a usable backbone: ")
    assert len(said) < 1000


def test_a_spec_survives_its_journey_through_the_file(path: Path) -> None:
    names = ("ein Stück Käse", "日本", "", 'quote "')
    spec = tiny.spec(class_names=names)
    save_backbone(architecture("dit").build(spec), path)
    assert read_spec(path) == spec
    assert BackboneSpec.from_json(spec.to_json()) == spec


def test_architectures_are_found_by_their_files() -> None:
    assert "dit" in architectures()
    assert not {"contract", "files"} & set(architectures())
    with pytest.raises(UnknownName, match="Did you mean 'dit'"):
        architecture("diT")
