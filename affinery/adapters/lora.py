"""LoRA (Hu et al. 2021): y = W x + b̂ + (alpha / rank) · B A x, on linear and convolution layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from affinery.adapters.contract import Folded, Kind, Part, TargetConfig, chosen, number, whole_number
from affinery.adapters.layers import Convolution, Linear, widths
from affinery.backbones.contract import Site
from affinery.errors import ConfigInvalid

ROLES = frozenset({"qkv", "query", "key", "value"})
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class LoraConfig(TargetConfig):
    """alpha: the branch is scaled by alpha / rank, None meaning alpha = rank.

    targets: queries, keys and values where none are given.
    """

    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("rank", self.rank, 1, 4096)
        if self.alpha is not None:
            number("alpha", self.alpha, 1e-6, 1e6)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Lora(Kind[LoraConfig]):
    """A low-rank change of the weights.

    On a convolution A has the layer's own kernel, stride, padding and dilation, and B is 1 × 1 with the
    layer's groups, as in PEFT's files.
    """

    name = "lora"
    settings = LoraConfig

    def targets(self, name: str, site: Site, config: LoraConfig) -> bool:
        return isinstance(site.module, Linear) and chosen(name, site, config.targets, ROLES)

    def parts(self, site: Site, config: LoraConfig) -> dict[str, Part]:
        """A: (r, in, *kernel); B: (out, r / groups)."""
        layer = site.module
        if not isinstance(layer, Linear):
            raise ConfigInvalid(type(layer).__name__, "LoRA takes linear and convolution layers only.")
        kernel, groups = (layer.kernel_size, layer.groups) if isinstance(layer, Convolution) else ((), 1)
        if config.rank % groups:
            raise ConfigInvalid("rank", f"{config.rank} is no multiple of a convolution's {groups} groups.")
        inputs, outputs = widths(layer)
        return {
            "A": Part((config.rank, inputs, *kernel)),
            "B": Part((outputs, config.rank // groups)),
        }

    def initial(self, site: Site, config: LoraConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """A uniform within ± 1 / √fan-in (Kaiming with a = √5), B zero."""
        shapes = {name: part.shape for name, part in self.parts(site, config).items()}
        bound = 1 / math.sqrt(math.prod(shapes["A"][1:]))
        A = (2 * torch.rand(shapes["A"], generator=generator) - 1) * bound
        return {"A": A, "B": torch.zeros(shapes["B"])}

    def adapt(
        self, site: Site, config: LoraConfig, parts: Mapping[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        layer, tasks = site.module, parts["A"].shape[0]
        up = config.scale * parts["B"]
        if not isinstance(layer, Convolution):
            tokens = x.reshape(tasks, -1, x.shape[-1])  # (G, n·L, in)
            hidden = torch.bmm(tokens, parts["A"].transpose(1, 2))
            flat = y.reshape(tasks, -1, y.shape[-1])
            return torch.baddbmm(flat, hidden, up.transpose(1, 2)).reshape(y.shape)
        pixels = convolved(layer, x, parts["A"])  # (G, n, r, L)
        grouped = pixels.unflatten(2, (layer.groups, -1))  # (G, n, g, r/g, L)
        low = torch.matmul(up.unflatten(1, (layer.groups, -1))[:, None], grouped)
        return y + low.reshape(y.shape)

    def fold(self, site: Site, config: LoraConfig, parts: Mapping[str, Tensor]) -> Folded:
        """W ← W + (alpha / rank) · B A."""
        layer = site.module
        assert isinstance(layer, Linear)
        if isinstance(layer, Convolution) and layer.groups > 1:
            return Folded({}, dict(parts), "its convolution has groups, but A does not")
        product = (config.scale * parts["B"]) @ parts["A"].flatten(1)
        return Folded({"weight": layer.weight + product.reshape(layer.weight.shape).to(layer.weight.dtype)})

    def merged_config(self, configs: Sequence[LoraConfig]) -> LoraConfig:
        return replace(configs[0], rank=sum(config.rank for config in configs), alpha=None)

    def merge(
        self,
        site: Site,
        config: LoraConfig,
        members: Sequence[tuple[float, LoraConfig, Mapping[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """A's and B's side by side, each weight and scale folded into B."""
        shapes = self.parts(site, config)
        groups = config.rank // shapes["B"].shape[1]
        like = members[0][2]["A"]
        A = like.new_zeros(shapes["A"].shape).unflatten(0, (groups, -1))
        B = like.new_zeros(shapes["B"].shape)
        at = 0
        for weight, own, parts in members:
            width = own.rank // groups
            A[:, at : at + width] = parts["A"].unflatten(0, (groups, -1))
            B[:, at : at + width] = weight * own.scale * parts["B"]
            at += width
        return {"A": A.flatten(0, 1), "B": B}


def convolved(layer: Convolution, x: Tensor, kernels: Tensor) -> Tensor:
    """Each task's samples with its own kernels, as the layer would: its stride, padding and dilation.

    x: (B, in, …); kernels: (G, r, in, *kernel) → (G, n, r, L)
    """
    tasks, rank = kernels.shape[:2]
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0,) * (x.dim() - 2)
    beside = x.unflatten(0, (tasks, -1)).transpose(0, 1).flatten(1, 2)  # (n, G·in, …)
    convolve: Callable[..., Tensor] = CONVOLVE[x.dim() - 2]
    out: Tensor = convolve(
        beside,
        kernels.flatten(0, 1),
        None,
        layer.stride,
        padding,
        layer.dilation,
        tasks,
    )  # (n, G·r, …)
    return out.flatten(2).reshape(out.shape[0], tasks, rank, -1).transpose(0, 1)


KIND = Lora()
