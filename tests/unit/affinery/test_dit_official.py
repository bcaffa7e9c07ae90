"""Official checkpoints: read with what their shapes tell, written back to the bit, refused with a reason."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from affinery.backbones.contract import BackboneSpec, Latent
from affinery.backbones.dit import DiT
from affinery.backbones.dit_conversion import with_profile
from affinery.backbones.files import load_backbone
from affinery.backbones.official_dit import TABLE, read_official, write_official
from affinery.errors import BackboneFileInvalid, ConfigInvalid
from tests import tiny_models as tiny
from tests import tiny_unets

SUFFIXES = (".pt", ".safetensors")
every_container = pytest.mark.parametrize("suffix", SUFFIXES)


def latent_spec(**config: Any) -> BackboneSpec:
    """Two blocks as wide as DiT-S, four latent channels, learned variance."""
    return BackboneSpec(
        arch="dit",
        config={"width": 384, "depth": 2, "heads": 6, "patch": 4, "learn_sigma": True} | config,
        class_names=("coat", "bag", "boot"),
        image_size=64,
        channels=3,
        latent=Latent(channels=4, factor=8, scaling=0.18215),
    )


def weights(spec: BackboneSpec) -> dict[str, Tensor]:
    """A state dict under the official names, random where it is not the position table."""
    model, generator = DiT.build(spec), torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name != "pos_embed":
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def stored(path: Path, content: dict[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def refusal(path: Path, **given: Any) -> str:
    with pytest.raises(BackboneFileInvalid) as refused:
        read_official(path, **given)
    said = str(refused.value)
    assert said.startswith(f"{path} is not a usable backbone: ")
    return said


@every_container
def test_a_plain_checkpoint_tells_its_sizes_by_its_shapes(suffix: str, tmp_path: Path) -> None:
    tensors = weights(latent_spec())
    read = read_official(stored(tmp_path / f"dit{suffix}", tensors))
    assert read.spec.config == latent_spec().config
    assert read.spec.class_names == ("class 0", "class 1", "class 2")
    assert read.spec.latent == latent_spec().latent
    assert read.spec.image_size == 64
    assert read.spec.prediction == "epsilon"
    assert read.spec.schedule["beta_end"] == 0.02
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read.state_dict().items())


@pytest.mark.parametrize("shape", ["a patch of 2", "plain", "a narrow MLP", "pixels"])
def test_other_sizes_are_told_too(shape: str, tmp_path: Path) -> None:
    choices: dict[str, dict[str, Any]] = {
        "a patch of 2": {"patch": 2},
        "plain": {"learn_sigma": False},
        "a narrow MLP": {"mlp_ratio": 0.7},
        "pixels": {},
    }
    config = choices[shape]
    spec = latent_spec(**config)
    if shape == "pixels":
        spec = BackboneSpec(**{**vars(spec), "latent": None, "image_size": 16})
    read = read_official(stored(tmp_path / "dit.pt", weights(spec)))
    config = {name: value for name, value in spec.config.items() if value is not False}
    ratio = read.spec.config.get("mlp_ratio", 4)
    assert int(384 * ratio) == int(384 * config.pop("mlp_ratio", 4))
    assert {name: value for name, value in read.spec.config.items() if name != "mlp_ratio"} == config
    assert (read.spec.image_size, read.spec.channels) == (spec.image_size, 3)
    assert read.spec.latent == spec.latent


@every_container
def test_written_and_read_again_a_backbone_is_the_same_to_the_bit(suffix: str, tmp_path: Path) -> None:
    """Heads, prediction, schedule and names, which no shape tells, included."""
    for number, one in enumerate((tiny.backbone(), DiT.build(latent_spec()).freeze())):
        assert isinstance(one, DiT)
        path = tmp_path / f"{number}{suffix}"
        write_official(one, path)
        read = read_official(path)
        assert tiny.same_weights(read, one)
        assert read.spec == one.spec
        write_official(read, tmp_path / f"again{suffix}")
        assert (tmp_path / f"again{suffix}").stat().st_size == path.stat().st_size


def test_a_pt_is_what_the_official_sampler_reads(tmp_path: Path) -> None:
    """It takes the entry "ema" where there is one."""
    one = tiny.backbone()
    assert isinstance(one, DiT)
    write_official(one, tmp_path / "dit.pt")
    found = torch.load(tmp_path / "dit.pt", weights_only=True)
    assert found["ema"].keys() == one.state_dict().keys()
    assert (found["layout"], found["null_index"]) == ("canonical", "3")


def test_a_safetensors_checkpoint_is_a_backbone_file_as_well(tmp_path: Path) -> None:
    one = tiny.backbone()
    assert isinstance(one, DiT)
    write_official(one, tmp_path / "dit.safetensors")
    assert tiny.same_weights(load_backbone(tmp_path / "dit.safetensors"), one)


def test_of_a_training_checkpoint_the_moving_average_is_read(tmp_path: Path) -> None:
    """As DiT's own training script writes them, its command line included."""
    average, last = weights(latent_spec()), weights(latent_spec())
    last[TABLE] = last[TABLE] + 1
    content: dict[str, Any] = {
        "model": last,
        "ema": average,
        "opt": {"state": {}},
        "args": Namespace(lr=1e-4),
    }
    read = read_official(stored(tmp_path / "both.pt", content))
    assert torch.equal(read.class_table, average[TABLE])
    del content["ema"]
    assert torch.equal(read_official(stored(tmp_path / "one.pt", content)).class_table, last[TABLE])


@every_container
def test_later_class_rows_stand_behind_the_null_row_and_become_classes(suffix: str, tmp_path: Path) -> None:
    one, rows = tiny.backbone(), torch.randn(2, 16)
    assert isinstance(one, DiT)
    path = tmp_path / f"dit{suffix}"
    write_official(one, path, rows)
    table = torch.cat([one.class_table, rows])
    found = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)["ema"]
    assert torch.equal(found[TABLE], table)
    read = read_official(path)
    assert torch.equal(read.class_table, table[[0, 1, 2, 4, 5, 3]])
    assert read.spec.class_names == (*one.spec.class_names, "class 3", "class 4")
    named = read_official(path, class_names=("a", "b", "c", "d", "e"))
    assert named.spec.class_names == ("a", "b", "c", "d", "e")
    x, t = tiny.inputs(2)
    assert torch.equal(
        read(x, t, torch.tensor([5, 3])), one.denoise(x, t, torch.stack([one.class_table[3], rows[0]]))
    )


def test_where_a_file_does_not_say_it_the_null_row_is_given(tmp_path: Path) -> None:
    tensors = weights(latent_spec())
    read = read_official(stored(tmp_path / "dit.pt", tensors), null_index=1)
    assert torch.equal(read.class_table, tensors[TABLE][[0, 2, 3, 1]])
    assert "null row, 4, is none of 4 rows" in refusal(tmp_path / "dit.pt", null_index=4)


def test_rows_that_do_not_continue_the_table_and_other_endings_are_refused(tmp_path: Path) -> None:
    one = tiny.backbone()
    assert isinstance(one, DiT)
    with pytest.raises(ConfigInvalid, match="do not continue a table"):
        write_official(one, tmp_path / "dit.pt", torch.zeros(2, 8))
    with pytest.raises(ConfigInvalid, match=r"ends neither in \.pt"):
        write_official(one, tmp_path / "dit.onnx")
    assert not list(tmp_path.iterdir())


def test_the_official_code_is_not_given_weights_of_another_profile(tmp_path: Path) -> None:
    one = tiny.backbone()
    assert isinstance(one, DiT)
    other = with_profile(one, "diffusers")
    with pytest.raises(ConfigInvalid, match="profile 'diffusers', and the official code computes its own"):
        write_official(other, tmp_path / "dit.pt")
    write_official(with_profile(other, "official"), tmp_path / "dit.pt")
    assert tiny.same_weights(read_official(tmp_path / "dit.pt"), one)
    assert read_official(tmp_path / "dit.pt", profile="diffusers").spec == other.spec


def test_what_shapes_do_not_tell_is_asked_for(tmp_path: Path) -> None:
    path = stored(tmp_path / "dit.pt", weights(tiny.spec()))
    assert "Give heads" in refusal(path)
    read = read_official(path, heads=2, latent=None, class_names=("coat", "bag", "boot"))
    assert read.spec.config == tiny.spec().config
    assert read.spec.channels == 1
    with pytest.raises(ConfigInvalid, match="4 channels, but the weights take 1"):
        read_official(path, heads=2, latent=Latent(4, 8))
    with pytest.raises(ConfigInvalid, match="must be a multiple of 4 and of heads = 3"):
        read_official(path, heads=3)


def test_a_table_without_a_null_row_is_refused(tmp_path: Path) -> None:
    tensors = weights(latent_spec())
    tensors[TABLE] = tensors[TABLE][:3]
    path = stored(tmp_path / "dit.pt", tensors)
    with pytest.raises(ConfigInvalid, match="3 are given, but the class table has 3 rows: 2 classes"):
        read_official(path, class_names=("coat", "bag", "boot"))


def test_a_vae_is_read_with_a_checkpoint_and_is_not_written_into_one(tmp_path: Path) -> None:
    spec = BackboneSpec(**{**vars(latent_spec()), "image_size": 16, "latent": tiny_unets.LATENT})
    one = DiT.build(spec)
    one.freeze()
    write_official(one, tmp_path / "dit.pt")
    alone = read_official(tmp_path / "dit.pt")
    assert alone.spec.latent == replace(tiny_unets.LATENT, vae=None)
    assert not [name for name in alone.state_dict() if name.startswith("vae.")]
    assert one.vae is not None
    whole = read_official(tmp_path / "dit.pt", latent=tiny_unets.LATENT, vae=one.vae.state_dict())
    assert whole.spec == one.spec
    assert tiny.same_weights(whole, one)
    with pytest.raises(BackboneFileInvalid, match=r"no tensor 'vae\."):
        read_official(tmp_path / "dit.pt", latent=tiny_unets.LATENT)


class Trap:
    """A pickle of this makes a folder when it is read without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    path = stored(tmp_path / "dit.pt", weights(latent_spec()) | {"trap": Trap(tmp_path / "sprung")})
    said = refusal(path)
    assert "code from a file is never run here" in said
    assert "mkdir" in said
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    assert "code" in refusal(tmp_path / "old.pt")
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.pt")
    assert "No such file" in refusal(tmp_path / "none.safetensors")
    (tmp_path / "picture.pt").write_bytes(b"\x89PNG\r\n\x1a\n" * 20)
    refusal(tmp_path / "picture.pt")
    whole = stored(tmp_path / "dit.pt", weights(latent_spec())).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    assert "cut off" in refusal(tmp_path / "cut.pt")
    assert "holds a list" in refusal(stored(tmp_path / "list.pt", [1]))  # type: ignore[arg-type]
    assert "'step' is no tensor" in refusal(stored(tmp_path / "step.pt", {"step": 3}))
    assert "no DiT in this layout" in refusal(stored(tmp_path / "other.pt", {"conv": torch.zeros(3)}))


def sparse(tensor: Tensor) -> Tensor:
    return tensor.to_sparse()


CHANGES: dict[str, tuple[str, Any, str]] = {
    "missing": ("blocks.1.attn.proj.weight", None, "no tensor 'blocks.1.attn.proj.weight'"),
    "unknown": ("surprise", lambda _: torch.zeros(1), "a tensor 'surprise'"),
    "another block": ("blocks.7.attn.qkv.bias", lambda _: torch.zeros(1), "'blocks.2."),
    "turned": ("blocks.0.mlp.fc1.weight", lambda t: t.T.contiguous(), r"has the shape [384, 1536]"),
    "no square": ("pos_embed", lambda t: t[:, :3].clone(), "3 positions, which are no square"),
    "odd head": ("final_layer.linear.bias", lambda t: t[:100].clone(), "gives 100 values a patch"),
    "flat table": (TABLE, lambda t: t.flatten(), f"tensor {TABLE!r} has the shape [1536]"),
    "whole numbers": ("x_embedder.proj.bias", lambda t: t.long(), "convert it to 32-bit floats"),
    "doubles": ("x_embedder.proj.bias", lambda t: t.double(), "convert it to 32-bit floats"),
    "not finite": ("x_embedder.proj.bias", lambda t: t / 0, "not finite"),
    "sparse": ("x_embedder.proj.bias", sparse, "does not hold a value for each of its places"),
    "stretched": ("x_embedder.proj.bias", lambda _: torch.zeros(1).expand(384), "for each of its places"),
    "a huge depth": ("blocks.999999999.mlp.fc1.bias", lambda _: torch.zeros(1), "depth"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_tensors_that_do_not_fit_are_named(what: str, tmp_path: Path) -> None:
    name, change, said = CHANGES[what]
    tensors = weights(latent_spec())
    tensor = tensors.pop(name, torch.zeros(1))
    if change is not None:
        tensors[name] = change(tensor)
    path = stored(tmp_path / "dit.pt", tensors)
    with pytest.raises((BackboneFileInvalid, ConfigInvalid)) as refused:
        read_official(path)
    assert said in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in weights(latent_spec()).items()}
    read = read_official(stored(tmp_path / "dit.pt", tensors)).state_dict()
    assert all(torch.equal(read[name], tensor.float()) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "said",
    [
        {"layout": "append", "null_index": "3"},
        {"layout": "canonical", "null_index": "1"},
        {"null_index": "third"},
        {"affinery.backbone": "{}"},
        {"affinery.backbone": 3},
    ],
)
def test_a_file_that_contradicts_itself_is_refused(said: dict[str, Any], tmp_path: Path) -> None:
    path = stored(tmp_path / "dit.pt", {"ema": weights(latent_spec())} | said)
    assert "what it says of itself cannot be read" in refusal(path)
