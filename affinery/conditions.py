"""Spatial conditions: a picture that says where things are, like edges, depth or a segmentation.

A task with a condition has a *stem* of its own: a few convolutions that bring the picture to the size and the
channels of the backbone's first layer, to whose output they are added. They enter through one scalar that
starts at zero, so that at the start the model is the backbone, to the bit. The backbone's own encoder reads
the condition from there: no copy of it, no zero convolutions (DiffScaler, §3.4).

Shape legend: B samples, C channels of the picture, H×W its pixels, (C', H', W') the backbone's `hint_shape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from affinery.backbones.contract import Backbone
from affinery.errors import ConfigInvalid

NARROWEST, WIDEST = 16, 64


class ConditionStem(nn.Module):
    """(B, C, H, W) in [−1, 1] → (B, C', H', W'): gate · convolutions of the picture.

    Two 3×3 convolutions in full size, then one with a stride for each prime factor of H / H', whose widths
    double from 16 to 64, then a 1×1 to C' channels.
    """

    def __init__(self, channels: int, image_size: int, hint_shape: tuple[int, int, int]) -> None:
        super().__init__()
        out, side, _ = hint_shape
        if side < 1 or image_size % side:
            raise ConfigInvalid("condition", f"a picture of side {image_size} cannot become one of {side}.")
        self.channels, self.image_size = channels, image_size
        layers: list[nn.Module] = [nn.Conv2d(channels, NARROWEST, 3, padding=1)]
        layers.append(nn.Conv2d(NARROWEST, NARROWEST, 3, padding=1))
        width = NARROWEST
        for stride in _primes(image_size // side):
            wider, kernel = min(2 * width, WIDEST), max(3, stride)
            layers.append(nn.Conv2d(width, wider, kernel, stride, padding=kernel // 2))
            width = wider
        layers.append(nn.Conv2d(width, out, 1))
        self.convs = nn.ModuleList(layers)
        self.gate = nn.Parameter(torch.zeros(()))
        self.requires_grad_(False)

    def initialise(self, generator: torch.Generator) -> ConditionStem:
        """Kaiming normal, drawn on the CPU; the gate zero. → self"""
        with torch.no_grad():
            for layer in self._layers():
                fan_in = layer.weight[0].numel()
                drawn = torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 / fan_in)
                layer.weight.copy_(drawn)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            self.gate.zero_()
        return self

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (self.channels, self.image_size, self.image_size):
            wanted = f"{self.channels} × {self.image_size} × {self.image_size}"
            raise ConfigInvalid("condition", f"its shape is {[*images.shape[1:]]}, but it must be {wanted}.")
        hidden = images
        for i, layer in enumerate(self._layers()):
            hidden = layer(nn.functional.silu(hidden) if i else hidden)
        return self.gate * hidden

    def _layers(self) -> Iterator[nn.Conv2d]:
        for layer in self.convs:
            assert isinstance(layer, nn.Conv2d)
            yield layer

    def tensors(self) -> dict[str, Tensor]:
        """Its parameters by name."""
        return dict(self.named_parameters())

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError where a tensor is missing, unknown or of another shape."""
        own = {name: list(tensor.shape) for name, tensor in self.tensors().items()}
        given = {name: list(tensor.shape) for name, tensor in tensors.items()}
        odd = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
        if odd:
            raise ValueError(f"{odd[0]!r} is missing, unknown or of another shape")

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError, then nothing has changed."""
        self.check(tensors)
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])


def _primes(number: int) -> list[int]:
    """Its prime factors, the smallest first."""
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found


def stem_for(
    backbone: Backbone, condition: Mapping[str, Any], image_size: int | None = None
) -> ConditionStem:
    """An untrained stem for a task's condition on a backbone, on the current default device.

    Raises ConfigInvalid where the architecture cannot take images of that size.
    """
    size = image_size or backbone.spec.image_size
    return ConditionStem(int(condition["channels"]), size, backbone.hint_shape(size))


def hints(
    stems: Sequence[ConditionStem | None], conditions: Sequence[Tensor | None], shape: tuple[int, int, int]
) -> Tensor | None:
    """What the conditions of a batch add after the first layer, zeros where a sample has no stem.

    stems, conditions: one a sample, the latter (C, H, W) in [−1, 1]; shape: the backbone's `hint_shape`.
    → (B, *shape), or None where no sample has a stem.
    """
    rows: dict[ConditionStem, list[int]] = {}
    for row, stem in enumerate(stems):
        if stem is not None:
            rows.setdefault(stem, []).append(row)
    if not rows:
        return None
    like = next(iter(rows)).gate
    whole = torch.zeros(len(stems), *shape, dtype=like.dtype, device=like.device)
    for stem, own in rows.items():
        pictures = [conditions[row] for row in own]
        given = [picture for picture in pictures if picture is not None]
        if len(given) < len(own):
            raise ConfigInvalid("condition", "a task that is told a condition was given no picture of one.")
        added = stem(torch.stack(given).to(like))
        whole = whole.index_copy(0, torch.tensor(own, device=like.device), added)
    return whole
