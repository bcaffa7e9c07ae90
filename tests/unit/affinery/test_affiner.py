"""The Affiner is DiffScaler's equation 5, at the paper's parameter counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinery.adapters.affiner import KIND, AffinerConfig, AffinerLayer
from affinery.adapters.routing import AnyMix, EqualBlocks, OneTask, Route, plan_for
from affinery.backbones.contract import BackboneSpec, on_meta
from affinery.backbones.dit import DiT
from affinery.composed import ComposedModel
from affinery.errors import ConfigInvalid
from tests import tiny_models as tiny

CONVOLVE = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def layer_with(base: nn.Module, *ranks: int) -> AffinerLayer:
    adapted = AffinerLayer(base.requires_grad_(False), Route())
    for seed, rank in enumerate(ranks):
        slot = adapted.add_slot(AffinerConfig(rank))
        adapted.load(slot, tiny.randomise(adapted.tensors(slot), seed + 1))
    return adapted


def by_the_equation(base: nn.Module, own: dict[str, Tensor], x: Tensor) -> Tensor:
    """y = (1 + a) ⊙ (W x) + b̂ + b + s · W_up ReLU(W_down x), written out."""
    weight: Tensor = base.get_parameter("weight")
    bias: Tensor | None = base.get_parameter("bias") if base.bias is not None else None
    a, b, s, down, up = (own[part] for part in ("a", "b", "s", "down", "up"))
    if isinstance(base, nn.Linear):
        bias_hat = 0.0 if bias is None else bias
        return (1 + a) * (x @ weight.T) + bias_hat + b + s * F.relu(x @ down.T) @ up.T
    assert isinstance(base, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    axes = len(base.kernel_size)
    ones, convolve = [1] * axes, CONVOLVE[type(base)]

    def column(vector: Tensor) -> Tensor:
        return vector.reshape(-1, *ones)

    wx = convolve(
        x, weight, stride=base.stride, padding=base.padding, dilation=base.dilation, groups=base.groups
    )
    narrow = convolve(x, down.reshape(*down.shape, *ones), stride=base.stride)
    branch = convolve(F.relu(narrow), up.reshape(*up.shape, *ones))
    bias_hat = 0.0 if bias is None else column(bias)
    return (1 + column(a)) * wx + bias_hat + column(b) + s * branch


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("base", "shape"),
    [
        (lambda bias: nn.Linear(6, 10, bias=bias), (5, 6)),
        (lambda bias: nn.Conv1d(4, 6, 3, padding=1, bias=bias), (4, 9)),
        (lambda bias: nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=bias), (4, 8, 8)),
        (lambda bias: nn.Conv2d(4, 6, 5, padding=2, groups=2, bias=bias), (4, 7, 9)),
        (lambda bias: nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=bias), (4, 7, 9)),
        (lambda bias: nn.Conv3d(4, 6, 3, padding=1, stride=(1, 2, 1), bias=bias), (4, 3, 6, 5)),
    ],
)
def test_a_layer_computes_equation_5(
    base: Callable[[bool], nn.Module], shape: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(0)
    layer = layer_with(base(bias), 3)
    x = torch.randn(2, *shape)
    with layer.route.using(OneTask(1)):
        found = layer(x)
    expected = by_the_equation(layer.base, layer.tensors(1), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_low_rank_branch_sees_the_pixels_under_the_kernels_centres() -> None:
    """Unpadded, a 3 × 3 convolution looks at centres: the branch sees the image without its rim."""
    layer = layer_with(nn.Conv2d(4, 6, 3), 3)
    own, x = layer.tensors(1), torch.randn(2, 4, 7, 9)
    with layer.route.using(OneTask(1)):
        found = layer(x)
    inner = x[:, :, 1:-1, 1:-1]
    low = F.conv2d(F.relu(F.conv2d(inner, own["down"][..., None, None])), own["up"][..., None, None])
    y0, column = layer.base(x), (slice(None), None, None)
    bias = layer.base.bias
    assert bias is not None
    expected = y0 + own["a"][column] * (y0 - bias[column]) + own["b"][column] + own["s"] * low
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_start_has_zero_a_b_s_and_kaiming_branches() -> None:
    layer = AffinerLayer(nn.Linear(400, 300), Route())
    slot = layer.add_slot(AffinerConfig(200))
    layer.initialise(slot, torch.Generator().manual_seed(0))
    own = layer.tensors(slot)
    assert all(bool((own[part] == 0).all()) for part in ("a", "b", "s"))
    assert float(own["down"].detach().std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert float(own["up"].detach().std()) == pytest.approx((2 / 200) ** 0.5, rel=0.02)


@pytest.mark.parametrize("inputs", [3, 6, 17, 48, 64])
def test_a_wider_neighbour_leaves_a_narrow_task_bit_equal(inputs: int) -> None:
    """The stack is padded to the largest rank: a slot's tensors then lie elsewhere, with gaps."""
    torch.manual_seed(0)
    base = nn.Linear(inputs, 40)
    x = torch.randn(8, 5, inputs)
    alone = layer_with(base, 3)
    with alone.route.using(OneTask(1)):
        before = alone(x)
    for ranks in ((3, 7), (3, 1, 64), (3, 33, 2, 5)):
        crowded = layer_with(base, *ranks)
        with crowded.route.using(OneTask(1)):
            assert torch.equal(crowded(x), before)
    behind = layer_with(base, 9)
    slot = behind.add_slot(AffinerConfig(3))
    behind.load(slot, alone.tensors(1))
    with behind.route.using(OneTask(slot)):
        assert torch.equal(behind(x), before)


def test_ranks_may_differ_in_a_mixed_batch() -> None:
    layer = layer_with(nn.Linear(6, 10), 2, 5, 1)
    x = torch.randn(6, 4, 6)
    slots = [3, 1, 2, 0, 1, 3]
    with layer.route.using(AnyMix(torch.tensor(slots))):
        mixed = layer(x)
    for row, slot in enumerate(slots):
        alone = by_the_equation(layer.base, layer.tensors(slot), x[row])
        torch.testing.assert_close(mixed[row], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("slots", "plan"),
    [
        ([2, 2, 2], OneTask(2)),
        ([0, 0], OneTask(0)),
        ([1, 1, 2, 2, 3, 3], EqualBlocks(1, 3)),
        ([0, 1], EqualBlocks(0, 2)),
    ],
)
def test_a_plan_is_the_cheapest_that_the_batch_allows(slots: list[int], plan: object) -> None:
    assert plan_for(slots) == plan


@pytest.mark.parametrize("slots", [[1, 2, 1], [1, 1, 3, 3], [2, 1], [1, 1, 2], [3, 3, 2, 2]])
def test_any_other_batch_is_gathered_row_by_row(slots: list[int]) -> None:
    plan = plan_for(slots)
    assert isinstance(plan, AnyMix)
    assert plan.slots.tolist() == slots


def test_a_route_returns_to_its_plan_after_an_error() -> None:
    route = Route()
    with pytest.raises(RuntimeError), route.using(OneTask(3)):
        raise RuntimeError
    assert route.plan == OneTask(0)


@pytest.mark.parametrize("rank", [0, -1, 4097, 2.0, True, "4", None])
def test_a_rank_that_is_no_whole_number_in_range_is_refused(rank: object) -> None:
    with pytest.raises(ConfigInvalid, match="rank"):
        KIND.config({"rank": rank})


@pytest.mark.parametrize("odd", [nn.ConvTranspose2d(4, 6, 3), nn.LayerNorm(4), nn.Embedding(3, 4)])
def test_other_layers_than_linears_and_convolutions_are_refused(odd: nn.Module) -> None:
    assert not KIND.adapts(odd)
    with pytest.raises(ConfigInvalid, match=type(odd).__name__):
        KIND.wrap(odd, Route())


@pytest.fixture(scope="module")
def xl() -> DiT:
    """DiT-XL/2 of ImageNet at 256 × 256, on the meta device."""
    spec = BackboneSpec(
        arch="dit",
        config={"width": 1152, "depth": 28, "heads": 16, "patch": 2, "learn_sigma": True},
        class_names=tuple(str(i) for i in range(1000)),
        image_size=32,
        channels=4,
    )
    model = on_meta(spec, DiT)
    assert isinstance(model, DiT)
    return model


def counted(model: DiT, rank: int) -> dict[str, int]:
    """Parameters of one Affiner on every adaptable layer, by part."""
    found: dict[str, int] = {}
    for layer in model.adaptable().values():
        adapted = KIND.wrap(layer, Route())
        slot = adapted.add_slot(AffinerConfig(rank))
        for part, tensor in adapted.tensors(slot).items():
            found[part] = found.get(part, 0) + tensor.numel()
    return found


def test_a_alone_and_b_alone_are_the_papers_0_48_million_on_dit_xl(xl: DiT) -> None:
    counts = counted(xl, 1)
    assert counts["a"] == counts["b"] == 483_840
    assert counts["s"] == len(xl.adaptable()) == 140


@pytest.mark.parametrize(
    ("rank", "count"), [(1, 741_888), (4, 2_967_552), (16, 11_870_208), (64, 47_480_832)]
)
def test_the_low_rank_branch_has_the_papers_counts_on_dit_xl(xl: DiT, rank: int, count: int) -> None:
    counts = counted(xl, rank)
    assert counts["down"] + counts["up"] == count


def test_a_whole_affiner_with_200_class_rows_is_48_68_million_on_dit_xl() -> None:
    spec = BackboneSpec(
        arch="dit",
        config={"width": 1152, "depth": 28, "heads": 16, "patch": 2, "learn_sigma": True},
        class_names=tuple(str(i) for i in range(1000)),
        image_size=32,
        channels=4,
    )
    model = ComposedModel(on_meta(spec, DiT), tiny.FINGERPRINT)
    birds = tiny.meta("birds", (1001, 1201), rank=64, null_index=1000)
    slot = model._make_room(birds, KIND.config(birds.config)).slot
    parts = [tensor for layer in model.layers.values() for tensor in layer.tensors(slot).values()]
    total = sum(tensor.numel() for tensor in [*parts, *model.class_rows])
    assert total == 48_679_052
    assert round(total / 1e6, 2) == 48.68


def test_dit_xl_has_the_papers_size_and_a_102_class_one_that_of_full_fine_tuning(xl: DiT) -> None:
    fixed = xl.pos_embed.numel()
    total = sum(parameter.numel() for parameter in xl.parameters())
    assert round(total / 1e6, 1) == 675.1
    with_102_rows = total - fixed - 1001 * 1152 + (102 + 1) * 1152
    assert with_102_rows == pytest.approx(673.8e6, rel=1e-4)
