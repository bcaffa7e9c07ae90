"""BitFit (Ben Zaken et al. 2021): every bias of the network trains, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affinery.adapters.contract import Folded, Kind, Part, TargetConfig, chosen
from affinery.adapters.layers import Linear, Norm, channel_axis, spread
from affinery.backbones.contract import LAYER_ROLES, Site
from affinery.errors import ConfigInvalid


@dataclass(frozen=True)
class BitFitConfig(TargetConfig):
    """targets: all layers with a bias where none are given."""


def bias_of(layer: nn.Module) -> Tensor | None:
    """The bias of a linear, convolution or norm layer, if it has one."""
    return layer.bias if isinstance(layer, Linear | Norm) else None


class BitFit(Kind[BitFitConfig]):
    """A shift of each bias, on linear, convolution and norm layers that have one."""

    name = "bitfit"
    settings = BitFitConfig

    def targets(self, name: str, site: Site, config: BitFitConfig) -> bool:
        return bias_of(site.module) is not None and chosen(name, site, config.targets, LAYER_ROLES)

    def parts(self, site: Site, config: BitFitConfig) -> dict[str, Part]:
        """bias: (out,), the difference to the frozen bias."""
        bias = bias_of(site.module)
        if bias is None:
            raise ConfigInvalid(type(site.module).__name__, "BitFit takes layers that have a bias only.")
        return {"bias": Part(tuple(bias.shape))}

    def initial(self, site: Site, config: BitFitConfig, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: torch.zeros(part.shape) for name, part in self.parts(site, config).items()}

    def adapt(
        self, site: Site, config: BitFitConfig, parts: Mapping[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        return y + spread(parts["bias"], y, channel_axis(site.module, y))

    def fold(self, site: Site, config: BitFitConfig, parts: Mapping[str, Tensor]) -> Folded:
        bias = bias_of(site.module)
        assert bias is not None
        return Folded({"bias": bias + parts["bias"].to(bias.dtype)})

    def merged_config(self, configs: Sequence[BitFitConfig]) -> BitFitConfig:
        return configs[0]

    def merge(
        self,
        site: Site,
        config: BitFitConfig,
        members: Sequence[tuple[float, BitFitConfig, Mapping[str, Tensor]]],
    ) -> dict[str, Tensor]:
        return {"bias": torch.stack([weight * parts["bias"] for weight, _, parts in members]).sum(dim=0)}


KIND = BitFit()
