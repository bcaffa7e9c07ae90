"""The rivals of the papers' tables: a copy that reads the condition, positions that are counted on."""

from __future__ import annotations

import pytest
import torch

from affinery.adapters.files import AdapterMeta
from affinery.backbones.dit import DiT
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from benchmarks.papers.tables import CANNY
from benchmarks.papers.variants import COPIED_TARGETS, Copied, changed
from tests import tiny_models as tiny
from tests import tiny_unets
from trainers.loop import CoTraining
from trainers.recipe import Recipe
from trainers.streams import TaskData


def test_a_copy_changes_nothing_before_it_has_learnt_whatever_it_is_told() -> None:
    frozen = tiny.backbone()
    copied = changed(frozen, "copied")
    x, t = tiny.inputs(3)
    rows = torch.zeros(3, dtype=torch.long)
    hint = torch.randn(3, *frozen.hint_shape())
    classes = frozen.class_table[rows]
    assert torch.equal(copied.denoise(x, t, classes, hint=hint), frozen.denoise(x, t, classes))
    assert torch.equal(copied.denoise(x, t, classes), frozen.denoise(x, t, classes))


def test_a_copy_alone_learns_and_the_blocks_that_it_copies_stay() -> None:
    copied = changed(tiny.backbone(), "copied")
    assert isinstance(copied, Copied)
    before = {name: tensor.clone() for name, tensor in copied.state_dict().items()}
    model = ComposedModel(copied, "a" * 64)
    meta = AdapterMeta(
        "edges",
        "full",
        {"targets": list(COPIED_TARGETS)},
        "a" * 64,
        model.null_row,
        (model.null_row + 1, model.null_row + 2),
        ("all",),
        condition=CANNY,
    )
    size, channels = model.spec.image_size, model.spec.channels
    images = torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8)
    edges = torch.randint(0, 2, (4, 1, size, size)).byte() * 255
    data = TaskData(meta, images, torch.zeros(4, dtype=torch.long), None, edges)
    training = CoTraining(model, [data], Recipe(steps=3, batch=2, mask_ratio=0.0, precision="fp32"))
    training.run()
    adapter = training.finish()[0]
    trained = {name for name in adapter.tensors if name.startswith("layers.")}
    assert trained
    assert all(name.startswith(("layers.copied_blocks.", "layers.zeros.")) for name in trained)
    assert any(bool(t.any()) for name, t in adapter.tensors.items() if name.startswith("layers.zeros."))
    after = model.frozen_state()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_positions_that_are_counted_on_differ_from_the_trick_only_beyond_the_native_size() -> None:
    frozen = tiny.backbone()
    assert isinstance(frozen, DiT)
    counted = changed(frozen, "counted")
    assert isinstance(counted, DiT)
    side = frozen.side
    assert torch.equal(counted.positions_at(side, side), frozen.positions_at(side, side))
    trick, plain = (each.positions_at(2 * side, 2 * side) for each in (frozen, counted))
    assert torch.allclose(trick[0, 2 * (2 * side) + 2], frozen.positions_at(side, side)[0, side + 1])
    assert torch.allclose(plain[0, 2 * side + 1], frozen.positions_at(side, side)[0, side + 1])
    assert not torch.allclose(trick, plain)


def test_a_network_without_such_a_variant_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="native DiT"):
        changed(tiny_unets.built(tiny_unets.unet_spec()), "copied")
