"""One task put into a model's weights, as far as that is exact, and taken out again to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from affinery.adapters.sites import AdaptedSite, Bank

if TYPE_CHECKING:
    from affinery.composed import ComposedModel, TaskSlot


@dataclass(frozen=True)
class Remainder:
    """What of a task could not be folded into the weights, by module, with the reason."""

    task: str
    reasons: Mapping[str, str]


class Folding:
    """A task that is folded into a model: what was there before, and what of the task is left beside it.

    The layers' own parameters are kept as they are and replaced by new ones, so taking the task out again
    gives the very same tensors.
    """

    @torch.no_grad()
    def __init__(self, model: ComposedModel, task: TaskSlot) -> None:
        group = model.groups[task.group]
        banks = model.banks(group)
        parts = {
            name: {part: tensor.clone() for part, tensor in bank.tensors(task.slot).items()}
            for name, bank in banks.items()
        }
        folded = {name: group.kind.fold(model.sites[name], group.config, own) for name, own in parts.items()}
        self.task = task.meta.task
        self._layers: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = []
        self._loaded: list[tuple[Bank, int, dict[str, Tensor]]] = []
        self._removed: list[tuple[AdaptedSite, str, Bank]] = []
        reasons = {}
        for name, result in folded.items():
            self._put(model.sites[name].module, result.weights)
            if result.rest is None:
                self._removed.append((model.adapted[name], str(group.number), banks[name]))
                del model.adapted[name].banks[str(group.number)]
            else:
                self._loaded.append((banks[name], task.slot, parts[name]))
                banks[name].load(task.slot, result.rest)
                reasons[name] = result.reason
        self.remainder = Remainder(self.task, reasons)

    def _put(self, layer: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self._layers.append((layer, {name: layer._parameters[name] for name in weights}))
        for name, tensor in weights.items():
            layer.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))

    def undo(self) -> None:
        """Puts back what was there."""
        for layer, weights in self._layers:
            for name, parameter in weights.items():
                layer.register_parameter(name, parameter)
        for bank, slot, parts in self._loaded:
            bank.load(slot, parts)
        for site, group, bank in self._removed:
            site.banks[group] = bank
