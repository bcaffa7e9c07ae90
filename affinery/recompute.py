"""Computing cheap results again in the backward pass, instead of keeping them.

What follows from a kept tensor by a few operations an element (a norm, its modulation, an activation) is
saved by the layer after it, though the tensor that it was made of is saved too. While a `Cheap` watches, a
network tells it of such results (`remember`), and what autograd would keep of them is made anew when asked
for, by the same operations on the same numbers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LEVELS = ("none", "cheap", "block")
"""What training computes again: nothing, what is cheap, or whole blocks."""


@dataclass
class Source:
    """How a result is made again. last: the result as it was last made, while anybody holds it."""

    again: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    autocast: tuple[str, torch.dtype, bool] | None
    last: Callable[[], Tensor | None]

    def result(self) -> Tensor:
        made = self.last()
        if made is None:
            cast = torch.autocast(*self.autocast) if self.autocast else nullcontext()
            with torch.no_grad(), cast:
                made = self.again(*self.inputs)
            self.last = weakref.ref(made)
        return made


@dataclass(frozen=True)
class View:
    """A kept tensor as it lies in a result that is made again."""

    source: Source
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        return self.source.result().as_strided(self.size, self.stride, self.offset)


@dataclass
class Cheap:
    """What a network told of, by where it lies in memory, and only while it lies there."""

    told: dict[int, tuple[weakref.ref[Tensor], int, Source]] = field(default_factory=dict)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a forward pass; what it keeps is made again whenever the backward pass comes."""
        token = _watcher.set(self)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
                yield
        finally:
            _watcher.reset(token)
            self.told.clear()

    def tell(self, result: Tensor, again: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        device = result.device.type
        autocast = None
        if torch.amp.is_autocast_available(device):
            autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        source = Source(again, tuple(one.detach() for one in inputs), autocast, lambda: None)
        at = result.untyped_storage().data_ptr()
        self.told[at] = weakref.ref(result), result._version, source

    def _pack(self, tensor: Tensor) -> Tensor | View:
        known = self.told.get(tensor.untyped_storage().data_ptr()) if self.told else None
        if known is None:
            return tensor
        reference, version, source = known
        result = reference()
        same = result is not None and result.dtype == tensor.dtype and result._version == version
        if not same:  # its memory is another's by now, or it was written to
            return tensor
        return View(source, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _unpack(kept: Any) -> Tensor:
    return kept.tensor() if isinstance(kept, View) else kept


_watcher: ContextVar[Cheap | None] = ContextVar("cheap", default=None)


def remember(result: Tensor, again: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Tells of a result that `again(*inputs)` gives, at little cost and to the bit. → the result"""
    if torch.compiler.is_compiling():  # a compiler decides by itself
        return result
    watcher = _watcher.get()
    if watcher is not None and result.requires_grad:
        watcher.tell(result, again, inputs)
    return result
