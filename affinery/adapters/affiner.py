"""The Affiner (DiffScaler, eqs. 3–5): scale and shift a frozen layer's output, and learn a low-rank subspace.

    y = (1 + a) ⊙ (W x) + b̂ + b + s · W_up ReLU(W_down x)

It is computed on the frozen layer's own output y0 = W x + b̂, which stays whole:

    y = (1 + a) ⊙ y0 + (b − a ⊙ b̂) + s · W_up ReLU(W_down x)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from affinery.adapters.contract import Folded, Kind, Part, TargetConfig, chosen, whole_number
from affinery.adapters.layers import Linear, channel_axis, kaiming, low_rank, spread, widths
from affinery.backbones.contract import LAYER_ROLES, Site
from affinery.errors import ConfigInvalid

if TYPE_CHECKING:
    from affinery.adapters.routing import Choice
    from affinery.adapters.sites import Bank

PARTS = ("a", "b", "low-rank")
NEAR_ZERO = 1e-2
DROWNED = 4.0  # a branch so many times larger than W x costs two of half precision's eight bits
TINY = 1e-30
HALVES = (torch.float16, torch.bfloat16)
ROLES = LAYER_ROLES - {"stem", "time", "norm", "head", "head-modulation"}


@dataclass(frozen=True)
class AffinerConfig(TargetConfig):
    """rank: the width d of the low-rank branch (64 for DiT-XL's width of 1152, 32 for U-Nets).

    parts: which of a, b and the low-rank branch it has (the paper's ablation).
    """

    rank: int = 64
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("rank", self.rank, 1, 4096)
        listed = isinstance(self.parts, tuple) and all(isinstance(part, str) for part in self.parts)
        if not listed or not self.parts or sorted(set(self.parts) & set(PARTS)) != sorted(self.parts):
            raise ConfigInvalid("parts", f"{self.parts!r} is not a choice of {', '.join(PARTS)}.")


def affiner(
    x: Tensor, y0: Tensor, bias: Tensor | float, a: Tensor, b: Tensor, s: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    """(1 + a) ⊙ (W x) + b̂ + b + s · W_up ReLU(W_down x)   (DiffScaler, eq. 5), for G tasks side by side.

    x: (G, L, in); y0 = W x + b̂: (G, L, out); bias b̂: (out,) or 0; a, b: (G, out); s: (G,); down: (G, d, in);
    up: (G, out, d) → (G, L, out). At a = b = s = 0 the result is y0 to the bit.
    """
    gain, shift = vectors(a, b, bias, y0.dtype)
    return joined(x, y0, gain, shift, *(part.to(y0.dtype) for part in (s, down, up)))[0]


def vectors(a: Tensor, b: Tensor, bias: Tensor | float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What y0 is multiplied by, and what turns (1 + a) y0 into (1 + a) W x + b̂ + b. (G, out) each

    Beside the 1 of 1 + a, half precision would lose an a of less than 0.004: there the gain is a alone, and
    `joined` adds y0.
    """
    gain = a if dtype in HALVES else 1 + a
    return gain.to(dtype), (b - a * bias).to(dtype)


def joined(
    x: Tensor, y0: Tensor, gain: Tensor, shift: Tensor, s: Tensor, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """The output, and the narrow h = ReLU(W_down x) that it was made with: (G, L, out), (G, L, d)."""
    hidden = torch.bmm(x, down.transpose(1, 2)).relu_()
    low = torch.baddbmm(shift[:, None], hidden, (s[:, None, None] * up).transpose(1, 2))
    y = low.addcmul_(y0, gain[:, None])
    return (y.add_(y0) if y.dtype in HALVES else y), hidden


@dataclass
class Findings:
    """What is known of one layer's tensors before a pass, so that no layer has to wait for a device.

    divisible: whether no 1 + a is too near to zero to divide by; None where nobody has looked yet.
    drowned: whether the low-rank branch is so much larger than W x that W x would be read from the output
    with too few digits. overlap: () the size of the branch's part in the gradient of a, over that of W x's,
    as the last backward pass in half precision found it.
    """

    divisible: bool | None = None
    drowned: bool = False
    overlap: Tensor | None = None

    def measure(self, overlap: Tensor) -> None:
        """Always in the same memory: a pass that is played back writes where the one recorded did."""
        if self.overlap is None:
            self.overlap = overlap
        else:
            self.overlap.copy_(overlap)

    @property
    def form(self) -> tuple[bool | None, bool]:
        return self.divisible, self.drowned


class Lean(torch.autograd.Function):
    """`affiner`, which for its gradients keeps x, the narrow h = ReLU(W_down x) and its own output y alone.

    Autograd would keep y0 too, for the gradient of a. But x and y are kept by the layers around it anyway,
    and Σ dy ⊙ W x follows from Σ dy ⊙ y, as y = (1 + a) ⊙ W x + β + s · W_up h with β = b̂ + b:

        da = (Σ dy ⊙ y − β ⊙ Σ dy − rowsum(W_up ⊙ dW_up)) / (1 + a),   dW_up = s · dyᵀ h

    Of channels where 1 + a is too near to zero to divide by, y0 is kept after all; and of all channels where
    the findings say that the branch drowns W x. The tensors of the task come in their own number type, and so
    do their gradients; sums over tokens are taken in it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y0: Tensor,
        bias: Tensor | float,
        a: Tensor,
        b: Tensor,
        s: Tensor,
        down: Tensor,
        up: Tensor,
        findings: Findings | None = None,
    ) -> Tensor:
        found = findings or Findings()
        gain, shift = vectors(a, b, bias, y0.dtype)
        y, hidden = joined(x, y0, gain, shift, *(part.to(y0.dtype) for part in (s, down, up)))
        near = y0_near = None
        divisible = found.divisible
        if divisible is None:
            divisible = bool(((1 + a).abs() > NEAR_ZERO).all())
        if not divisible and not found.drowned:  # rare, and then of few channels
            near = ((1 + a).abs() <= NEAR_ZERO).any(dim=0).nonzero()[:, 0]
            y0_near = y0[..., near]
        ctx.save_for_backward(x, hidden, y0 if found.drowned else y, a, b, s, down, up, near, y0_near)
        ctx.bias, ctx.findings = bias, found
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, kept, a, b, s, down, up, near, y0_near = ctx.saved_tensors
        dy, half, wide = dy.contiguous(), kept.dtype, a.dtype
        up_gradient = torch.bmm(dy.transpose(1, 2), hidden).to(wide)  # (G, out, d): dyᵀ h
        sum_dy = dy.sum(dim=1, dtype=wide)
        dhidden = torch.bmm(dy, up.to(half)).masked_fill_(hidden <= 0, 0)  # (G, L, d)
        dhidden.mul_(s[:, None, None])
        along_up = torch.linalg.vecdot(up, up_gradient)  # (G, out): Σ dy ⊙ W_up h
        branch = s[:, None] * along_up
        along = token_sums(dy, kept, wide)
        if ctx.findings.drowned:  # kept is y0 = W x + b̂
            da = along - ctx.bias * sum_dy
        else:
            scale = 1 + a
            scaled = along - (ctx.bias + b) * sum_dy - branch
            if near is None:
                da = scaled / scale
            else:
                da = scaled / torch.where(scale.abs() > NEAR_ZERO, scale, 1)
                da[:, near] = token_sums(dy[..., near], y0_near, wide) - _at(ctx.bias, near) * sum_dy[:, near]
        if half in HALVES:
            ctx.findings.measure(branch.norm() / da.norm().clamp_min(TINY))
        return (
            torch.bmm(dhidden, down.to(half)) if ctx.needs_input_grad[0] else None,
            _times(dy, a) if ctx.needs_input_grad[1] else None,
            None,
            da,
            sum_dy,
            along_up.sum(dim=1),
            torch.bmm(dhidden.transpose(1, 2), x).to(wide),
            up_gradient.mul_(s[:, None, None]),
            None,
        )


def token_sums(dy: Tensor, y: Tensor, wide: torch.dtype) -> Tensor:
    """Σ dy ⊙ y over tokens, summed up in a wide number type. (G, L, out) twice → (G, out)"""
    if dy.dtype == wide:
        return cast(Tensor, torch.linalg.vecdot(dy, y, dim=1))
    return (dy * y).sum(dim=1, dtype=wide)


def _times(dy: Tensor, a: Tensor) -> Tensor:
    """(1 + a) ⊙ dy, without losing a small a in half precision."""
    if dy.dtype in HALVES:
        return torch.addcmul(dy, dy, a.to(dy.dtype)[:, None])
    scaled: Tensor = dy * (1 + a)[:, None]
    return scaled


def _at(bias: Tensor | float, channels: Tensor) -> Tensor | float:
    return bias[channels] if isinstance(bias, Tensor) else bias


class Affiner(Kind[AffinerConfig]):
    """The kind of the DiffScaler paper, on linear and convolution layers."""

    name = "affiner"
    settings = AffinerConfig

    def targets(self, name: str, site: Site, config: AffinerConfig) -> bool:
        return isinstance(site.module, Linear) and chosen(name, site, config.targets, ROLES)

    def parts(self, site: Site, config: AffinerConfig) -> dict[str, Part]:
        """a, b: (out,); s: (); down: (d, in); up: (out, d)."""
        if not isinstance(site.module, Linear):
            kind = type(site.module).__name__
            raise ConfigInvalid(kind, "the Affiner takes linear and convolution layers only.")
        inputs, outputs = widths(site.module)
        found: dict[str, Part] = {part: Part((outputs,)) for part in ("a", "b") if part in config.parts}
        if "low-rank" in config.parts:
            shapes = {"s": (), "down": (config.rank, inputs), "up": (outputs, config.rank)}
            found |= {part: Part(shape) for part, shape in shapes.items()}
        return found

    def initial(self, site: Site, config: AffinerConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """a = b = s = 0; W_down, W_up Kaiming normal (fan in), so that s has a gradient at once."""
        shapes = {name: part.shape for name, part in self.parts(site, config).items()}
        return {
            name: kaiming(generator, *shape) if len(shape) == 2 else torch.zeros(shape)
            for name, shape in shapes.items()
        }

    def prepare(
        self, site: Site, config: AffinerConfig, parts: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Where all parts are there, a and b as `vectors` gives them: gain and shift."""
        ready = {name: part.to(dtype) for name, part in parts.items()}
        if not whole(parts, site.module):
            return ready
        bias = 0.0 if site.module.bias is None else cast(Tensor, site.module.bias).to(parts["a"].dtype)
        gain, shift = vectors(ready.pop("a"), ready.pop("b"), bias, dtype)
        return ready | {"gain": gain, "shift": shift}

    def adapt(
        self, site: Site, config: AffinerConfig, parts: Mapping[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        layer = site.module
        assert isinstance(layer, Linear)
        if "gain" in parts:
            tasks = parts["s"].shape[0]
            tokens, outputs = (v.to(y.dtype).reshape(tasks, -1, v.shape[-1]) for v in (x, y))
            own = [parts[part] for part in ("gain", "shift", "s", "down", "up")]
            return joined(tokens, outputs, *own)[0].reshape(y.shape)
        axis, bias = channel_axis(layer, y), layer.bias
        out = y
        if "a" in parts:
            scale = spread(parts["a"], y, axis)
            out = torch.addcmul(y, y, scale) if y.dtype in HALVES else y * (1 + scale)
            if bias is not None:
                out = out - spread(parts["a"] * bias.to(y.dtype), y, axis)
        if "b" in parts:
            out = out + spread(parts["b"], y, axis)
        if "s" in parts:
            out = out + low_rank(layer, x, y, parts["down"], parts["s"][:, None, None] * parts["up"])
        return out

    def learn(
        self, site: Site, config: AffinerConfig, bank: Bank, choice: Choice, x: Tensor, y: Tensor
    ) -> Tensor:
        if not whole(bank.shapes, site.module):
            return super().learn(site, config, bank, choice, x, y)
        parts = bank.pick(choice)
        tasks = parts["s"].shape[0]
        tokens, outputs = (v.to(y.dtype).reshape(tasks, -1, v.shape[-1]) for v in (x, y))
        bias = site.module.bias
        shift = 0.0 if bias is None else cast(Tensor, bias).to(parts["a"].dtype)
        own = [parts[part] for part in ("a", "b", "s", "down", "up")]
        out = Lean.apply(tokens, outputs, shift, *own, bank.findings)
        return cast(Tensor, out).reshape(y.shape)

    @torch.no_grad()
    def look(self, banks: Sequence[Bank]) -> None:
        """Finds out, in one question to the device, what `Lean` must know of every layer."""
        known = [bank for bank in banks if whole(bank.shapes, bank.site.module)]
        if not known:
            return
        scales = torch._foreach_abs(torch._foreach_add([bank.stack("a") for bank in known], 1.0))
        least = torch.stack([scale.amin() for scale in scales])
        found = [bank.findings for bank in known]
        overlaps = [
            least.new_zeros(()) if one is None or one.overlap is None else one.overlap for one in found
        ]
        smallest, sizes = torch.stack([least, torch.stack(overlaps).to(least)]).tolist()
        for bank, low, size in zip(known, smallest, sizes, strict=True):
            overlap = None if bank.findings is None else bank.findings.overlap
            bank.findings = Findings(low > NEAR_ZERO, size > DROWNED, overlap)

    def recalled(self, measured: Tensor | None) -> Findings | None:
        return None if measured is None else Findings(overlap=measured)

    def learning_rates(self) -> dict[str, float]:
        return {"s": 1.0}

    def fold(self, site: Site, config: AffinerConfig, parts: Mapping[str, Tensor]) -> Folded:
        """W ← (1 + a) ⊙ W, b̂ ← b̂ + b. The ReLU branch stays beside the layer."""
        layer = site.module
        assert isinstance(layer, Linear)
        weights = {}
        if "a" in parts:
            scale = (1 + parts["a"]).to(layer.weight.dtype)
            weights["weight"] = layer.weight * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        if "b" in parts:
            shift = parts["b"].to(layer.weight.dtype)
            weights["bias"] = shift if layer.bias is None else layer.bias + shift
        if "s" not in parts:
            return Folded(weights)
        zeros = {part: torch.zeros_like(parts[part]) for part in ("a", "b") if part in parts}
        return Folded(weights, dict(parts) | zeros, "its ReLU branch is not linear")

    def merged_config(self, configs: Sequence[AffinerConfig]) -> AffinerConfig:
        have = {part for config in configs for part in config.parts}
        rank = sum(config.rank for config in configs if "low-rank" in config.parts)
        parts = tuple(part for part in PARTS if part in have)
        return replace(configs[0], rank=max(1, rank), parts=parts)

    def merge(
        self,
        site: Site,
        config: AffinerConfig,
        members: Sequence[tuple[float, AffinerConfig, Mapping[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """Σ weight · a, Σ weight · b; branches side by side along d, weights and s folded into W_up."""
        shapes = self.parts(site, config)
        vectors = {part: torch.zeros(shapes[part].shape) for part in ("a", "b") if part in shapes}
        merged: dict[str, Tensor] = {
            part: sum((weight * parts[part] for weight, _, parts in members if part in parts), start=zeros)
            for part, zeros in vectors.items()
        }
        if "low-rank" in config.parts:
            merged |= side_by_side(
                [(w, parts) for w, _, parts in members if "s" in parts], shapes["down"], shapes["up"]
            )
        return merged


def whole(parts: Mapping[str, Any], layer: nn.Module) -> bool:
    """Whether this is a linear layer with every part of the equation, which has a way of its own."""
    return len(parts) == len(PARTS) + 2 and isinstance(layer, nn.Linear)


def side_by_side(
    branches: Sequence[tuple[float, Mapping[str, Tensor]]], down: Part, up: Part
) -> dict[str, Tensor]:
    """Low-rank branches s · W_up ReLU(W_down x), each with its weight, as one branch of these shapes."""
    missing = down.shape[0] - sum(len(parts["down"]) for _, parts in branches)
    downs = [parts["down"] for _, parts in branches]
    ups = [weight * parts["s"] * parts["up"] for weight, parts in branches]
    return {  # some are missing where not every member is at this layer
        "s": torch.ones(()),
        "down": torch.cat([*downs, torch.zeros(missing, down.shape[1])]),
        "up": torch.cat([*ups, torch.zeros(up.shape[0], missing)], dim=1),
    }


KIND = Affiner()
