"""What every adapter kind keeps to at one module: every kind that discovery finds, on every type of layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import Tensor, nn

from affinery.adapters import kind, kinds
from affinery.adapters.contract import Config
from affinery.adapters.routing import BACKBONE, Plan, Route, fixed_plan, plan_for
from affinery.adapters.sites import AdaptedSite, Bank
from affinery.backbones.contract import Site
from affinery.backbones.dit import DiTBlock
from affinery.errors import ConfigInvalid, UnknownName
from tests import tiny_models as tiny

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

Layer = tuple[Callable[[], nn.Module], tuple[int, ...], str]

LAYERS: dict[str, Layer] = {
    "linear": (lambda: nn.Linear(6, 10), (5, 6), "proj"),
    "linear without bias": (lambda: nn.Linear(6, 10, bias=False), (5, 6), "qkv"),
    "linear on one vector": (lambda: nn.Linear(6, 10), (6,), "modulation"),
    "linear on a grid": (lambda: nn.Linear(6, 10), (3, 4, 6), "fc1"),
    "linear, wide": (lambda: nn.Linear(48, 64), (16, 48), "qkv"),
    "linear, the last layer": (lambda: nn.Linear(6, 10), (5, 6), "head"),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (4, 11), "conv"),
    "conv1d, stride, no padding": (lambda: nn.Conv1d(4, 6, 5, stride=3), (4, 17), "conv"),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 7, 9), "conv"),
    "conv2d without bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (4, 7, 9), "conv"),
    "conv2d 1 × 1": (lambda: nn.Conv2d(4, 6, 1), (4, 7, 9), "proj"),
    "conv2d, stride 2": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 8), "conv"),
    "conv2d, dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), (4, 9, 9), "conv"),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 7, 7), "conv"),
    "conv2d, even kernel": (lambda: nn.Conv2d(4, 6, 4, stride=2, padding=1), (4, 8, 8), "conv"),
    "conv2d, same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (4, 7, 7), "conv"),
    "conv2d, same, even kernel": (lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=3), (4, 9, 9), "conv"),
    "conv2d, valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (4, 7, 7), "conv"),
    "conv2d, reflecting": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        (4, 7, 7),
        "conv",
    ),
    "conv2d, circular": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"), (4, 7, 7), "conv"),
    "conv2d, much padding": (lambda: nn.Conv2d(4, 6, 1, padding=3), (4, 3, 3), "conv"),
    "conv2d, asymmetric": (
        lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        (4, 9, 13),
        "conv",
    ),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, padding=1, stride=(1, 2, 1)), (4, 3, 6, 5), "conv"),
    "layer norm": (lambda: nn.LayerNorm(6), (5, 6), "norm"),
    "layer norm without weights": (lambda: nn.LayerNorm(6, elementwise_affine=False), (5, 6), "norm"),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 4, 4), "norm"),
    "feed-forward branch": (lambda: Mlp(6, 12), (5, 6), "mlp"),
    "transformer block": (lambda: block(), (5, 8), "block"),
    "convolutional block": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), (4, 5, 5), "residual"),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 6, 3), (4, 5, 5), "conv"),
    "nothing to train": (lambda: nn.Identity(), (4,), "linear"),
}


class Block(nn.Module):
    """A DiT block whose conditioning is a constant, as a module of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.block = DiTBlock(8, 2, 2.0, 1e-6)
        self.condition = nn.Parameter(torch.randn(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x, self.condition.expand(len(x), -1))
        return out


def block() -> nn.Module:
    return Block()


def site_of(layer: str, dtype: torch.dtype = torch.float32) -> tuple[Site, Tensor]:
    """A module with random weights, always the same, and a batch of six for it."""
    build, shape, role = LAYERS[layer]
    torch.manual_seed(0)
    module = build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Site(module.to(dtype).requires_grad_(False), role, 0), torch.randn(6, *shape).to(dtype)


@cache
def defined(name: str, layer: str) -> bool:
    try:
        return bool(kind(name).parts(site_of(layer)[0], kind(name).config({})))
    except ConfigInvalid:
        return False


CASES = [
    pytest.param(name, layer, id=f"{name}: {layer}")
    for name in kinds()
    for layer in LAYERS
    if defined(name, layer)
]
UNDEFINED = [
    pytest.param(name, layer, id=f"{name}: {layer}")
    for name in kinds()
    for layer in LAYERS
    if not defined(name, layer)
]
every_layer = pytest.mark.parametrize(("name", "layer"), CASES)
every_kind = pytest.mark.parametrize("name", kinds())


def bank_on(adapted: AdaptedSite, name: str, group: int, slots: int, config: dict[str, Any]) -> Bank:
    bank = Bank(kind(name), kind(name).config(config), adapted.site)
    bank.grow(slots + 1)
    adapted.banks[str(group)] = bank
    return bank


def trained(
    name: str, layer: str, dtype: torch.dtype = torch.float32, config: dict[str, Any] | None = None
) -> tuple[AdaptedSite, Bank, Tensor]:
    """A module with three tasks of random tensors in group 1, and a batch of six for it."""
    site, x = site_of(layer, dtype)
    adapted = AdaptedSite(site, Route())
    bank = bank_on(adapted, name, 1, 3, config or {})
    for slot in (1, 2, 3):
        bank.load(slot, tiny.randomise(bank.tensors(slot), slot))
    return adapted, bank, x


def plan(*slots: int) -> Plan:
    return plan_for([(1, slot) if slot else BACKBONE for slot in slots])


def run(adapted: AdaptedSite, x: Tensor, how: Plan) -> Tensor:
    with adapted.route.using(how), torch.no_grad():
        return adapted(x)  # type: ignore[no-any-return]


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    scale = max(1.0, float(other.detach().abs().max()))
    return float((one - other).detach().abs().max()) <= tolerance * scale


@every_layer
def test_before_training_a_layer_equals_the_frozen_one(name: str, layer: str) -> None:
    site, x = site_of(layer)
    frozen = site.module(x)
    adapted = AdaptedSite(site, Route())
    bank = bank_on(adapted, name, 1, 1, {})
    bank.load(1, kind(name).initial(site, bank.config, torch.Generator().manual_seed(0)))
    assert torch.equal(run(adapted, x, plan(1, 1, 1, 1, 1, 1)), frozen)
    assert torch.equal(run(adapted, x, Plan()), frozen)


@every_layer
def test_a_trained_layer_no_longer_equals_the_frozen_one(name: str, layer: str) -> None:
    adapted, _, x = trained(name, layer)
    outputs = [run(adapted, x, plan(*[slot] * 6)) for slot in range(4)]
    assert outputs[0].shape == outputs[1].shape
    assert all(not close(outputs[i], outputs[j]) for i in range(4) for j in range(i))


@every_layer
def test_each_row_of_a_mixed_batch_is_what_its_task_gives_alone(name: str, layer: str) -> None:
    adapted, _, x = trained(name, layer)
    slots = [2, 0, 3, 1, 2, 2]
    mixed = run(adapted, x, plan(*slots))
    for row, slot in enumerate(slots):
        assert close(mixed[row : row + 1], run(adapted, x[row : row + 1], plan(slot)))


@every_layer
def test_equal_blocks_give_what_a_gather_gives(name: str, layer: str) -> None:
    adapted, _, x = trained(name, layer)
    blocks = run(adapted, x, plan(1, 1, 2, 2, 3, 3))
    shuffle = torch.tensor([4, 0, 2, 5, 1, 3])
    assert close(run(adapted, x[shuffle], plan(3, 1, 2, 3, 1, 2)), blocks[shuffle])
    assert close(blocks[2:4], run(adapted, x[2:4], plan(2, 2)))


@every_layer
def test_a_plan_of_fixed_form_gives_the_same(name: str, layer: str) -> None:
    adapted, _, x = trained(name, layer)
    places = [(1, 2), BACKBONE, (1, 3), (1, 1), BACKBONE, (1, 2)]
    assert close(run(adapted, x, fixed_plan(places, [1])), run(adapted, x, plan_for(places)), 1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_tasks_of_all_kinds_mix_in_one_batch(layer: str) -> None:
    site, x = site_of(layer)
    names = [name for name in kinds() if defined(name, layer)]
    if not names:
        return
    adapted = AdaptedSite(site, Route())
    for group, name in enumerate(names, 1):
        bank = bank_on(adapted, name, group, 2, {})
        for slot in (1, 2):
            bank.load(slot, tiny.randomise(bank.tensors(slot), 10 * group + slot))
    places = [(1 + i % len(names), 1 + i % 2) for i in range(11)] + [BACKBONE]
    x = torch.cat([x, x])
    mixed = run(adapted, x, plan_for(places))
    fixed = run(adapted, x, fixed_plan(places, range(1, len(names) + 1)))
    for row, place in enumerate(places):
        alone = run(adapted, x[row : row + 1], plan_for([place]))
        assert close(mixed[row : row + 1], alone, 1e-4)
        assert close(fixed[row : row + 1], alone, 1e-4)


@every_layer
def test_only_the_adapters_tensors_get_gradients(name: str, layer: str) -> None:
    adapted, bank, x = trained(name, layer)
    bank.requires_grad_(True)
    with adapted.route.using(plan(1, 1, 1, 3, 3, 3)):
        adapted(x).square().sum().backward()
    for part in bank.shapes:
        gradient = bank.stack(part).grad
        assert gradient is not None
        assert bool((gradient[[1, 3]] != 0).any())
        assert bool((gradient[[0, 2]] == 0).all())
    assert all(p.grad is None for p in adapted.base.parameters())


@every_layer
def test_a_task_alone_in_its_batch_is_bit_equal_whatever_else_is_loaded(name: str, layer: str) -> None:
    adapted, bank, x = trained(name, layer)
    alone = AdaptedSite(site_of(layer)[0], Route())
    own = bank_on(alone, name, 1, 1, {})
    own.load(1, bank.tensors(3))
    assert torch.equal(run(alone, x, plan(*[1] * 6)), run(adapted, x, plan(*[3] * 6)))


@every_layer
def test_parts_of_other_names_or_shapes_are_refused_and_change_nothing(name: str, layer: str) -> None:
    _, bank, _ = trained(name, layer)
    before = {part: tensor.clone() for part, tensor in bank.tensors(1).items()}
    some = next(iter(before))
    other = {part: tensor + 1 for part, tensor in before.items()}
    for wrong in (
        {part: tensor for part, tensor in other.items() if part != some},
        other | {"more": torch.zeros(1)},
        other | {list(other)[-1]: torch.zeros(7, 7, 7, 7, 7, 7)},
    ):
        with pytest.raises(ValueError, match=r"part|shape"):
            bank.load(1, wrong)
        assert all(torch.equal(tensor, before[part]) for part, tensor in bank.tensors(1).items())


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_layer_of_another_number_type_keeps_it_and_the_tasks_keep_theirs(
    name: str, layer: str, dtype: torch.dtype
) -> None:
    adapted, bank, x = trained(name, layer, dtype)
    mixed = run(adapted, x, plan(2, 0, 3, 1, 2, 2))
    assert mixed.dtype == dtype
    own = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(bank.stack(part).dtype == own for part in bank.shapes)
    reference, _, x32 = trained(name, layer)
    tolerance = 1e-5 if dtype == torch.float64 else 0.15
    assert close(
        mixed.float(),
        run(reference, x.float() if dtype != torch.float64 else x32, plan(2, 0, 3, 1, 2, 2)),
        tolerance,
    )


@every_layer
def test_under_autocast_the_tasks_stay_in_full_precision(name: str, layer: str) -> None:
    adapted, bank, x = trained(name, layer)
    full = run(adapted, x, plan(2, 0, 3, 1, 2, 2))
    bank.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16), adapted.route.using(plan(2, 0, 3, 1, 2, 2)):
        low = adapted(x)
    low.float().square().sum().backward()
    assert close(low.float(), full, 0.15)
    for part in bank.shapes:
        gradient = bank.stack(part).grad
        assert gradient is not None
        assert gradient.dtype == torch.float32


@every_layer
def test_gradients_are_those_of_the_formula(name: str, layer: str) -> None:
    if "grid" in layer or "wide" in layer:
        return  # the same code as `linear`, at many times the cost
    adapted, bank, x = trained(name, layer, torch.float64)
    parts = list(bank.shapes)
    tensors = [bank.stack(part).detach()[1:3].requires_grad_(True) for part in parts]

    def out(*given: Tensor) -> Tensor:
        for part, tensor in zip(parts, given, strict=True):
            bank._parameters[part] = torch.cat([tensor[:1] * 0, tensor])  # type: ignore[assignment]
        with adapted.route.using(plan(1, 2)):
            return adapted(x[:2])  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(out, tensors, fast_mode=True)


@every_layer
def test_folded_into_the_weights_a_task_gives_the_same(name: str, layer: str) -> None:
    adapted, bank, x = trained(name, layer)
    before = run(adapted, x, plan(*[2] * 6))
    own = {part: tensor.clone() for part, tensor in bank.tensors(2).items()}
    folded = kind(name).fold(adapted.site, bank.config, own)
    for parameter, tensor in folded.weights.items():
        adapted.base.register_parameter(parameter, nn.Parameter(tensor))
    if folded.rest is None:
        del adapted.banks["1"]
    else:
        assert folded.reason
        bank.load(2, folded.rest)
    assert close(run(adapted, x, plan(*[2] * 6)), before)


def merged_config(name: str) -> Config | None:
    """Of three tasks, or None where the method has no weighted sum, which it then says."""
    one = kind(name).config({})
    try:
        return kind(name).merged_config([one, one, one])  # type: ignore[no-any-return]
    except ConfigInvalid:
        return None


def test_all_methods_but_prompt_tokens_can_be_summed() -> None:
    """Tokens of several tasks would see each other."""
    assert merged_config("vpt-deep") is None
    assert all(merged_config(name) is not None for name in ("affiner", "lora", "bitfit", "difffit", "full"))


@every_layer
def test_a_merged_task_changes_the_output_by_the_weighted_sum_of_changes(name: str, layer: str) -> None:
    adapted, bank, x = trained(name, layer)
    weights = {1: 0.6, 2: -0.4, 3: 1.5}
    config = merged_config(name)
    if config is None:
        return
    members = [(weight, bank.config, bank.tensors(slot)) for slot, weight in weights.items()]
    tensors = kind(name).merge(adapted.site, config, members)
    frozen = run(adapted, x, Plan())
    expected = frozen + sum(
        weight * (run(adapted, x, plan(*[slot] * 6)) - frozen) for slot, weight in weights.items()
    )
    merged = bank_on(adapted, name, 2, 1, config.to_dict())
    merged.load(1, tensors)
    assert close(run(adapted, x, plan_for([(2, 1)] * 6)), expected)


@pytest.mark.parametrize(("name", "layer"), UNDEFINED)
def test_a_layer_that_a_kind_is_not_defined_on_is_refused_by_name(name: str, layer: str) -> None:
    site, _ = site_of(layer)
    with pytest.raises(ConfigInvalid, match=type(site.module).__name__):
        kind(name).parts(site, kind(name).config({}))
    assert not kind(name).targets("layer", site, kind(name).config({}))


@every_kind
def test_a_kind_is_found_under_its_own_name_and_states_its_settings(name: str) -> None:
    assert kind(name).name == name
    assert CASES
    values = kind(name).config({}).to_dict()
    assert kind(name).config(values) == kind(name).config({})
    with pytest.raises(ConfigInvalid, match="no setting 'unheard of'"):
        kind(name).config({"unheard of": 1})


def test_an_unknown_kind_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'affiner'"):
        kind("afiner")


@every_kind
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape_rank_and_mix_of_tasks_gives_each_row_its_task(name: str, data: st.DataObject) -> None:
    """Sizes, ranks and mixes at random; two configs of the kind beside each other where it has a rank."""
    draw = data.draw
    inputs, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        module: nn.Module = nn.Linear(inputs, outputs, bias=draw(st.booleans()))
        shape: tuple[int, ...] = (*draw(st.lists(st.integers(1, 4), max_size=2)), inputs)
        role = "head"
    else:
        kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        padding, dilation = draw(st.integers(0, 3)), draw(st.integers(1, 2))
        module = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation)
        least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
        shape = (inputs, least + draw(st.integers(0, 3)), least + draw(st.integers(0, 3)))
        role = "head"
    site = Site(module.requires_grad_(False), role, 0)
    try:
        kind(name).parts(site, kind(name).config({}))
    except ConfigInvalid:
        return  # nothing there to change
    ranked = "rank" in kind(name).config({}).to_dict()
    configs = [
        {"rank": rank} for rank in draw(st.lists(st.integers(1, 12), min_size=1, max_size=2, unique=True))
    ]
    adapted = AdaptedSite(site, Route())
    torch.manual_seed(draw(st.integers(0, 99)))
    places = [BACKBONE]
    for group, config in enumerate(configs if ranked else [{}], 1):
        count = draw(st.integers(1, 3))
        bank = bank_on(adapted, name, group, count, config)
        for slot in range(1, count + 1):
            bank.load(slot, tiny.randomise(bank.tensors(slot), 7 * group + slot))
            places.append((group, slot))
    mix = draw(st.lists(st.sampled_from(places), min_size=1, max_size=7))
    x = torch.randn(len(mix), *shape)
    mixed = run(adapted, x, plan_for(mix))
    for row, place in enumerate(mix):
        assert close(mixed[row : row + 1], run(adapted, x[row : row + 1], plan_for([place])))
