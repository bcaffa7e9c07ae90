"""DiffFit (Xie et al. 2023): biases and norms train, and factors γ, 1 at the start, on what matters.

    y = γ ⊙ (W x + b̂ + b)

γ stands on queries, keys, values and output projections of every attention, on the modulation of the last
layer, and on the attention and MLP branches of the first blocks: 14 of DiT-XL/2's 28 (its Table 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affinery.adapters.bitfit import bias_of
from affinery.adapters.contract import Config, Folded, Kind, Part, whole_number
from affinery.adapters.layers import Linear, Norm, channel_axis, spread, widths
from affinery.backbones.contract import LAYER_ROLES, Site
from affinery.errors import ConfigInvalid

SCALED_LAYERS = frozenset({"qkv", "query", "key", "value", "proj", "head-modulation"})
SCALED_BRANCHES = frozenset({"attention", "mlp"})


@dataclass(frozen=True)
class DiffFitConfig(Config):
    """blocks: how many blocks have γ on their branches, counted from first_block (0 is the first)."""

    blocks: int = 14
    first_block: int = 0

    def __post_init__(self) -> None:
        whole_number("blocks", self.blocks, 0, 100_000)
        whole_number("first_block", self.first_block, 0, 100_000)

    def covers(self, block: int | None) -> bool:
        return block is not None and self.first_block <= block < self.first_block + self.blocks


class DiffFit(Kind[DiffFitConfig]):
    """Shifts of biases, changes of norms' weights, factors on outputs."""

    name = "difffit"
    settings = DiffFitConfig

    def targets(self, name: str, site: Site, config: DiffFitConfig) -> bool:
        return bool(self._shapes(site, config))

    def _shapes(self, site: Site, config: DiffFitConfig) -> dict[str, Part]:
        layer, found = site.module, {}
        bias = bias_of(layer) if site.role in LAYER_ROLES else None
        if bias is not None:
            found["bias"] = Part(tuple(bias.shape))
        if isinstance(layer, Norm) and layer.weight is not None:
            found["weight"] = Part(tuple(layer.weight.shape))
        branch = site.role in SCALED_BRANCHES and config.covers(site.block)
        if branch or (site.role in SCALED_LAYERS and isinstance(layer, Linear)):
            found["gamma"] = Part((widths(layer)[1],), neutral=1.0)
        return found

    def parts(self, site: Site, config: DiffFitConfig) -> dict[str, Part]:
        """bias, weight: differences to the frozen ones; gamma: (out,) factors."""
        found = self._shapes(site, config)
        if not found:
            kind = type(site.module).__name__
            raise ConfigInvalid(kind, f"DiffFit changes nothing about it where it is {site.role!r}.")
        return found

    def initial(self, site: Site, config: DiffFitConfig, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: torch.full(part.shape, part.neutral) for name, part in self.parts(site, config).items()}

    def adapt(
        self, site: Site, config: DiffFitConfig, parts: Mapping[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        axis = channel_axis(site.module, y)
        if "weight" in parts:
            y = y + normalised(site.module, x) * spread(parts["weight"], y, axis)
        if "bias" in parts:
            y = y + spread(parts["bias"], y, axis)
        return y * spread(parts["gamma"], y, axis) if "gamma" in parts else y

    def fold(self, site: Site, config: DiffFitConfig, parts: Mapping[str, Tensor]) -> Folded:
        """W ← γ ⊙ W, b̂ ← γ ⊙ (b̂ + b). A factor on a whole branch stays."""
        layer = site.module
        if not isinstance(layer, Linear | Norm):
            return Folded({}, dict(parts), "it scales the output of a whole branch")
        changed = {}
        if isinstance(layer, Norm) and "weight" in parts:
            changed["weight"] = layer.weight + parts["weight"].to(layer.weight.dtype)
        if layer.bias is not None:
            changed["bias"] = layer.bias + parts["bias"].to(layer.bias.dtype)
        if "gamma" in parts:
            gamma = parts["gamma"].to(layer.weight.dtype)
            changed["weight"] = layer.weight * gamma.reshape(-1, *[1] * (layer.weight.dim() - 1))
            if "bias" in changed:
                changed["bias"] = changed["bias"] * gamma
        return Folded(changed)

    def merged_config(self, configs: Sequence[DiffFitConfig]) -> DiffFitConfig:
        first = min(config.first_block for config in configs)
        last = max(config.first_block + config.blocks for config in configs)
        return DiffFitConfig(last - first, first)

    def merge(
        self,
        site: Site,
        config: DiffFitConfig,
        members: Sequence[tuple[float, DiffFitConfig, Mapping[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """γ = 1 + Σ weight · (γ_i − 1), and b such that γ ⊙ b = Σ weight · γ_i ⊙ b_i."""

        def total(changes: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(changes)).sum(dim=0)

        shapes, merged = self.parts(site, config), {}
        if "gamma" in shapes:
            merged["gamma"] = 1 + total([w * (parts["gamma"] - 1) for w, _, parts in members])
            if bool((merged["gamma"] == 0).any()) and "bias" in shapes:
                raise ConfigInvalid("merge", "these weights make a factor γ zero, which hides the biases.")
        if "weight" in shapes:
            merged["weight"] = total([w * parts["weight"] for w, _, parts in members])
        if "bias" in shapes:
            # A weight times a scalar tensor would be rounded to that tensor’s type: it comes last.
            shifts = [
                w * (parts["bias"] * parts["gamma"] if "gamma" in parts else parts["bias"])
                for w, _, parts in members
            ]
            merged["bias"] = total(shifts) / merged.get("gamma", torch.ones(()))
        return merged


def normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """What a norm layer makes of x before its own weights."""
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    assert isinstance(layer, nn.GroupNorm)
    return F.group_norm(x, layer.num_groups, eps=layer.eps)


KIND = DiffFit()
