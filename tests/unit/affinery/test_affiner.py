"""The Affiner is DiffScaler's equation 5, at the paper's parameter counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from affinery.adapters.affiner import DROWNED, KIND, Affiner, Findings, Lean, affiner
from affinery.adapters.contract import Kind
from affinery.adapters.routing import Blocks, Mix, Plan, Route, Share, choice_for, plan_for
from affinery.adapters.sites import AdaptedSite, Bank
from affinery.backbones.contract import Site
from affinery.errors import ConfigInvalid
from affinery.meta_device import LiveMemory
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


def given_for(tasks: int, dtype: torch.dtype = torch.float64, **scales: float) -> list[Tensor]:
    """x, y0, bias, a, b, s, down, up of a layer 6 → 7 of rank 4."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "x": (5, 6),
        "y0": (5, 7),
        "bias": (),
        "a": (7,),
        "b": (7,),
        "s": (),
        "down": (4, 6),
        "up": (7, 4),
    }
    found = [
        scales.get(name, 1.0) * torch.randn(tasks, *shape, generator=generator, dtype=dtype)
        for name, shape in shapes.items()
    ]
    found[2] = torch.randn(7, generator=generator, dtype=dtype)
    return [tensor.requires_grad_(i != 2) for i, tensor in enumerate(found)]


@pytest.mark.parametrize(
    "findings", [Findings(True), Findings(False), Findings(True, True), Findings(False, True)]
)
@pytest.mark.parametrize("tasks", [1, 3])
def test_whatever_was_found_out_before_the_gradients_are_those_of_the_equation(
    findings: Findings, tasks: int
) -> None:
    given = given_for(tasks, a=0.2)
    if findings.divisible is False:
        with torch.no_grad():
            given[3][0, 1], given[3][-1, 4] = -1.0, -1.0 + 1e-9
    assert torch.autograd.gradcheck(lambda *own: Lean.apply(*own, findings), given)


def gradient_of_a(dtype: torch.dtype, findings: Findings, up: float) -> Tensor:
    """In a layer whose low-rank branch is so much larger than its W x. → float64"""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 16, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 64, 16, generator=generator, dtype=torch.float64)
    dy = torch.randn(1, 64, 32, generator=generator, dtype=torch.float64)
    down, wide = (
        torch.randn(1, *size, generator=generator, dtype=torch.float64) for size in ((8, 16), (32, 8))
    )
    wide_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    a, b, s = (torch.zeros(size, dtype=wide_dtype, requires_grad=True) for size in ((1, 32), (1, 32), (1,)))
    own = [part.to(wide_dtype).requires_grad_() for part in (down, up * wide)]
    y0 = (x @ weight.T).to(dtype)
    with torch.no_grad():
        s.fill_(1.0)
    Lean.apply(x.to(dtype), y0, 0.0, a, b, s, *own, findings).backward(dy.to(dtype))
    assert a.grad is not None
    assert a.grad.dtype == wide_dtype
    return a.grad.double()


def test_half_precision_keeps_the_digits_of_w_x_where_the_branch_is_much_larger() -> None:
    exact = gradient_of_a(torch.float64, Findings(True), 30)
    seen = Findings(True)
    read_back = gradient_of_a(torch.bfloat16, seen, 30)
    kept = gradient_of_a(torch.bfloat16, Findings(True, drowned=True), 30)
    assert seen.overlap is not None
    assert float(seen.overlap) > DROWNED
    assert float((kept - exact).norm() / exact.norm()) < 0.01
    assert float((read_back - exact).norm() / exact.norm()) > 0.05
    small = Findings(True)
    near, true = gradient_of_a(torch.bfloat16, small, 0.1), gradient_of_a(torch.float64, Findings(True), 0.1)
    assert float((near - true).norm() / true.norm()) < 0.01
    assert small.overlap is not None
    assert float(small.overlap) < DROWNED


def test_half_precision_does_not_round_a_beside_one() -> None:
    """Beside 1, bfloat16 has no room between 0 and 0.0078."""
    torch.manual_seed(0)
    y0, zero = torch.randn(1, 65536, 8).bfloat16(), torch.zeros(1, 8)
    nothing = torch.zeros(1), torch.zeros(1, 2, 8), torch.zeros(1, 8, 2)
    x = torch.zeros(1, 65536, 8).bfloat16()
    changed = affiner(x, y0, 0.0, zero + 6e-3, zero, *nothing).double() - y0.double()
    assert torch.equal(affiner(x, y0, 0.0, zero, zero, *nothing), y0)
    slope = (changed * y0.double()).sum() / y0.double().square().sum()
    assert float(slope) == pytest.approx(6e-3, rel=0.1)


class Questions(TorchDispatchMode):
    """Counts how often a value is asked for, which on a device means to wait."""

    asked = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_no_layer_waits_for_the_device_and_a_step_looks_once() -> None:
    model = tiny.composed()
    task = model.start(tiny.meta(), torch.Generator().manual_seed(0))
    for bank in model.banks(model.groups[task.group]).values():
        bank.expose(task.slot, 1)
    x, t = tiny.inputs(4)
    with Questions() as looking:
        model.look()
    plan = model.plan(["digits"] * 4)
    with Questions() as computing:
        model.denoise(x, t, torch.full((4,), 4), plan).square().mean().backward()
    assert looking.asked <= 2 * len(model.banks(model.groups[task.group]))  # one list of numbers
    assert computing.asked == 0


def test_a_layer_whose_gain_has_gone_to_zero_is_found_and_trains_on() -> None:
    model = tiny.composed()
    task = model.start(tiny.meta(), torch.Generator().manual_seed(0))
    banks = model.banks(model.groups[task.group])
    for bank in banks.values():
        bank.expose(task.slot, 1)
    with torch.no_grad():
        banks["blocks.1.mlp.fc1"].exposed["a"][0, 5] = -1.0
    model.look()
    assert [name for name, bank in banks.items() if not bank.findings.divisible] == ["blocks.1.mlp.fc1"]
    x, t = tiny.inputs(4)
    model.denoise(x, t, torch.full((4,), 4), model.plan(["digits"] * 4)).square().mean().backward()
    gradient = banks["blocks.1.mlp.fc1"].exposed["a"].grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    assert float(gradient[0, 5].abs()) > 0


def kept_bytes(level: str, plain: bool = False) -> int:
    """What a block keeps for its gradients: all memory that is still held after its pass."""
    model = tiny.composed(base=tiny.backbone(config={"width": 64, "depth": 1, "heads": 4, "patch": 1}))
    task = model.start(tiny.meta(rank=4), torch.Generator().manual_seed(0))
    for bank in model.banks(model.groups[task.group]).values():
        bank.expose(task.slot, 1)
        if plain:
            bank.kind = Plain()
    model.recompute(level)
    x, t = tiny.inputs(8)
    plan = model.plan(["digits"] * 8)
    model.look()
    with LiveMemory() as memory:
        out = model.denoise(x, t, torch.full((8,), 4), plan)
        return int(memory.bytes(out))


class Plain(Affiner):
    """The Affiner as autograd differentiates it."""

    def learn(self, site: Any, config: Any, bank: Bank, choice: Any, x: Tensor, y: Tensor) -> Tensor:
        return Kind.learn(self, site, config, bank, choice, x, y)


def test_less_is_kept_than_autograd_would_keep() -> None:
    plain, lean, cheap, block = (
        kept_bytes(*case) for case in (("none", True), ("none",), ("cheap",), ("block",))
    )
    assert lean <= 0.75 * plain  # 0.70 at DiT-XL's width, where the low-rank activations weigh less
    assert cheap <= 0.55 * plain
    assert block < 0.2 * plain


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
