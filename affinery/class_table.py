"""The class table that a composed model looks rows up in: the backbone's and every task's, as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


class PackedTable:
    """The rows that are there, without the gaps between tasks' blocks.

    It serves until one of its parts is changed, so a batch costs the same however many tasks are loaded.
    """

    def __init__(self, parts: Sequence[Tensor], blocks: Sequence[tuple[int, int]]) -> None:
        """parts: the backbone's table (N + 1, D), then each task's rows; blocks: the tasks', rising."""
        grad = torch.is_grad_enabled()
        # What is made in inference mode could not be used in a training that comes later.
        with torch.inference_mode(mode=False), torch.set_grad_enabled(grad):
            self._null = len(parts[0]) - 1
            self._lows, self._highs, self._firsts = places(tuple(blocks), self._null, parts[0].device)
            self._table = torch.cat(list(parts))
        self._made_of = [(part, *_state(part)) for part in parts if not part.is_inference()]

    @property
    def trains(self) -> bool:
        """Whether it is part of one training step's graph, and of no use after it."""
        return self._table.requires_grad

    def serves(self, parts: Sequence[Tensor]) -> bool:
        """Whether it is the table of these parts as they are now. One that is being trained never is."""
        if any(part.is_inference() for part in parts):  # whose changes nobody counts
            return False
        return (
            len(parts) == len(self._made_of)
            and all(
                part is known and _state(part) == (place, version)
                for part, (known, place, version) in zip(parts, self._made_of, strict=True)
            )
            and not (torch.is_grad_enabled() and any(part.requires_grad for part in parts))
        )

    def look_up(self, rows: Tensor) -> Tensor:
        """(B,) rows of the class table → (B, D). A row of no block is the null row."""
        task = (torch.bucketize(rows, self._lows, right=True) - 1).clamp(min=0)
        own = (rows >= self._lows[task]) & (rows < self._highs[task])
        at = torch.where(own, rows - self._lows[task] + self._firsts[task], rows.clamp(max=self._null))
        return F.embedding(at, self._table)


@lru_cache(maxsize=256)
def places(
    blocks: tuple[tuple[int, int], ...], null: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Where blocks begin and end, and where their rows are in the table: moved to a device once."""
    with torch.inference_mode(mode=False):
        lows, highs = torch.tensor(blocks, device=device).T.contiguous()
        sizes = highs - lows
        return lows, highs, null + 1 + sizes.cumsum(0) - sizes


def _state(part: Tensor) -> tuple[int, int]:
    """What tells that a tensor's values may have changed: where they are, and how often they were set."""
    return part.data_ptr(), part._version
