"""The Affiner (DiffScaler, eqs. 3–5): scale and shift a frozen layer's output, and learn a low-rank subspace.

    y = (1 + a) ⊙ (W x) + b̂ + b + s · W_up ReLU(W_down x)

It is computed on the frozen layer's own output y0 = W x + b̂, which stays whole:

    y = (1 + a) ⊙ y0 + (b − a ⊙ b̂) + s · W_up ReLU(W_down x)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from affinery.adapters.contract import Folded, Kind, Part, TargetConfig, chosen, whole_number
from affinery.adapters.layers import Linear, channel_axis, kaiming, low_rank, spread, widths
from affinery.backbones.contract import LAYER_ROLES, Site
from affinery.errors import ConfigInvalid

PARTS = ("a", "b", "low-rank")
NEAR_ZERO = 1e-2
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
    shift = b - a * bias  # what turns (1 + a) y0 into (1 + a) W x + b̂ + b
    hidden = F.relu(torch.bmm(x, down.transpose(1, 2)))
    low = torch.baddbmm(shift[:, None], hidden, (s[:, None, None] * up).transpose(1, 2))
    return torch.addcmul(low, y0, (1 + a)[:, None])


def plain() -> bool:
    """Whether autograd itself is to differentiate: nothing trains, or a compiler chooses what is kept."""
    return not torch.is_grad_enabled() or torch.compiler.is_compiling()


class Lean(torch.autograd.Function):
    """`affiner`, which for its gradients keeps x, the narrow h = ReLU(W_down x) and its own output y alone.

    Autograd would keep y0 too, for the gradient of a. But x and y are kept by the layers around it anyway,
    and Σ dy ⊙ W x follows from Σ dy ⊙ y, as y = (1 + a) ⊙ W x + β + s · W_up h with β = b̂ + b:

        da = (Σ dy ⊙ y − β ⊙ Σ dy − rowsum(W_up ⊙ dW_up)) / (1 + a),   dW_up = s · dyᵀ h

    Where some 1 + a is too near to zero to divide by, y0 is kept after all.
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
    ) -> Tensor:
        hidden = F.relu(torch.bmm(x, down.transpose(1, 2)))  # (G, L, d)
        low = torch.baddbmm((b - a * bias)[:, None], hidden, (s[:, None, None] * up).transpose(1, 2))
        y = torch.addcmul(low, y0, (1 + a)[:, None])
        divisible = bool(((1 + a).abs() > NEAR_ZERO).all())
        ctx.save_for_backward(x, hidden, y if divisible else y0, a, b, s, down, up)
        ctx.bias, ctx.divisible = bias, divisible
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, y, a, b, s, down, up = ctx.saved_tensors
        dy = dy.contiguous()
        spread_up = torch.bmm(dy.transpose(1, 2), hidden)  # (G, out, d): dyᵀ h
        sum_dy = dy.sum(dim=1)
        dhidden = torch.bmm(dy, s[:, None, None] * up).masked_fill_(hidden <= 0, 0)  # (G, L, d)
        dup = s[:, None, None] * spread_up
        along = torch.linalg.vecdot(dy, y, dim=1)  # (G, out): Σ dy ⊙ y
        if ctx.divisible:
            da = (along - (ctx.bias + b) * sum_dy - (up * dup).sum(dim=2)) / (1 + a)
        else:  # y is y0 = W x + b̂
            da = along - ctx.bias * sum_dy
        return (
            torch.bmm(dhidden, down) if ctx.needs_input_grad[0] else None,
            dy * (1 + a)[:, None] if ctx.needs_input_grad[1] else None,
            None,
            da,
            sum_dy,
            (up * spread_up).sum(dim=(1, 2)),
            torch.bmm(dhidden.transpose(1, 2), x),
            dup,
        )


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

    def adapt(
        self, site: Site, config: AffinerConfig, parts: Mapping[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        layer = site.module
        assert isinstance(layer, Linear)
        bias = layer.bias
        if len(parts) == 5 and isinstance(layer, nn.Linear):
            tasks = len(parts["s"])
            tokens, outputs = (v.to(y.dtype).reshape(tasks, -1, v.shape[-1]) for v in (x, y))
            shift = 0.0 if bias is None else bias.to(y.dtype)
            compute = affiner if plain() else Lean.apply
            own = [parts[part] for part in ("a", "b", "s", "down", "up")]
            return cast(Tensor, compute(tokens, outputs, shift, *own)).reshape(y.shape)
        axis = channel_axis(layer, y)
        out = y
        if "a" in parts:
            out = y * spread(1 + parts["a"], y, axis)
            if bias is not None:
                out = out - spread(parts["a"] * bias.to(y.dtype), y, axis)
        if "b" in parts:
            out = out + spread(parts["b"], y, axis)
        if "s" in parts:
            out = out + low_rank(layer, x, y, parts["down"], parts["s"][:, None, None] * parts["up"])
        return out

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
