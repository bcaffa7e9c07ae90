"""Which adapter each sample of a batch uses: slot 0 is the untouched backbone, slot k the k-th task.

Adapted layers are deep inside modules that know nothing of tasks, so they share one `Route` object, and the
composed model sets it for the length of a forward pass. What the layers may exploit (all samples of one
task; equal blocks of consecutive tasks) is found out once a pass, not once a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class OneTask:
    """Every sample uses the same slot: a plain matrix product."""

    slot: int


@dataclass(frozen=True)
class EqualBlocks:
    """The batch is `count` blocks of equal length, of slots first, first + 1, …: one batched product."""

    first: int
    count: int


@dataclass(frozen=True)
class AnyMix:
    """Each sample picks its slot: slots is (B,)."""

    slots: Tensor


Plan = OneTask | EqualBlocks | AnyMix


def plan_for(slots: Sequence[int], device: torch.device | str = "cpu") -> Plan:
    """The cheapest plan for a batch whose samples use these slots."""
    if len(set(slots)) == 1:
        return OneTask(slots[0])
    count = max(slots) - min(slots) + 1
    each, rest = divmod(len(slots), count)
    blocks = [min(slots) + i // each for i in range(len(slots))] if each and not rest else []
    if list(slots) == blocks:
        return EqualBlocks(min(slots), count)
    return AnyMix(torch.tensor(list(slots), dtype=torch.long, device=device))


@dataclass
class Route:
    """The plan of the pass under way; outside any pass, the untouched backbone."""

    plan: Plan = field(default_factory=lambda: OneTask(0))

    @contextmanager
    def using(self, plan: Plan) -> Iterator[None]:
        before, self.plan = self.plan, plan
        try:
            yield
        finally:
            self.plan = before
