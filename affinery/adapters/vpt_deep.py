"""VPT-Deep (Jia et al. 2022): learnt tokens before the others in the first blocks, and an open last layer.

    y = block([p, x]) without p's rows

Tokens change attention even where they are zero, so a task would not start as the backbone. A gate g a block,
zero at the start, mends this: y = block(x) + g · (block([p, x]) − block(x)). `gated = false` is the papers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from affinery.adapters.contract import Config, Folded, Kind, Part, whole_number
from affinery.adapters.full import KIND as FULL
from affinery.adapters.full import FullConfig
from affinery.adapters.layers import spread, widths
from affinery.adapters.routing import Choice
from affinery.adapters.sites import Bank
from affinery.backbones.contract import Site
from affinery.errors import ConfigInvalid

OPEN = frozenset({"head", "head-modulation"})
STEP = 0.02  # of the tokens' initial values, as of a transformer's embeddings


@dataclass(frozen=True)
class VptDeepConfig(Config):
    """depth: how many blocks have tokens of their own, from the first; tokens: how many each.

    DiffFit's comparison found depth 5 with one token the most stable. open_head: the last layer trains too.
    """

    depth: int = 5
    tokens: int = 1
    open_head: bool = True
    gated: bool = True

    def __post_init__(self) -> None:
        whole_number("depth", self.depth, 1, 100_000)
        whole_number("tokens", self.tokens, 1, 4096)
        for name in ("open_head", "gated"):
            if type(getattr(self, name)) is not bool:
                raise ConfigInvalid(name, f"{getattr(self, name)!r} is neither true nor false.")


class VptDeep(Kind[VptDeepConfig]):
    """Prompt tokens in transformer blocks, own weights in the last layer."""

    name = "vpt-deep"
    settings = VptDeepConfig
    replaces = True

    def targets(self, name: str, site: Site, config: VptDeepConfig) -> bool:
        if site.role in OPEN:
            return config.open_head
        return site.role == "block" and site.block is not None and site.block < config.depth

    def choose(self, sites: Mapping[str, Site], config: VptDeepConfig) -> tuple[str, ...]:
        found = super().choose(sites, config)
        if not any(sites[name].role == "block" for name in found):
            raise ConfigInvalid(self.name, "this backbone has no transformer blocks that take tokens.")
        return found

    def parts(self, site: Site, config: VptDeepConfig) -> dict[str, Part]:
        """prompt: (tokens, D) and gate: () of a block; the last layer's own weights, by name."""
        if site.role in OPEN:
            return FULL.parts(site, FullConfig())
        if site.role != "block":
            kind = type(site.module).__name__
            raise ConfigInvalid(kind, "prompt tokens stand in transformer blocks only.")
        prompt = {"prompt": Part((config.tokens, widths(site.module)[0]))}
        return prompt | {"gate": Part(())} if config.gated else prompt

    def initial(self, site: Site, config: VptDeepConfig, generator: torch.Generator) -> dict[str, Tensor]:
        if site.role in OPEN:
            return FULL.initial(site, FullConfig(), generator)
        shapes = self.parts(site, config)
        tensors = {"prompt": STEP * torch.randn(shapes["prompt"].shape, generator=generator)}
        return tensors | {"gate": torch.zeros(())} if config.gated else tensors

    def run(
        self,
        site: Site,
        config: VptDeepConfig,
        bank: Bank,
        choice: Choice,
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """x: (B, T, D) tokens → (B, T, D)."""
        if site.role in OPEN:
            return FULL.run(site, FullConfig(), bank, choice, x, *args, **kwargs)
        parts = {name: part.to(x.dtype) for name, part in bank.pick(choice).items()}
        prompts = parts["prompt"].repeat_interleave(
            x.shape[0] // parts["prompt"].shape[0], dim=0
        )  # (B, P, D)
        y: Tensor = site.module(torch.cat([prompts, x], dim=1), *args, **kwargs)[:, config.tokens :]
        if not config.gated:
            return y
        plain: Tensor = site.module(x, *args, **kwargs)
        return plain + spread(parts["gate"][:, None], y, 1) * (y - plain)

    def fold(self, site: Site, config: VptDeepConfig, parts: Mapping[str, Tensor]) -> Folded:
        if site.role in OPEN:
            return FULL.fold(site, FullConfig(), parts)
        return Folded({}, dict(parts), "tokens are no weights")


KIND = VptDeep()
