"""The Affiner is DiffScaler's equation 5, at the paper's parameter counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinery.adapters.affiner import KIND, Lean, affiner
from affinery.adapters.routing import Blocks, Mix, Plan, Route, Share, choice_for, plan_for
from affinery.adapters.sites import AdaptedSite, Bank
from affinery.backbones.contract import Site
from affinery.errors import ConfigInvalid
from tests import tiny_models as tiny

CONVOLVE = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def layer_with(base: nn.Module, *ranks: int) -> AdaptedSite:
    """Each rank a group of its own, with one task in slot 1."""
    layer = AdaptedSite(Site(base.requires_grad_(False), "proj"), Route())
    for group, rank in enumerate(ranks, 1):
        bank = Bank(KIND, KIND.config({"rank": rank}), layer.site)
        bank.grow(2)
        bank.load(1, tiny.randomise(bank.tensors(1), group))
        layer.banks[str(group)] = bank
    return layer


def tensors(layer: AdaptedSite, group: int = 1) -> dict[str, Tensor]:
    bank = layer.bank(group)
    assert bank is not None
    return bank.tensors(1)


def run(layer: AdaptedSite, x: Tensor, *groups: int) -> Tensor:
    places = [(group, 1 if group else 0) for group in groups] * (1 if len(groups) > 1 else len(x))
    with layer.route.using(plan_for(places)), torch.no_grad():
        out: Tensor = layer(x)
    return out


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
    found = run(layer, x, 1)
    expected = by_the_equation(layer.base, tensors(layer), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_low_rank_branch_sees_the_pixels_under_the_kernels_centres() -> None:
    """Unpadded, a 3 × 3 convolution looks at centres: the branch sees the image without its rim."""
    layer = layer_with(nn.Conv2d(4, 6, 3), 3)
    own, x = tensors(layer), torch.randn(2, 4, 7, 9)
    found = run(layer, x, 1)
    inner = x[:, :, 1:-1, 1:-1]
    low = F.conv2d(F.relu(F.conv2d(inner, own["down"][..., None, None])), own["up"][..., None, None])
    y0, column = layer.base(x), (slice(None), None, None)
    bias = layer.base.get_parameter("bias")
    expected = y0 + own["a"][column] * (y0 - bias[column]) + own["b"][column] + own["s"] * low
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_start_has_zero_a_b_s_and_kaiming_branches() -> None:
    site = Site(nn.Linear(400, 300), "proj")
    own = KIND.initial(site, KIND.config({"rank": 200}), torch.Generator().manual_seed(0))
    assert all(bool((own[part] == 0).all()) for part in ("a", "b", "s"))
    assert float(own["down"].std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert float(own["up"].std()) == pytest.approx((2 / 200) ** 0.5, rel=0.02)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("divisible", [True, False])
def test_the_gradients_that_keep_less_are_those_of_the_equation(tasks: int, divisible: bool) -> None:
    """Where 1 + a is zero, nothing of W x is left in the output: then y0 is kept."""
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    a = random(tasks, 7)
    with torch.no_grad():
        a.mul_(0.2)
        if not divisible:
            a[-1, 2] = -1.0
    bias = torch.randn(7, dtype=torch.float64)
    given = (
        random(tasks, 5, 6),
        random(tasks, 5, 7),
        bias,
        a,
        random(tasks, 7),
        random(tasks),
        random(tasks, 4, 6),
        random(tasks, 7, 4),
    )
    assert torch.equal(Lean.apply(*given), affiner(*given))
    assert torch.autograd.gradcheck(Lean.apply, given)
    silent = [*given[:5], torch.zeros(tasks, dtype=torch.float64, requires_grad=True), *given[6:]]
    assert torch.autograd.gradcheck(Lean.apply, silent)


def test_training_keeps_no_output_of_the_frozen_layer() -> None:
    """Kept are x, h and y, of which x and y are kept by the layers around anyway."""

    def kept(compute: Callable[..., Tensor]) -> set[int]:
        found: set[int] = set()

        def pack(tensor: Tensor) -> Tensor:
            found.add(tensor.untyped_storage().data_ptr())
            return tensor

        x, y0 = torch.randn(2, 5, 6, requires_grad=True), torch.randn(2, 5, 7, requires_grad=True)
        a, b, s = torch.zeros(2, 7), torch.zeros(2, 7), torch.ones(2)
        own = [t.requires_grad_(True) for t in (a, b, s, torch.randn(2, 3, 6), torch.randn(2, 7, 3))]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = compute(x, y0, torch.zeros(7), *own)
        return {1 for p in found if p == y0.untyped_storage().data_ptr()} | {
            2 for p in found if p == y.untyped_storage().data_ptr()
        }

    assert kept(affiner) == {1}
    assert kept(Lean.apply) == {2}


def test_ranks_may_differ_in_a_mixed_batch() -> None:
    layer = layer_with(nn.Linear(6, 10), 2, 5, 1)
    x = torch.randn(6, 4, 6)
    groups = [3, 1, 2, 0, 1, 3]
    mixed = run(layer, x, *groups)
    for row, group in enumerate(groups):
        alone = by_the_equation(layer.base, tensors(layer, group), x[row]) if group else layer.base(x[row])
        torch.testing.assert_close(mixed[row], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [["a"], ["b"], ["low-rank"], ["a", "b"], ["b", "low-rank"]])
@pytest.mark.parametrize(
    ("base", "shape"), [(nn.Linear(6, 10), (5, 6)), (nn.Conv2d(4, 6, 3, padding=1), (4, 7, 7))]
)
def test_the_papers_ablations_are_the_equation_without_the_other_parts(
    parts: list[str], base: nn.Module, shape: tuple[int, ...]
) -> None:
    config = KIND.config({"rank": 3, "parts": parts})
    layer = AdaptedSite(Site(base.requires_grad_(False), "proj"), Route())
    bank = Bank(KIND, config, layer.site)
    bank.grow(2)
    bank.load(1, tiny.randomise(bank.tensors(1), 1))
    layer.banks["1"] = bank
    outputs, inputs = (10, 6) if isinstance(base, nn.Linear) else (6, 4)
    shapes = {"a": (outputs,), "b": (outputs,), "s": (), "down": (3, inputs), "up": (outputs, 3)}
    own = {part: torch.zeros(size) for part, size in shapes.items()} | bank.tensors(1)
    assert ("a" in bank.shapes, "b" in bank.shapes, "s" in bank.shapes) == tuple(
        part in parts for part in ("a", "b", "low-rank")
    )
    x = torch.randn(2, *shape)
    torch.testing.assert_close(run(layer, x, 1), by_the_equation(base, own, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [[], ["c"], ["a", "a"], "ab", ["a", 1]])
def test_a_choice_of_parts_that_there_are_not_is_refused(parts: object) -> None:
    with pytest.raises(ConfigInvalid, match="parts"):
        KIND.config({"parts": parts})


@pytest.mark.parametrize(
    ("slots", "choice"),
    [([2, 2, 2], Blocks(2, 1)), ([1, 1, 2, 2, 3, 3], Blocks(1, 3)), ([1, 2], Blocks(1, 2))],
)
def test_a_choice_is_the_cheapest_that_the_batch_allows(slots: list[int], choice: object) -> None:
    assert choice_for(slots) == choice
    assert plan_for([(7, slot) for slot in slots]).shares == (Share(7, choice),)


@pytest.mark.parametrize("slots", [[1, 2, 1], [1, 1, 3, 3], [2, 1], [1, 1, 2], [3, 3, 2, 2]])
def test_any_other_batch_is_gathered_row_by_row(slots: list[int]) -> None:
    choice = choice_for(slots)
    assert isinstance(choice, Mix)
    assert choice.slots.tolist() == slots


def test_a_batch_of_several_groups_is_put_back_into_its_order() -> None:
    plan = plan_for([(2, 1), (1, 1), (0, 0), (2, 1)])
    assert [(share.group, share.rows.tolist()) for share in plan.shares if share.rows is not None] == [
        (0, [2]),
        (1, [1]),
        (2, [0, 3]),
    ]
    assert plan.order is not None
    assert plan.order.tolist() == [2, 1, 0, 3]
    assert plan_for([(1, 1), (2, 1), (2, 1)]).order is None
    assert plan_for([(0, 0), (0, 0)]) == Plan()


def test_a_route_returns_to_its_plan_after_an_error() -> None:
    route = Route()
    with pytest.raises(RuntimeError), route.using(plan_for([(3, 1)])):
        raise RuntimeError
    assert route.plan == Plan()


@pytest.mark.parametrize("rank", [0, -1, 4097, 2.0, True, "4", None])
def test_a_rank_that_is_no_whole_number_in_range_is_refused(rank: object) -> None:
    with pytest.raises(ConfigInvalid, match="rank"):
        KIND.config({"rank": rank})
