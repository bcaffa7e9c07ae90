"""Transformers that are changed for a comparison: what the methods of Affinery are held against.

copied     ControlNet's way: a trainable copy of the first half of the blocks reads the condition, and adds
           what it finds to the frozen blocks through linear layers that begin at zero
counted    positions counted on past the native size, without the trick of (i/2, j/2)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from affinery.backbones.contract import Backbone, BackboneSpec, Site
from affinery.backbones.dit import BLOCK_SITES, DiT
from affinery.backbones.patch_transformer import position_table
from affinery.errors import ConfigInvalid


class Counted(DiT):
    """Other sizes than the native one have coordinates of their own: 0 … 2n − 1 at twice the side."""

    def positions_at(self, rows: int, columns: int) -> Tensor:
        stored = self.positions
        table = position_table(stored.shape[-1], rows, columns, None, stored.device)
        return table.to(stored.dtype)


class Copied(DiT):
    """ControlNet (Zhang et al. 2023) on a transformer, as PixArt-δ has it (Chen et al. 2024).

    The copy of block i gives its output, through a linear layer of zeros, to that of the frozen block i. The
    condition enters the copy alone; its stem's gate, zero at first, stands for the first zero convolution.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec)
        width = self.config.width
        self.copied_blocks = copy.deepcopy(self.blocks[: max(1, self.config.depth // 2)])
        self.zeros = nn.ModuleList(nn.Linear(width, width) for _ in self.copied_blocks)

    def sites(self) -> Mapping[str, Site]:
        found = dict(super().sites())
        for i, block in enumerate(self.copied_blocks):
            for part, role in BLOCK_SITES.items():
                site = Site(block.get_submodule(part.removeprefix(".")), role, i)
                found[f"copied_blocks.{i}{part}"] = site
            found[f"zeros.{i}"] = Site(self.zeros[i], "linear", i)
        return found

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor,
        keep: Tensor | None = None,
        text: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> Tensor:
        if keep is not None or text is not None or hint is None:
            return super().denoise(x, t, classes, keep, text)
        rows, columns = self._grid_of(x)
        tokens = self.stem(x) + self.positions_at(rows, columns)  # (B, T, D)
        told = tokens + hint.flatten(2).transpose(1, 2)
        condition = self.condition(t, classes)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, condition)
            if i < len(self.copied_blocks):
                told = self.copied_blocks[i](told, condition)
                tokens = tokens + self.zeros[i](told)
        return self.unpatch(self.head(tokens, condition), (rows, columns))


COPIED_TARGETS = ("copied_blocks.*", "zeros.*")
VARIANTS: Mapping[str, type[DiT]] = {"copied": Copied, "counted": Counted}


@torch.no_grad()
def changed(backbone: Backbone, name: str) -> Backbone:
    """A frozen backbone as one of `VARIANTS`, its weights the same. Raises ConfigInvalid."""
    if not isinstance(backbone, DiT):
        raise ConfigInvalid("variant", f"{name!r} is one of the native DiT, not of {backbone.spec.arch}.")
    made = VARIANTS[name](backbone.spec)
    made.load_state_dict(backbone.state_dict(), strict=False)
    if isinstance(made, Copied):
        for one, like in zip(made.copied_blocks, made.blocks, strict=False):
            one.load_state_dict(like.state_dict())
        for layer in made.zeros:
            for parameter in layer.parameters():
                parameter.zero_()
    return made.freeze()
