"""The Affiner (DiffScaler, eqs. 3–5): scale and shift a frozen layer's output, and learn a low-rank subspace.

    y = (1 + a) ⊙ (W x) + b̂ + b + s · W_up ReLU(W_down x)

It is computed on the frozen layer's own output y0 = W x + b̂, which stays whole:

    y = (1 + a) ⊙ y0 + (b − a ⊙ b̂) + s · W_up ReLU(W_down x)

Shape legend: B samples, S slots, G tasks in the batch, L positions (tokens or pixels) a sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinery.adapters.contract import AdaptedLayer, Config
from affinery.adapters.routing import EqualBlocks, OneTask, Route
from affinery.errors import ConfigInvalid

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Adaptable = nn.Linear | Convolution


@dataclass(frozen=True)
class AffinerConfig:
    """rank: the width d of the low-rank branch (64 for DiT-XL's width of 1152, 32 for U-Nets)."""

    rank: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or not 1 <= self.rank <= 4096:
            raise ConfigInvalid("rank", f"{self.rank!r} is not a whole number from 1 to 4096.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def suited(layer: nn.Module) -> Adaptable:
    """The layer, if the Affiner is defined on it. Raises ConfigInvalid."""
    if not isinstance(layer, Adaptable):
        raise ConfigInvalid(type(layer).__name__, "the Affiner takes linear and convolution layers only.")
    return layer


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


class AffinerLayer(AdaptedLayer):
    """A linear or convolution layer with an Affiner a slot.

    Parameters: a, b (S, out); s (S,); down (S, d, in); up (S, out, d), where d is the largest rank of any
    slot and the rows beyond a slot's own rank are zero.
    """

    base: Adaptable

    def __init__(self, base: nn.Module, route: Route) -> None:
        super().__init__(base, route)
        self.base = suited(base)
        if isinstance(self.base, nn.Linear):
            self.inputs, self.outputs = self.base.in_features, self.base.out_features
        else:
            self.inputs, self.outputs = self.base.in_channels, self.base.out_channels
        self.ranks = [0]
        weight = self.base.weight  # whose device and number type all tensors share
        self.a = nn.Parameter(weight.new_zeros(1, self.outputs))
        self.b = nn.Parameter(weight.new_zeros(1, self.outputs))
        self.s = nn.Parameter(weight.new_zeros(1))
        self.down = nn.Parameter(weight.new_zeros(1, 0, self.inputs))
        self.up = nn.Parameter(weight.new_zeros(1, self.outputs, 0))

    def add_slot(self, config: Config) -> int:
        assert isinstance(config, AffinerConfig)
        wider = max(0, config.rank - self.down.shape[1])
        self.a = nn.Parameter(F.pad(self.a.detach(), (0, 0, 0, 1)))
        self.b = nn.Parameter(F.pad(self.b.detach(), (0, 0, 0, 1)))
        self.s = nn.Parameter(F.pad(self.s.detach(), (0, 1)))
        self.down = nn.Parameter(F.pad(self.down.detach(), (0, 0, 0, wider, 0, 1)))
        self.up = nn.Parameter(F.pad(self.up.detach(), (0, wider, 0, 0, 0, 1)))
        self.ranks.append(config.rank)
        return len(self.ranks) - 1

    @torch.no_grad()
    def initialise(self, slot: int, generator: torch.Generator) -> None:
        """a = b = s = 0; W_down, W_up Kaiming normal (fan in), so that s has a gradient at once."""
        rank = self.ranks[slot]
        down = torch.randn(rank, self.inputs, generator=generator) * math.sqrt(2.0 / self.inputs)
        up = torch.randn(self.outputs, rank, generator=generator) * math.sqrt(2.0 / rank)
        zeros = torch.zeros(self.outputs)
        self.load(slot, {"a": zeros, "b": zeros, "s": torch.zeros(()), "down": down, "up": up})

    def tensors(self, slot: int) -> dict[str, Tensor]:
        rank = self.ranks[slot]
        return {
            "a": self.a[slot],
            "b": self.b[slot],
            "s": self.s[slot],
            "down": self.down[slot, :rank],
            "up": self.up[slot, :, :rank],
        }

    @torch.no_grad()
    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        own = self.tensors(slot)
        if own.keys() != tensors.keys():
            raise ValueError(f"the parts are {sorted(tensors)}, but an Affiner has {sorted(own)}")
        for part, tensor in tensors.items():
            if tensor.shape != own[part].shape:
                raise ValueError(
                    f"{part} has the shape {list(tensor.shape)} instead of {list(own[part].shape)}"
                )
        for part, tensor in tensors.items():
            own[part].copy_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, …, in) for a linear layer, (B, in, …) for a convolution → what the base gives, adapted."""
        y0: Tensor = self.base(x)
        if self.route.plan == OneTask(0):
            return y0
        bias = 0.0 if self.base.bias is None else self.base.bias
        if isinstance(self.base, nn.Linear):
            flat = x.reshape(len(x), -1, self.inputs)  # (B, L, in)
            return self._adapt(flat, y0.reshape(len(x), -1, self.outputs), bias).reshape(y0.shape)
        seen = centre_pixels(self.base, x, y0.shape[2:])  # (B, in, …), the size of y0
        flat = seen.flatten(2).transpose(1, 2)
        adapted = self._adapt(flat, y0.flatten(2).transpose(1, 2), bias)
        return adapted.transpose(1, 2).reshape(y0.shape)

    def _adapt(self, x: Tensor, y0: Tensor, bias: Tensor | float) -> Tensor:
        """x: (B, L, in); y0: (B, L, out) → (B, L, out)."""
        plan = self.route.plan
        if isinstance(plan, OneTask):
            # One batched product of batch one: a plain product. A slot's own rank alone decides its shape, so
            # the result does not depend, to the bit, on which other tasks are loaded.
            tensors, count = [part[None] for part in self.tensors(plan.slot).values()], 1
        elif isinstance(plan, EqualBlocks):
            rows = slice(plan.first, plan.first + plan.count)
            tensors, count = [stack[rows] for stack in self.stacks()], plan.count
        else:
            tensors, count = [stack[plan.slots] for stack in self.stacks()], len(x)
        a, b, s, down, up = tensors
        x_g = x.reshape(count, -1, self.inputs)  # (G, B/G·L, in)
        y_g = y0.reshape(count, -1, self.outputs)
        return affiner(x_g, y_g, bias, a, b, s, down, up).reshape(y0.shape)

    def stacks(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """a, b, s, down, up of all slots: the order of `tensors` too."""
        return self.a, self.b, self.s, self.down, self.up


def centre_pixels(conv: Convolution, x: Tensor, size: torch.Size) -> Tensor:
    """The input pixel under the kernel's centre for each output pixel.

    It is what a 1 × 1 convolution of the same stride sees. x: (B, in, …); size: the output's spatial size
    → (B, in, *size). Pixels beyond the border are zero.
    """
    for axis, length in enumerate(size):
        dim = axis + 2
        stride, extent = conv.stride[axis], conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        padding = (
            conv.padding[axis] if not isinstance(conv.padding, str) else _named_padding(conv.padding, extent)
        )
        first = extent // 2 - int(padding)
        last = first + (length - 1) * stride
        before, after = max(0, -first), max(0, last - x.shape[dim] + 1)
        if before or after:
            x = F.pad(x, (0, 0) * (x.dim() - dim - 1) + (before, after))
        x = x.narrow(dim, first + before, last - first + 1)
        x = x[(slice(None),) * dim + (slice(None, None, stride),)]
    return x


def _named_padding(name: str, extent: int) -> int:
    return extent // 2 if name == "same" else 0


class Affiner:
    """The kind of the DiffScaler paper."""

    name = "affiner"

    def config(self, values: Mapping[str, Any]) -> AffinerConfig:
        if unknown := sorted(values.keys() - {"rank"}):
            raise ConfigInvalid("affiner", f"it has no setting {unknown[0]!r}; it has: rank.")
        return AffinerConfig(**values)

    def adapts(self, layer: nn.Module) -> bool:
        return isinstance(layer, Adaptable)

    def wrap(self, layer: nn.Module, route: Route) -> AffinerLayer:
        return AffinerLayer(layer, route)

    def learning_rates(self) -> dict[str, float]:
        return {"s": 1.0}


KIND = Affiner()
