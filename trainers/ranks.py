"""Several processes that train one and the same: each takes a part of every batch, and only gradients travel.

Every process draws the whole batch from the same streams and computes its own part of it, so that batches,
noise, time steps and masks are those of one process. What is summed is the adapter's gradients, one message a
step; the frozen backbone is neither wrapped nor sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from affinery.errors import ConfigInvalid


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    def part(self, batch: int) -> slice:
        """This process's part of a batch. Raises ConfigInvalid where there is too little for all."""
        if batch < self.count:
            raise ConfigInvalid("--workers", f"{self.count} cannot share a batch of {batch}.")
        return slice(batch * self.rank // self.count, batch * (self.rank + 1) // self.count)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Adds up what all processes have, in place: afterwards all have the same, to the bit."""
        if self.count == 1 or not tensors:
            return
        message = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(message)
        pieces = message.split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))

    def as_first(self, *answers: bool) -> tuple[bool, ...]:
        """What the first process says: its clock and its files decide for all."""
        if self.count == 1:
            return answers
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        told = torch.tensor([float(answer) for answer in answers], device=device)
        dist.broadcast(told, src=0)
        return tuple(bool(answer) for answer in told.tolist())


ALONE = Ranks()


def ranks() -> Ranks:
    """As torch's process group has it; alone where there is none."""
    if not dist.is_available() or not dist.is_initialized():
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())
