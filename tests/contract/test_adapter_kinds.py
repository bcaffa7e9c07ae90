"""What every adapter kind keeps to, whichever kinds this folder holds and whatever layers they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from affinery.adapters import kind, kinds
from affinery.adapters.contract import AdaptedLayer
from affinery.adapters.files import adapter_bytes, read_adapter
from affinery.adapters.routing import AnyMix, EqualBlocks, OneTask, Plan, Route
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid, UnknownName
from tests import tiny_models as tiny

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

Layer = tuple[Callable[[], nn.Module], tuple[int, ...]]

LAYERS: dict[str, Layer] = {
    "linear": (lambda: nn.Linear(6, 10), (5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 10, bias=False), (5, 6)),
    "linear on one vector": (lambda: nn.Linear(6, 10), (6,)),
    "linear on a grid": (lambda: nn.Linear(6, 10), (3, 4, 6)),
    "linear, wide": (lambda: nn.Linear(48, 64), (16, 48)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (4, 11)),
    "conv1d, stride, no padding": (lambda: nn.Conv1d(4, 6, 5, stride=3), (4, 17)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 7, 9)),
    "conv2d without bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (4, 7, 9)),
    "conv2d 1 × 1": (lambda: nn.Conv2d(4, 6, 1), (4, 7, 9)),
    "conv2d, stride 2": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 8)),
    "conv2d, dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), (4, 9, 9)),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 7, 7)),
    "conv2d, even kernel": (lambda: nn.Conv2d(4, 6, 4, stride=2, padding=1), (4, 8, 8)),
    "conv2d, same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (4, 7, 7)),
    "conv2d, same, even kernel": (lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=3), (4, 9, 9)),
    "conv2d, valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (4, 7, 7)),
    "conv2d, reflecting": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 7, 7)),
    "conv2d, circular": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"), (4, 7, 7)),
    "conv2d, much padding": (lambda: nn.Conv2d(4, 6, 1, padding=3), (4, 3, 3)),
    "conv2d, asymmetric": (
        lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        (4, 9, 13),
    ),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, padding=1, stride=(1, 2, 1)), (4, 3, 6, 5)),
}
CASES = [
    pytest.param(name, layer, id=f"{name}: {layer}")
    for name in kinds()
    for layer, (build, _) in LAYERS.items()
    if kind(name).adapts(build())
]
every_layer = pytest.mark.parametrize(("name", "layer"), CASES)
every_kind = pytest.mark.parametrize("name", kinds())


def wrapped(name: str, layer: str) -> tuple[AdaptedLayer, Tensor]:
    """A layer with three slots of random tensors, and a batch of six for it."""
    build, shape = LAYERS[layer]
    torch.manual_seed(0)
    adapted = kind(name).wrap(build().requires_grad_(False), Route())
    x = torch.randn(6, *shape)
    for seed in (1, 2, 3):
        slot = adapted.add_slot(kind(name).config({}))
        adapted.initialise(slot, torch.Generator().manual_seed(seed))
        adapted.load(slot, tiny.randomise(adapted.tensors(slot), seed))
    return adapted, x


def run(adapted: AdaptedLayer, x: Tensor, plan: Plan) -> Tensor:
    with adapted.route.using(plan), torch.no_grad():
        out: Tensor = adapted(x)
        return out


def close(one: Tensor, other: Tensor) -> bool:
    scale = max(1.0, float(other.detach().abs().max()))
    return float((one - other).detach().abs().max()) <= 1e-5 * scale


@every_layer
def test_before_training_a_layer_equals_the_frozen_one(name: str, layer: str) -> None:
    build, shape = LAYERS[layer]
    base = build()
    adapted = kind(name).wrap(base, Route())
    slot = adapted.add_slot(kind(name).config({}))
    adapted.initialise(slot, torch.Generator().manual_seed(0))
    x = torch.randn(3, *shape)
    assert close(run(adapted, x, OneTask(slot)), base(x).detach())
    assert torch.equal(run(adapted, x, OneTask(0)), base(x).detach())


@every_layer
def test_a_trained_layer_no_longer_equals_the_frozen_one(name: str, layer: str) -> None:
    adapted, x = wrapped(name, layer)
    outputs = [run(adapted, x, OneTask(slot)) for slot in range(4)]
    assert outputs[0].shape == outputs[1].shape
    assert all(not close(outputs[i], outputs[j]) for i in range(4) for j in range(i))


@every_layer
def test_each_row_of_a_mixed_batch_is_what_its_task_gives_alone(name: str, layer: str) -> None:
    adapted, x = wrapped(name, layer)
    slots = [2, 0, 3, 1, 2, 2]
    mixed = run(adapted, x, AnyMix(torch.tensor(slots)))
    for row, slot in enumerate(slots):
        assert close(mixed[row : row + 1], run(adapted, x[row : row + 1], OneTask(slot)))


@every_layer
def test_equal_blocks_give_what_a_gather_gives(name: str, layer: str) -> None:
    adapted, x = wrapped(name, layer)
    blocks = run(adapted, x, EqualBlocks(1, 3))
    assert close(blocks, run(adapted, x, AnyMix(torch.tensor([1, 1, 2, 2, 3, 3]))))
    assert close(blocks[2:4], run(adapted, x[2:4], OneTask(2)))
    assert close(run(adapted, x, EqualBlocks(2, 1)), run(adapted, x, OneTask(2)))


@every_layer
def test_only_the_adapters_tensors_get_gradients(name: str, layer: str) -> None:
    adapted, x = wrapped(name, layer)
    with adapted.route.using(EqualBlocks(1, 3)):
        adapted(x).square().sum().backward()
    own = dict(adapted.named_parameters(recurse=False))
    assert own
    assert all(p.grad is not None and bool((p.grad[1:] != 0).any()) for p in own.values())
    assert all(bool((p.grad[0] == 0).all()) for p in own.values() if p.grad is not None)
    assert all(p.grad is None for p in adapted.base.parameters())


@every_layer
def test_a_task_alone_in_its_batch_is_bit_equal_whatever_else_is_loaded(name: str, layer: str) -> None:
    adapted, x = wrapped(name, layer)
    build, _ = LAYERS[layer]
    torch.manual_seed(0)
    alone = kind(name).wrap(build().requires_grad_(False), Route())
    slot = alone.add_slot(kind(name).config({}))
    alone.load(slot, adapted.tensors(3))
    assert torch.equal(run(alone, x, OneTask(slot)), run(adapted, x, OneTask(3)))


@every_layer
def test_parts_of_other_names_or_shapes_are_refused_and_change_nothing(name: str, layer: str) -> None:
    adapted, _ = wrapped(name, layer)
    before = {part: tensor.clone() for part, tensor in adapted.tensors(1).items()}
    some = next(iter(before))
    other = {part: tensor + 1 for part, tensor in before.items()}
    for wrong in (
        {part: tensor for part, tensor in other.items() if part != some},
        other | {"more": torch.zeros(1)},
        other | {list(other)[-1]: torch.zeros(7, 7, 7)},
    ):
        with pytest.raises(ValueError, match=r"part|shape"):
            adapted.load(1, wrong)
        assert all(torch.equal(tensor, before[part]) for part, tensor in adapted.tensors(1).items())


@every_kind
def test_a_layer_that_a_kind_does_not_take_is_refused(name: str) -> None:
    odd = nn.Identity()
    assert not kind(name).adapts(odd)
    with pytest.raises(ConfigInvalid):
        kind(name).wrap(odd, Route())


@every_kind
def test_a_kind_is_found_under_its_own_name_and_states_its_settings(name: str) -> None:
    assert kind(name).name == name
    settings = kind(name).config({}).to_dict()
    assert kind(name).config(settings).to_dict() == settings
    with pytest.raises(ConfigInvalid, match="no setting 'unheard of'"):
        kind(name).config({"unheard of": 1})


def test_an_unknown_kind_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'affiner'"):
        kind("afiner")


@every_kind
def test_saved_and_loaded_an_adapter_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    record = tiny.meta(kind=name, config=kind(name).config({}).to_dict())
    trained = tiny.adapter(record)
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(adapter_bytes(trained))
    read = read_adapter(path)
    assert read.meta == trained.meta
    assert read.tensors.keys() == trained.tensors.keys()
    assert all(torch.equal(tensor, trained.tensors[key]) for key, tensor in read.tensors.items())
    model = ComposedModel(tiny.backbone(), tiny.FINGERPRINT, name)
    model.load(read)
    assert adapter_bytes(model.adapter("digits")) == path.read_bytes()


@every_kind
def test_a_task_drawn_alone_is_bit_equal_before_and_after_another_is_loaded(name: str) -> None:
    config = kind(name).config({}).to_dict()
    first = tiny.adapter(tiny.meta("digits", (4, 6), kind=name, config=config), 1)
    second = tiny.adapter(tiny.meta("letters", (6, 9), kind=name, config=config), 2)
    model = ComposedModel(tiny.backbone(), tiny.FINGERPRINT, name)
    model.load(first)
    x, t = tiny.inputs(4)
    rows, tasks = torch.tensor([4, 5, 3, 4]), ["digits"] * 4
    before = model(x, t, rows, tasks)
    model.load(second)
    assert torch.equal(model(x, t, rows, tasks), before)


@every_kind
def test_the_untouched_backbone_in_any_batch_is_the_backbone(name: str) -> None:
    config = kind(name).config({}).to_dict()
    model = ComposedModel(tiny.backbone(), tiny.FINGERPRINT, name)
    model.load(tiny.adapter(tiny.meta(kind=name, config=config)))
    x, t = tiny.inputs(4)
    labels = torch.tensor([0, 1, 2, 3])
    plain = tiny.backbone()(x, t, labels)
    assert torch.equal(model(x, t, labels, [None] * 4), plain)
    mixed = model(x, t, torch.tensor([0, 4, 2, 5]), [None, "digits", None, "digits"])
    assert close(mixed[[0, 2]], plain[[0, 2]])
