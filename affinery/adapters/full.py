"""Full fine-tuning: every layer has weights of the task's own. What the others are held to.

The fixed position table and the backbone's own class rows are no layer's weights and stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from affinery.adapters.contract import Folded, Kind, Part, TargetConfig, chosen
from affinery.adapters.routing import Blocks, Choice
from affinery.adapters.sites import Bank
from affinery.backbones.contract import LAYER_ROLES, Site
from affinery.errors import ConfigInvalid


@dataclass(frozen=True)
class FullConfig(TargetConfig):
    """targets: all layers where none are given."""


class Full(Kind[FullConfig]):
    """A copy of each layer's weights, on layers of any type."""

    name = "full"
    settings = FullConfig
    replaces = True

    def targets(self, name: str, site: Site, config: FullConfig) -> bool:
        weighty = any(True for _ in site.module.parameters(recurse=False))
        return weighty and chosen(name, site, config.targets, LAYER_ROLES)

    def parts(self, site: Site, config: FullConfig) -> dict[str, Part]:
        """The layer's own parameters, by name."""
        own = {name: Part(tuple(p.shape)) for name, p in site.module.named_parameters(recurse=False)}
        if not own or site.role not in LAYER_ROLES:
            raise ConfigInvalid(type(site.module).__name__, "it is no layer with weights to fine-tune.")
        return own

    def initial(self, site: Site, config: FullConfig, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in site.module.named_parameters(recurse=False)}

    def run(
        self,
        site: Site,
        config: FullConfig,
        bank: Bank,
        choice: Choice,
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Each task's samples through the layer with that task's weights."""

        def call(x: Tensor, slot: int) -> Tensor:
            own = {name: tensor.to(like.dtype) for name, tensor in bank.tensors(slot).items()}
            out: Tensor = functional_call(layer, own, (x, *args), kwargs)
            return out

        layer = site.module
        like = next(layer.parameters())
        if isinstance(choice, Blocks):
            slots = range(choice.first, choice.first + choice.count)
            blocks = x.chunk(choice.count)
            return torch.cat([call(block, slot) for block, slot in zip(blocks, slots, strict=True)])
        if choice.listed is None:  # any slot may be in the batch: each in turn, where it is meant
            y: Tensor = layer(x, *args, **kwargs)
            for slot in range(1, bank.capacity):
                own = (choice.slots == slot).reshape(-1, *[1] * (y.dim() - 1))
                y = torch.where(own, call(x, slot), y)
            return y
        order = sorted(range(len(x)), key=choice.listed.__getitem__)
        rows = torch.tensor(order, device=x.device)
        slots_there = sorted(set(choice.listed))
        pieces = x[rows].split([choice.listed.count(slot) for slot in slots_there])
        outputs = [call(piece, slot) for piece, slot in zip(pieces, slots_there, strict=True)]
        return torch.cat(outputs)[rows.argsort()]

    def fold(self, site: Site, config: FullConfig, parts: Mapping[str, Tensor]) -> Folded:
        like = next(site.module.parameters())
        return Folded({name: tensor.to(like.dtype) for name, tensor in parts.items()})

    def merged_config(self, configs: Sequence[FullConfig]) -> FullConfig:
        return configs[0]

    def merge(
        self,
        site: Site,
        config: FullConfig,
        members: Sequence[tuple[float, FullConfig, Mapping[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """W + Σ weight · (the member's W − W)."""
        frozen = {name: p.detach().cpu() for name, p in site.module.named_parameters(recurse=False)}
        return {
            name: w0 + torch.stack([weight * (own[name].cpu() - w0) for weight, _, own in members]).sum(dim=0)
            for name, w0 in frozen.items()
        }


KIND = Full()
