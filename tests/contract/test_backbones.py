"""What every backbone architecture keeps to; a new one adds a small spec of itself to EXAMPLES."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from affinery.backbones import architecture, architectures
from affinery.backbones.contract import (
    LAYER_ROLES,
    ROLES,
    Backbone,
    BackboneSpec,
    on_meta,
    parameter_count,
)
from affinery.backbones.files import inspect_backbone, load_backbone, save_backbone
from affinery.errors import ConfigInvalid
from tests import tiny_models as tiny
from tests import tiny_unets

EXAMPLES: dict[str, BackboneSpec] = {
    "dit": tiny.spec(),
    "dit_diffusers": tiny.spec(arch="dit_diffusers"),
    "unet": tiny_unets.unet_spec(),
    "unet_condition": tiny_unets.text_spec(),
}


class Wrapped(nn.Module):
    """What an adapter does to a site, as far as the backbone can tell: it stands in its place."""

    def __init__(self, base: nn.Module, name: str, asked: list[str]) -> None:
        super().__init__()
        self.base, self.name, self.asked = base, name, asked

    def forward(self, *args: object, **kwargs: object) -> object:
        self.asked.append(self.name)
        return self.base(*args, **kwargs)


every_architecture = pytest.mark.parametrize("arch", architectures())


def built(arch: str) -> Backbone:
    """With random weights, those that start at zero included."""
    return tiny_unets.built(EXAMPLES[arch])


def batch(spec: BackboneSpec, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    channels, side, _ = spec.latent_shape()
    return tiny.inputs(count, size=side, channels=channels)


@every_architecture
def test_the_class_table_has_a_row_a_class_and_the_null_row_last(arch: str) -> None:
    model, spec = built(arch), EXAMPLES[arch]
    assert model.spec == spec
    assert len(model.class_table) == spec.num_classes + 1 == spec.null_index + 1


@every_architecture
def test_a_prediction_has_the_size_of_the_image_and_depends_on_the_class(arch: str) -> None:
    model, spec = built(arch), EXAMPLES[arch]
    x, t = batch(spec)
    first = model(x, t, torch.zeros(3, dtype=torch.long))
    assert first.shape == x.shape
    assert not torch.equal(first, model(x, t, torch.full((3,), spec.null_index)))
    assert torch.equal(first, model(x, t, torch.zeros(3, dtype=torch.long)))


@every_architecture
def test_one_samples_prediction_does_not_depend_on_its_neighbours(arch: str) -> None:
    model = built(arch)
    x, t = batch(EXAMPLES[arch])
    labels = torch.tensor([0, 1, 2])
    torch.testing.assert_close(
        model(x, t, labels)[1:2], model(x[1:2], t[1:2], labels[1:2]), rtol=1e-5, atol=1e-5
    )


@every_architecture
def test_all_tokens_kept_in_order_give_the_unmasked_prediction(arch: str) -> None:
    model = built(arch)
    x, t = batch(EXAMPLES[arch])
    classes = model.class_table[torch.tensor([0, 1, 2])]
    if not model.tokens:
        with pytest.raises(ConfigInvalid, match="no tokens to mask"):
            model.patches(x)
        with pytest.raises(ConfigInvalid, match="no tokens to mask"):
            model.denoise(x, t, classes, torch.zeros(3, 1, dtype=torch.long))
        return
    keep = torch.arange(model.tokens).repeat(3, 1)
    whole = model.patches(model.denoise(x, t, classes))
    assert whole.shape[1] == model.tokens
    torch.testing.assert_close(model.denoise(x, t, classes, keep), whole, rtol=1e-5, atol=1e-5)


@every_architecture
def test_a_hint_enters_after_the_first_layer(arch: str) -> None:
    model, spec = built(arch), EXAMPLES[arch]
    x, t = batch(spec)
    classes = model.class_table[torch.tensor([0, 1, 2])]
    hint = torch.zeros(3, *model.hint_shape(spec.image_size))
    without = model.denoise(x, t, classes)
    assert torch.equal(model.denoise(x, t, classes, hint=hint), without)
    assert not torch.equal(model.denoise(x, t, classes, hint=hint + 1), without)


@every_architecture
def test_sites_are_all_layers_with_weights_and_the_branches_around_them(arch: str) -> None:
    model = built(arch)
    found = model.sites()
    modules = dict(model.named_modules())
    assert all(modules[name] is site.module for name, site in found.items())
    assert {site.role for site in found.values()} <= ROLES.keys()
    layers = {
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
        and list(module.parameters())
        and not name.startswith(("vae.", "text."))
    }
    assert {name for name, site in found.items() if site.role in LAYER_ROLES} == layers


@every_architecture
def test_sites_are_named_in_the_order_in_which_a_pass_asks_them_even_when_each_is_wrapped(arch: str) -> None:
    model = built(arch)
    x, t = batch(EXAMPLES[arch])
    labels = torch.tensor([0, 1, 2])
    before, found = model(x, t, labels), model.sites()
    asked: list[str] = []
    for name in reversed(list(found)):
        model.set_submodule(name, Wrapped(found[name].module, name, asked))
    assert torch.equal(model(x, t, labels), before)
    assert asked == list(found)


@every_architecture
def test_no_parameter_of_a_frozen_backbone_trains(arch: str) -> None:
    model = built(arch)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@every_architecture
def test_saved_and_loaded_it_is_the_same_to_the_bit(arch: str, tmp_path: Path) -> None:
    model = built(arch)
    save_backbone(model, tmp_path / "backbone")
    assert tiny.same_weights(load_backbone(tmp_path / "backbone"), model)
    found = inspect_backbone(tmp_path / "backbone")
    assert found.spec == EXAMPLES[arch]
    assert found.parameters == parameter_count(model)


@every_architecture
def test_on_the_meta_device_it_has_the_same_tensors_and_takes_no_memory(arch: str) -> None:
    skeleton = on_meta(EXAMPLES[arch], architecture(arch)).state_dict()
    assert {name: tensor.shape for name, tensor in skeleton.items()} == {
        name: tensor.shape for name, tensor in built(arch).state_dict().items()
    }
    assert all(tensor.is_meta for tensor in skeleton.values())
