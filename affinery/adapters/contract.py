"""What an adapter kind is: how it changes one layer, for many tasks at once.

A kind wraps a frozen layer in an `AdaptedLayer` that holds the tensors of every task stacked, `[S, …]`, slot
0 being the untouched backbone. One implementation serves inference, where a batch may mix tasks, and
training, where tasks learn side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from affinery.adapters.routing import Route


class Config(Protocol):
    """A kind's settings: a frozen dataclass."""

    def to_dict(self) -> dict[str, Any]: ...


class AdaptedLayer(nn.Module, ABC):
    """A frozen layer and, by slot, what each task adds to it."""

    def __init__(self, base: nn.Module, route: Route) -> None:
        super().__init__()
        self.base = base
        self.route = route

    @abstractmethod
    def add_slot(self, config: Config) -> int:
        """Room for one more task, as a no-op until its tensors are set. → its slot"""

    @abstractmethod
    def initialise(self, slot: int, generator: torch.Generator) -> None:
        """The start of training: the layer still equals the frozen one."""

    @abstractmethod
    def tensors(self, slot: int) -> dict[str, Tensor]:
        """The task's own tensors by part, as views of the stack."""

    @abstractmethod
    def load(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Sets a task's tensors. Raises ValueError where a part is missing, unknown or of another shape."""


class Kind(Protocol):
    """One adapter method. A file in this folder offers it as `KIND`."""

    name: str

    def config(self, values: Mapping[str, Any]) -> Config:
        """Settings from JSON values, defaults filled in. Raises ConfigInvalid."""

    def adapts(self, layer: nn.Module) -> bool:
        """Whether the method is defined for this type of layer."""

    def wrap(self, layer: nn.Module, route: Route) -> AdaptedLayer:
        """The layer with room for tasks, none there yet."""

    def learning_rates(self) -> dict[str, float]:
        """Factors on the learning rate, by part, where a part wants its own."""
