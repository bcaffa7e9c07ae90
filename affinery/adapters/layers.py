"""Arithmetic that several kinds share: where a module keeps its channels, and low-rank branches beside it.

Shape legend: B samples, G tasks side by side (B = G · n), L positions (tokens or pixels) a sample.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinery.errors import ConfigInvalid

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Linear = nn.Linear | Convolution
Norm = nn.LayerNorm | nn.GroupNorm


def widths(layer: nn.Module) -> tuple[int, int]:
    """Channels in and out of a layer, or of a branch: those of its first and its last layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Convolution):
        return layer.in_channels, layer.out_channels
    inner = [module for module in layer.modules() if isinstance(module, Linear)]
    if not inner:
        raise ConfigInvalid(type(layer).__name__, "it holds no linear and no convolution layer.")
    return widths(inner[0])[0], widths(inner[-1])[1]


def channel_axis(layer: nn.Module, y: Tensor) -> int:
    """Which axis of a module's output holds its channels: 1 for images, the last for tokens."""
    if isinstance(layer, Convolution | nn.GroupNorm):
        return 1
    return 1 if not isinstance(layer, (nn.Linear, nn.LayerNorm)) and y.dim() == 4 else y.dim() - 1


def spread(vector: Tensor, y: Tensor, axis: int) -> Tensor:
    """A vector a task, as it multiplies or adds to a batch. (G, C) → (1 or B, …, C, …) of y's dimensions."""
    # Of shapes, not by len(): where a graph is traced, len() would fix the size of its batches.
    tasks, batch = vector.shape[0], y.shape[0]
    if tasks != batch and tasks != 1:
        vector = vector.repeat_interleave(batch // tasks, dim=0)
    shape = [vector.shape[0]] + [1] * (y.dim() - 1)
    shape[axis] = vector.shape[1]
    return vector.reshape(shape)


def low_rank(layer: nn.Module, x: Tensor, y: Tensor, down: Tensor, up: Tensor, relu: bool = True) -> Tensor:
    """W_up ReLU(W_down x) at every position, or without the ReLU.

    x: the module's input, of which a convolution's branch sees the pixel under the kernel's centre; y: its
    output, whose shape the result has; down: (G, d, in); up: (G, out, d).
    """
    tasks = down.shape[0]
    if channel_axis(layer, y) == 1:
        seen = centre_pixels(layer, x, y.shape[2:]) if isinstance(layer, Convolution) else x
        pixels = seen.reshape(tasks, -1, seen.shape[1], math.prod(y.shape[2:]))  # (G, n, in, L)
        hidden = torch.matmul(down[:, None], pixels)
        return torch.matmul(up[:, None], F.relu(hidden) if relu else hidden).reshape(y.shape)
    tokens = x.reshape(tasks, -1, x.shape[-1])  # (G, n·L, in)
    hidden = torch.bmm(tokens, down.transpose(1, 2))
    return torch.bmm(F.relu(hidden) if relu else hidden, up.transpose(1, 2)).reshape(y.shape)


def kaiming(generator: torch.Generator, *shape: int) -> Tensor:
    """Kaiming normal for what comes before or after a ReLU: N(0, 2 / fan in), the last axis being fan in."""
    return torch.randn(*shape, generator=generator) * math.sqrt(2.0 / shape[-1])


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
