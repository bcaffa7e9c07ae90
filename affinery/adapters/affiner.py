"""The Affiner (DiffScaler, eqs. 3–5): scale and shift a frozen layer's output, and learn a low-rank subspace.

    y = (1 + a) ⊙ (W x) + b̂ + b + s · W_up ReLU(W_down x)

It is computed on the frozen layer's own output y0 = W x + b̂, which stays whole:

    y = (1 + a) ⊙ y0 + (b − a ⊙ b̂) + s · W_up ReLU(W_down x)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinery.adapters.contract import Folded, Kind, Part, TargetConfig, chosen, whole_number
from affinery.adapters.layers import Linear, channel_axis, kaiming, low_rank, spread, widths
from affinery.backbones.contract import LAYER_ROLES, Site
from affinery.errors import ConfigInvalid

PARTS = ("a", "b", "low-rank")
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
            tokens, outputs = (v.reshape(tasks, -1, v.shape[-1]) for v in (x, y))
            shift = 0.0 if bias is None else bias.to(y.dtype)
            return affiner(tokens, outputs, shift, **parts).reshape(y.shape)
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
        some = members[0][2]
        outputs = len(some["a"] if "a" in some else some["b"] if "b" in some else some["up"])
        vectors = {part: torch.zeros(outputs) for part in ("a", "b") if part in config.parts}
        merged: dict[str, Tensor] = {
            part: sum((weight * parts[part] for weight, _, parts in members if part in parts), start=zeros)
            for part, zeros in vectors.items()
        }
        if "low-rank" in config.parts:
            merged |= side_by_side([(w, parts) for w, _, parts in members if "s" in parts], config.rank)
        return merged


def side_by_side(branches: Sequence[tuple[float, Mapping[str, Tensor]]], rank: int) -> dict[str, Tensor]:
    """Low-rank branches s · W_up ReLU(W_down x), each with its weight, as one branch of a larger rank."""
    down = torch.cat([parts["down"] for _, parts in branches])
    up = torch.cat([weight * parts["s"] * parts["up"] for weight, parts in branches], dim=1)
    missing = rank - len(down)  # where not every member is at this layer
    return {
        "s": torch.ones(()),
        "down": F.pad(down, (0, 0, 0, missing)),
        "up": F.pad(up, (0, missing)),
    }


KIND = Affiner()
