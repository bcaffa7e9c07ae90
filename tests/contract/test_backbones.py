"""What every backbone architecture keeps to; a new one adds a small spec of itself to EXAMPLES."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from affinery.adapters import kind, kinds
from affinery.backbones import architecture, architectures
from affinery.backbones.contract import Backbone, BackboneSpec, on_meta, parameter_count
from affinery.backbones.files import inspect_backbone, load_backbone, save_backbone
from affinery.composed import ComposedModel
from tests import tiny_models as tiny

EXAMPLES: dict[str, BackboneSpec] = {"dit": tiny.spec()}

every_architecture = pytest.mark.parametrize("arch", architectures())


def built(arch: str) -> Backbone:
    """With random weights, those that start at zero included."""
    torch.manual_seed(0)
    model = architecture(arch).build(EXAMPLES[arch])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.freeze()


def batch(spec: BackboneSpec, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return tiny.inputs(count, size=spec.image_size, channels=spec.channels)


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
    keep = torch.arange(model.tokens).repeat(3, 1)
    whole = model.patches(model.denoise(x, t, classes))
    assert whole.shape[1] == model.tokens
    torch.testing.assert_close(model.denoise(x, t, classes, keep), whole, rtol=1e-5, atol=1e-5)


@every_architecture
@pytest.mark.parametrize("name", kinds())
def test_adaptable_layers_are_there_under_their_names_and_can_be_wrapped(arch: str, name: str) -> None:
    model = built(arch)
    layers = model.adaptable()
    assert layers
    assert all(model.get_submodule(path) is layer for path, layer in layers.items())
    assert all(kind(name).adapts(layer) for layer in layers.values())


@every_architecture
@pytest.mark.parametrize("name", kinds())
def test_every_adaptable_layer_is_asked_in_a_pass(arch: str, name: str) -> None:
    """An adapter on a layer that the forward pass goes round would train on nothing."""
    spec = EXAMPLES[arch]
    model = ComposedModel(built(arch), tiny.FINGERPRINT, name)
    rows = (spec.null_index + 1, spec.null_index + 3)
    config = kind(name).config({}).to_dict()
    record = tiny.meta("new", rows, kind=name, config=config, null_index=spec.null_index)
    model.start(record, torch.Generator().manual_seed(0))
    asked: list[str] = []
    for path, layer in model.layers.items():
        layer.register_forward_hook(lambda *_, path=path: asked.append(path))
    x, t = batch(spec)
    model(x, t, torch.full((3,), rows[0]), ["new"] * 3)
    assert set(asked) == set(model.layers)


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
