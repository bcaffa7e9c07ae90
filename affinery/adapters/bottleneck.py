"""The bottleneck of both AdaptFormers: a small MLP beside or behind a feed-forward branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from affinery.adapters.contract import Kind, Part, TargetConfig, matches, number, whole_number
from affinery.adapters.layers import Convolution, centre_pixels, channel_axis, kaiming, widths
from affinery.backbones.contract import Site
from affinery.errors import ConfigInvalid

UNSUITED = frozenset({"norm", "block", "residual"})


@dataclass(frozen=True)
class BottleneckConfig(TargetConfig):
    """rank: the bottleneck's width (64 in DiffFit's comparison); scale: s, a fixed factor.

    targets: the feed-forward branches where none are given.
    """

    rank: int = 64
    scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("rank", self.rank, 1, 4096)
        number("scale", self.scale, 1e-6, 1e6)


class Bottleneck(Kind[BottleneckConfig]):
    """sequential: it stands behind the module, not beside it."""

    settings = BottleneckConfig
    sequential: ClassVar[bool]

    def targets(self, name: str, site: Site, config: BottleneckConfig) -> bool:
        if not config.targets:
            return site.role == "mlp"
        if site.role in UNSUITED:
            return False
        return any(matches(name, site, target) for target in config.targets)

    def parts(self, site: Site, config: BottleneckConfig) -> dict[str, Part]:
        """down: (d, in); down_bias: (d,); up: (out, d); up_bias: (out,)."""
        if site.role in UNSUITED:
            kind = type(site.module).__name__
            raise ConfigInvalid(kind, f"{self.name} takes feed-forward branches and single layers only.")
        inputs, outputs = widths(site.module)
        inputs = outputs if self.sequential else inputs
        shapes = {
            "down": (config.rank, inputs),
            "down_bias": (config.rank,),
            "up": (outputs, config.rank),
            "up_bias": (outputs,),
        }
        return {name: Part(shape) for name, shape in shapes.items()}

    def initial(self, site: Site, config: BottleneckConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """W_down Kaiming normal, all else zero: W_up has a gradient at once."""
        tensors = {name: torch.zeros(part.shape) for name, part in self.parts(site, config).items()}
        tensors["down"] = kaiming(generator, *tensors["down"].shape)
        return tensors

    def adapt(
        self, site: Site, config: BottleneckConfig, parts: Mapping[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        layer = site.module
        axis = channel_axis(layer, y)
        if self.sequential:
            seen = y
        else:
            seen = centre_pixels(layer, x, y.shape[2:]) if isinstance(layer, Convolution) else x
        tasks = parts["down"].shape[0]
        tokens = seen.movedim(axis, -1)
        flat = tokens.reshape(tasks, -1, tokens.shape[-1])  # (G, n·L, in)
        hidden = F.relu(torch.baddbmm(parts["down_bias"][:, None], flat, parts["down"].transpose(1, 2)))
        change = torch.baddbmm(parts["up_bias"][:, None], hidden, parts["up"].transpose(1, 2))
        change = change.reshape(*tokens.shape[:-1], -1).movedim(-1, axis)
        return y + config.scale * change

    def merged_config(self, configs: Sequence[BottleneckConfig]) -> BottleneckConfig:
        return replace(configs[0], rank=sum(config.rank for config in configs), scale=1.0)

    def merge(
        self,
        site: Site,
        config: BottleneckConfig,
        members: Sequence[tuple[float, BottleneckConfig, Mapping[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """The bottlenecks side by side, each weight and scale folded into W_up and its bias."""
        factors = [weight * own.scale for weight, own, _ in members]
        down = torch.cat([parts["down"] for _, _, parts in members])
        missing = config.rank - len(down)  # where not every member is at this module
        up = torch.cat([f * parts["up"] for f, (_, _, parts) in zip(factors, members, strict=True)], dim=1)
        up_bias = [f * parts["up_bias"] for f, (_, _, parts) in zip(factors, members, strict=True)]
        return {
            "down": F.pad(down, (0, 0, 0, missing)),
            "down_bias": F.pad(torch.cat([parts["down_bias"] for _, _, parts in members]), (0, missing)),
            "up": F.pad(up, (0, missing)),
            "up_bias": torch.stack(up_bias).sum(dim=0),
        }
